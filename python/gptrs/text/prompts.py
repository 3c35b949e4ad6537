"""Prompts as callers give them, as ids: a text, ids in any container, or many of these."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from gptrs.errors import GenerationError
from gptrs.text.given_tokenizer import check_tokenizer, end_of_text_id
from gptrs.text.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from gptrs.text.encoding_arguments import SupportsToList

    Prompt = str | Sequence[int] | SupportsToList


class PromptReader:
    """Turns prompts into ids with a tokenizer: ours, tiktoken's, transformers', any with `encode`.

    Attributes:
        end_of_text: the id that ends a text; None if the tokenizer has none.
        n_vocab: how many ids the tokenizer has; None if it does not say.
    Raises:
        ConfigError: the tokenizer cannot encode and decode.
    """

    def __init__(self, tokenizer: Any) -> None:
        check_tokenizer(tokenizer, "encode", "decode")
        self.tokenizer = tokenizer
        self.end_of_text = _end_of_text(tokenizer)
        self.n_vocab = _n_vocab(tokenizer)
        parameters = inspect.signature(tokenizer.encode).parameters
        # tiktoken's name, and ours. transformers' tokenizers know their special tokens anyway.
        self._options = (
            {"allowed_special": {END_OF_TEXT}} if "allowed_special" in parameters else {}
        )

    def many(self, prompts: Any) -> list[list[int]]:
        """The ids of one prompt or of many."""
        rows = prompts if has_many(prompts) else [prompts]
        return [self.ids(row, number) for number, row in enumerate(rows)]

    def ids(self, prompt: Any, number: int = 0) -> list[int]:
        """The ids of prompt `number`.

        Raises:
            GenerationError: it has none, or is neither a text nor a sequence of ids.
        """
        if isinstance(prompt, str):
            ids: list[int] = list(self.tokenizer.encode(prompt, **self._options))
        else:
            ids = _listed(prompt)
            if not all(map(_is_id, ids)):
                raise GenerationError(
                    f"a prompt is a text or a sequence of ids, found {prompt!r} as prompt {number}"
                )
        if not ids:
            raise GenerationError(
                f"prompt {number} has no tokens: at least one is needed to go on from"
            )
        return ids


def has_many(prompts: Any) -> bool:
    """Whether this is a list of prompts, not a text or one prompt's ids.

    Raises:
        GenerationError: it is neither.
    """
    if isinstance(prompts, str):
        return False
    if hasattr(prompts, "ndim"):
        return bool(prompts.ndim > 1)
    try:
        return len(prompts) == 0 or not _is_id(prompts[0])
    except (TypeError, KeyError):
        raise GenerationError(
            f"prompts are a text, a sequence of ids, or a list of these; found {prompts!r}"
        ) from None


def _n_vocab(tokenizer: Any) -> int | None:
    """How many ids a tokenizer has; None if it does not say."""
    found: int | None = getattr(tokenizer, "n_vocab", None)
    if found is None and hasattr(tokenizer, "get_vocab"):
        found = len(tokenizer)
    return found


def known_ids(tokenizer: Any) -> range:
    """The tokenizer's ids: a model's vocabulary may be filled up beyond. All, if it does not say.

    To be asked once for many ids: some tokenizers count their whole vocabulary.
    """
    n_vocab = _n_vocab(tokenizer)
    return range(sys.maxsize if n_vocab is None else n_vocab)


def _listed(ids: Any) -> list[Any]:
    """The items of any container; of what is none, itself."""
    try:
        items = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    except TypeError:
        items = ids
    return items if isinstance(items, list) else [items]


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _end_of_text(tokenizer: Any) -> int | None:
    found = end_of_text_id(tokenizer)
    # transformers' name.
    return getattr(tokenizer, "eos_token_id", None) if found is None else found
