"""A classifier's texts as ids: which tokenizer, how many tokens, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, DataError
from gptrs.sampling.requests import count
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.prompts import PromptReader
from gptrs.text.tokenizer import Tokenizer
from gptrs.weights.pretrained import tokenizer_beside


def as_texts(texts: Iterable[str]) -> list[str]:
    """Texts as a list; `token_rows` looks at each.

    Raises:
        DataError: this is one text, or none at all.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise DataError(f"texts are several strs, such as a list of them; found {texts!r}")
    return list(texts)


def token_rows(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[list[Tensor], int]:
    """The ids of each text, int64 [T], and how many texts were cut to their first `max_length`.

    Special tokens in a text are ordinary text.

    Raises:
        DataError: a text is not a str, or has no tokens.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {number} is {text!r} ({type(text).__name__}); it must be a str")
        if not text:
            raise DataError(f"text {number} is empty: there is nothing to classify")
    if isinstance(tokenizer, Tokenizer):
        ids, ends = tokenizer.encode_batch_to_numpy(texts, disallowed_special=())
        all_ids = torch.from_numpy(ids.astype(np.int64))
        rows = list(all_ids.split((ends[1:] - ends[:-1]).tolist()))
    else:
        encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
        rows = [torch.tensor(encode(text), dtype=torch.int64) for text in texts]
    for number, row in enumerate(rows):
        if not len(row):
            raise DataError(f"text {number}, {texts[number]!r}, has no tokens")
    num_cut = sum(len(row) > max_length for row in rows)
    return [row[:max_length] for row in rows], num_cut


def tokenizer_for(tokenizer: Any, model: object, cfg: GPTConfig) -> Any:
    """The tokenizer that is meant, or the one beside the model's path, or GPT-2's.

    Args:
        tokenizer: one, a name or path of one, or None.
        model: as it was given: a path, or the model itself.
    Raises:
        ConfigError: it has ids that the model does not know, or cannot encode and decode.
        TokenizerError: there is none of this name.
    """
    if tokenizer is None and isinstance(model, str | os.PathLike):
        tokenizer = tokenizer_beside(Path(model))
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        tokenizer = get_tokenizer("gpt2" if tokenizer is None else tokenizer)
    known = PromptReader(tokenizer).n_vocab
    if known is not None and known > cfg.vocab_size:
        raise ConfigError(
            f"the model has vocab_size {cfg.vocab_size}, and the tokenizer has {known} ids: "
            f"{tokenizer!r}; give the model's own as tokenizer="
        )
    return tokenizer


def max_length_for(asked: int | None, cfg: GPTConfig) -> int:
    """Most tokens of a text that are read: as asked, or the model's context.

    Raises:
        ConfigError: fewer than 1, or more than the model takes.
    """
    if asked is None:
        return cfg.context_length
    length = count("max_length", asked, 1)
    if cfg.max_tokens is not None and length > cfg.max_tokens:
        raise ConfigError(
            f"max_length is {length}, and the model takes {cfg.max_tokens} tokens at most"
        )
    return length
