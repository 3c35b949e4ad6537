"""GPT-2's two older tokenizer files, `vocab.json` and `merges.txt`: from tokenizer.json, and back.

    vocab.json    {"!": 0, ..., "<|endoftext|>": 50256}: ids by token, bytes as printable letters
    merges.txt    a line a pair, in the order in which pairs are joined; special tokens are in none

Reads and writes the same content as tokenizer.json has; which ids a text gets is not its concern.
"""

from __future__ import annotations

import json

from gptrs.errors import TokenizerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"

_MERGES_HEADER = "#version: 0.2"


def gpt2_files(tokenizer_json: str) -> dict[str, bytes]:
    """vocab.json and merges.txt by name; none of a tokenizer of characters: it has no merges."""
    described = json.loads(tokenizer_json)["model"]
    if "merges" not in described:
        return {}
    merges = [_MERGES_HEADER, *map(" ".join, described["merges"])]
    return {
        VOCAB_FILE: json.dumps(described["vocab"], ensure_ascii=False).encode(),
        MERGES_FILE: ("\n".join(merges) + "\n").encode(),
    }


def has_gpt2_file(directory: Path) -> bool:
    """Whether `directory` has one of the two files, which then needs the other."""
    return any((directory / name).is_file() for name in (VOCAB_FILE, MERGES_FILE))


def is_gpt2_file(file: Path) -> bool:
    """Whether `file` is one of the two; all of a tokenizer may have been saved as vocab.json."""
    return file.name == MERGES_FILE or (file.name == VOCAB_FILE and not _is_whole(file))


def _is_whole(file: Path) -> bool:
    """Whether this is all of a tokenizer. In a vocabulary, "model" would be a token with an id."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and isinstance(content.get("model"), dict)


def read_gpt2_files(directory: Path) -> bytes:
    """A tokenizer.json of the two files in `directory`, whose last ids are the special tokens.

    Raises:
        OSError: a file cannot be read.
        TokenizerError: there is only one of them, or a file is not what its name says.
    """
    for name, other in ((VOCAB_FILE, MERGES_FILE), (MERGES_FILE, VOCAB_FILE)):
        if (directory / other).is_file() and not (directory / name).is_file():
            raise TokenizerError(f"{name} is missing, which {other} needs beside it")
    vocab = _vocab(directory / VOCAB_FILE)
    merges = _merges(directory / MERGES_FILE)
    # Every merge makes one token, and the 256 bytes are tokens too; what else there is, is special.
    special = {token: id_ for token, id_ in vocab.items() if id_ >= 256 + len(merges)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    described = {
        "version": "1.0",
        "added_tokens": [_added_token(token, id_) for token, id_ in special.items()],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    return json.dumps(described).encode()


def _vocab(file: Path) -> dict[str, int]:
    try:
        vocab = json.loads(file.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{file}: not JSON: {error}") from error
    if not isinstance(vocab, dict) or any(type(id_) is not int for id_ in vocab.values()):
        raise TokenizerError(f"{file}: expected an object of tokens and their ids")
    return vocab


def _merges(file: Path) -> list[str]:
    try:
        # Letters that stand for bytes are among what str.splitlines would split at.
        lines = file.read_bytes().decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file}: not UTF-8: {error}") from error
    return [line for line in lines if line and not line.startswith("#version")]


def _added_token(token: str, id_: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": token, **flags, "special": True}
