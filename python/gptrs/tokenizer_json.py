"""`tokenizer.json`, the file in which Hugging Face's libraries keep a tokenizer.

Writes GPT-2's, and checks whether somebody's file is GPT-2's: no other vocabulary is supported.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

from gptrs._core import Gpt2Tokenizer
from gptrs.errors import TokenizerError

FILE_NAME: Final = "tokenizer.json"


def write(file: Path, core: Gpt2Tokenizer) -> None:
    """Writes under a temporary name, then renames: no reader ever sees half a file."""
    text = json.dumps(_describe(core), ensure_ascii=False)
    temporary = file.with_name(f".tmp-{file.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check(file: Path, core: Gpt2Tokenizer) -> None:
    """Refuses a file that does not describe GPT-2's tokenizer.

    Raises:
        TokenizerError: the file cannot be read, or what it describes is not GPT-2's tokenizer.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} cannot be read as JSON: {error}") from error
    try:
        difference = _difference(found, _describe(core))
    except (AttributeError, KeyError, TypeError) as error:
        raise TokenizerError(f"{file} is not a Hugging Face tokenizer") from error
    if difference is not None:
        raise TokenizerError(f"only GPT-2's tokenizer is supported: {file} has {difference}")


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """What a Hugging Face tokenizer has that GPT-2's has not; `None` if both give the same ids.

    Raises:
        AttributeError, KeyError, TypeError: `found` is something else.
    """
    model, end_of_text = found["model"], expected["added_tokens"][0]
    kind, vocab = model.get("type", "BPE"), model["vocab"]
    if kind != "BPE" or vocab != expected["model"]["vocab"]:
        return f"a {kind} model with {len(vocab)} tokens, not GPT-2's"
    # Older files write a merge as one string.
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if merges != expected["model"]["merges"]:
        return f"GPT-2's tokens, but {len(merges)} other merges"
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    if added != {end_of_text["content"]: end_of_text["id"]}:
        return f"the added tokens {added}"
    if found.get("normalizer") is not None:
        return f"the normalizer {found['normalizer']}"
    splitter = found["pre_tokenizer"] or {}
    if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space", True):
        return f"the pre-tokenizer {splitter}"
    return None


def _describe(core: Gpt2Tokenizer) -> dict[str, Any]:
    """GPT-2 as the `tokenizers` library describes it in JSON."""
    letters = _letters_of_bytes()
    tokens = ["".join(map(letters.__getitem__, token)) for token in core.ranks()]
    merges = [[tokens[left], tokens[right]] for left, right in core.merges()]
    vocab = {token: rank for rank, token in enumerate([*tokens, core.END_OF_TEXT])}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    end_of_text = {
        "id": core.END_OF_TEXT_ID,
        "content": core.END_OF_TEXT,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _letters_of_bytes() -> list[str]:
    """The visible character that GPT-2's vocabulary file writes for each byte.

    Printable Latin-1 characters stand for themselves; the rest, in order, are U+0100 and on.
    """
    visible = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), 256),
    ]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]
