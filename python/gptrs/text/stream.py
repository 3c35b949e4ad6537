"""Text of a sequence as it grows: whole characters only, whatever the tokenizer.

ids ──► StreamDecoder   tokenizers that know each token's bytes
    └─► DecodedStream   tokenizers with a `decode` only
bytes ─► BytesStream    what stop strings let out
"""

from __future__ import annotations

import codecs
from typing import Any, Protocol

from gptrs.text.stream_decoder import StreamDecoder

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that make no character, or none yet."""


class TextStream(Protocol):
    """Takes ids or bytes as they come, gives text that is whole."""

    def push(self, item: Any, /) -> str:
        """The text that became whole."""
        ...

    def finish(self) -> str:
        """What never became whole, as the tokenizer writes it."""
        ...


def text_stream(tokenizer: Any, *, of_bytes: bool = False) -> TextStream:
    """A stream over ids, or over bytes of UTF-8."""
    if of_bytes:
        return BytesStream()
    if hasattr(tokenizer, "decode_bytes"):
        return StreamDecoder(tokenizer)
    return DecodedStream(tokenizer)


class BytesStream:
    """Bytes of UTF-8 in, whole characters out."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: bytes, /) -> str:
        """The characters that `piece` completes."""
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", final=True)


class DecodedStream:
    """Ids in, text out, by decoding the newest ids together with the ones just before.

    Some tokenizers write a token differently after others (a leading space, say), so a piece is
    what the newest ids add to the text of those before. Text that ends in U+FFFD waits: the rest of
    the character may come.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        """Those whose text is out, as far as they matter, then those that wait."""
        self._num_out = 0

    def push(self, token_id: int, /) -> str:
        """The text that `token_id` completes."""
        self._ids.append(token_id)
        piece = self._waiting()
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        del self._ids[: self._num_out]
        self._num_out = len(self._ids)
        return piece

    def finish(self) -> str:
        """What still waits."""
        return self._waiting()

    def _waiting(self) -> str:
        before: str = self._tokenizer.decode(self._ids[: self._num_out])
        text: str = self._tokenizer.decode(self._ids)
        return text[len(before) :]
