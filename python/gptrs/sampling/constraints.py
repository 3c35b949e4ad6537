r"""What a tokenizer's tokens are made of: for patterns and stop strings, which the core works out.

`Generator` takes `regex=`, `choices=` and `stop=` and needs nothing from here. A loop of one's own
masks its logits so:

>>> from gptrs import _core, get_tokenizer
>>> tokenizer = get_tokenizer("gpt2")
>>> grammar = _core.Grammar.regex(r"\d{4}-\d{2}", token_bytes(tokenizer))
>>> matcher = grammar.start()
>>> allowed, may_end = matcher.allowed(tokens_left=8)  # bool [V], bool
>>> matcher.push(tokenizer.encode("20")[0])

Imports neither NumPy nor torch.
"""

from __future__ import annotations

import json
from typing import Any, Final

from gptrs import _core
from gptrs.errors import ConfigError
from gptrs.text.tokenizer import Tokenizer

TOKENIZERS_KEPT: Final = 8
"""How many tokenizers' bytes are remembered."""

# Tokenizers need not be hashable; an id is one's own as long as the object is kept.
_kept: dict[tuple[int, int], tuple[object, _core.TokenBytes]] = {}


def token_bytes(tokenizer: Any) -> _core.TokenBytes:
    """The bytes of every token; special tokens have none. Remembered for the newest tokenizers.

    Args:
        tokenizer: ours, a `tiktoken.Encoding`, a byte-level tokenizer of transformers or
            tokenizers, or any object whose method `token_bytes()` gives the bytes of token 0, 1,
            2, ..., b"" for a special one.

    Raises:
        ConfigError: it is something else.
    """
    # A transformers tokenizer may have got new tokens since.
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else -1
    key = (id(tokenizer), size)
    if (kept := _kept.get(key)) is not None:
        return kept[1]
    found = _read(tokenizer)
    while len(_kept) >= TOKENIZERS_KEPT:
        _kept.pop(next(iter(_kept), key), None)
    _kept[key] = (tokenizer, found)
    return found


def _read(tokenizer: Any) -> _core.TokenBytes:
    if isinstance(tokenizer, Tokenizer):
        return _core.TokenBytes.of_tokenizer(tokenizer._core)
    if hasattr(tokenizer, "token_bytes"):
        return _core.TokenBytes([*tokenizer.token_bytes()])
    if hasattr(tokenizer, "decode_single_token_bytes"):
        return _core.TokenBytes(_of_tiktoken(tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        return _core.TokenBytes(_of_tokenizers(tokenizer, json.loads(backend.to_str())))
    raise ConfigError(
        "regex, choices and stop strings need the bytes of every token: give a tokenizer of gptrs, "
        "tiktoken or transformers, or one whose method token_bytes() lists them (b'' for special "
        f"tokens); found {tokenizer!r}"
    )


def _of_tiktoken(encoding: Any) -> list[bytes]:
    special = {encoding.encode_single_token(token) for token in encoding.special_tokens_set}

    def bytes_of(token_id: int) -> bytes:
        try:
            token: bytes = encoding.decode_single_token_bytes(token_id)
        except KeyError:  # Some encodings have gaps before their special tokens.
            return b""
        return b"" if token_id in special else token

    return [bytes_of(token_id) for token_id in range(encoding.n_vocab)]


def _of_tokenizers(tokenizer: Any, description: dict[str, Any]) -> list[bytes]:
    """The tokens of a `tokenizer.json`, if they are written in GPT-2's letters for bytes."""
    decoder = description.get("decoder") or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
    if "ByteLevel" not in kinds:
        raise ConfigError(
            "regex, choices and stop strings need a byte-level tokenizer; the decoder of "
            f"{type(tokenizer).__name__} is {decoder.get('type')}, not ByteLevel"
        )
    byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
    tokens = {
        token_id: bytes(byte_of[letter] for letter in token)
        for token, token_id in description["model"]["vocab"].items()
        if byte_of.keys() >= set(token)
    }
    for added in description.get("added_tokens", []):
        tokens[added["id"]] = b"" if added["special"] else added["content"].encode()
    return [tokens.get(token_id, b"") for token_id in range(max(tokens, default=-1) + 1)]


def _byte_letters() -> list[str]:
    """The letter in which GPT-2's vocabulary files write each byte."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(0x100)]
