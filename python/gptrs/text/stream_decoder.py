"""`StreamDecoder`: ids in, text out as soon as it is whole. A character split over tokens waits."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptrs.text.encoding_arguments import SupportsToList


class StreamDecoder:
    """Decodes ids as they come. All pieces joined are what `tokenizer.decode` gives at once.

    >>> from gptrs.text.named_tokenizers import get_tokenizer
    >>> tokenizer = get_tokenizer("gpt2")
    >>> decoder = StreamDecoder(tokenizer)
    >>> [decoder.push(id) for id in tokenizer.encode("Hi 🤖!")]
    ['Hi', ' ', '', '🤖', '!']
    >>> decoder.finish()
    ''

    Args:
        tokenizer: ours, a `tiktoken.Encoding`, or any with `decode_bytes`. With only a `decode`,
            each push is decoded by itself.
        errors: as for `bytes.decode`: what to do with bytes that make no character.
    """

    def __init__(self, tokenizer: Any, errors: str = "replace") -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, ids: int | Iterable[int] | SupportsToList) -> str:
        """The text that `ids`, one or several, complete.

        Raises:
            TokenIdError: an id is outside the vocabulary (of a tokenizer of ours).
            UnicodeDecodeError: errors is "strict", and no character begins with these bytes.
        """
        items: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        tokens = [items] if isinstance(items, int) else list(items)
        if not hasattr(self._tokenizer, "decode_bytes"):
            text: str = self._tokenizer.decode(tokens)
            return text
        return self._utf8.decode(self._tokenizer.decode_bytes(tokens))

    def finish(self) -> str:
        """What is left of a character that never became whole; then the next text may come.

        Raises:
            UnicodeDecodeError: errors is "strict", and there is such a rest.
        """
        try:
            return self._utf8.decode(b"", final=True)
        finally:
            self._utf8.reset()
