"""What callers give as a tokenizer, ours or another's."""

from __future__ import annotations

from typing import Any

from gptrs.errors import ConfigError


def check_tokenizer(tokenizer: object, *methods: str) -> None:
    """Raises ConfigError unless `tokenizer` has these methods.

    A name in its place is a frequent slip, and a str has an `encode` of its own.
    """
    has_all = all(callable(getattr(tokenizer, method, None)) for method in methods)
    if has_all and not isinstance(tokenizer, str):
        return
    hint = 'such are gptrs.get_tokenizer("gpt2") and tiktoken.get_encoding("gpt2")'
    if isinstance(tokenizer, str):
        hint = f"that is a str; the object is gptrs.get_tokenizer({tokenizer!r})"
        if tokenizer == "gpt2":
            hint += " or tiktoken.get_encoding('gpt2')"
    raise ConfigError(f"a tokenizer has {' and '.join(methods)}; found {tokenizer!r}: {hint}")


def end_of_text_id(tokenizer: Any) -> int | None:
    """The id of `<|endoftext|>` in a tokenizer, ours or another's; None if it has none."""
    try:
        token_id: int | None = tokenizer.eot_token
    except (AttributeError, KeyError):  # The second is tiktoken's.
        return None
    return token_id
