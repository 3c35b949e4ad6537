"""What tiktoken's encodings have besides encoding and decoding one text: batches, single tokens.

A base class of `Tokenizer`, made of what that has. Results and errors are tiktoken's.
"""

from __future__ import annotations

from itertools import pairwise

# What is imported here, every command waits for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


class TiktokenNames:
    """Methods of `tiktoken.Encoding`, for a class with `encode`, `decode` and their like."""

    __slots__ = ()

    def encode_batch(
        self: Any,
        text: Sequence[str],
        *,
        num_threads: int | None = None,
        allowed_special: Any = frozenset(),
        disallowed_special: Any = "all",
    ) -> list[list[int]]:
        """The ids of each text, as `encode` gives them; `encode_batch_to_numpy` makes no lists.

        Args:
            num_threads: how many threads share the texts; None is one for each processor.
        """
        ids, offsets = self.encode_batch_to_numpy(
            text,
            allowed_special=allowed_special,
            disallowed_special=disallowed_special,
            threads=num_threads,
        )
        items, ends = ids.tolist(), offsets.tolist()
        return [items[start:end] for start, end in pairwise(ends)]

    def encode_ordinary_batch(
        self, text: Sequence[str], *, num_threads: int | None = None
    ) -> list[list[int]]:
        """The ids of each text, in which no special token is special."""
        return self.encode_batch(text, num_threads=num_threads, disallowed_special=())

    def decode_batch(
        self: Any, batch: Iterable[Iterable[int]], *, errors: str = "replace"
    ) -> list[str]:
        """The text of each list of ids, as `decode` gives it."""
        return [self.decode(ids, errors) for ids in batch]

    def encode_single_token(self: Any, text_or_bytes: str | bytes) -> int:
        """The id of a token, special or not, by its text or its bytes.

        Raises:
            KeyError: no token is this.
        """
        content = text_or_bytes.encode() if isinstance(text_or_bytes, str) else text_or_bytes
        # A token that is a text is that text's one id, nearly always. Bytes have to be looked for.
        ids = self.encode(content.decode(errors="replace"), allowed_special="all")
        for token in (*ids[:1], *range(self.n_vocab)):
            if self.decode_bytes([token]) == content:
                return int(token)
        raise KeyError(text_or_bytes)

    def decode_single_token_bytes(self: Any, token: int) -> bytes:
        """The bytes of a token, special or not.

        Raises:
            KeyError: there is no such id.
        """
        if not 0 <= token < self.n_vocab:
            raise KeyError(token)
        content: bytes = self.decode_bytes([token])
        return content

    def decode_tokens_bytes(self, tokens: Iterable[int]) -> list[bytes]:
        """The bytes of each token, to see how a text was cut."""
        return [self.decode_single_token_bytes(token) for token in tokens]

    def is_special_token(self: Any, token: int) -> bool:
        """Whether this is the id of a special token: they are the last."""
        first: int = self.n_vocab - len(self.special_tokens_set)
        return first <= token < first + len(self.special_tokens_set)
