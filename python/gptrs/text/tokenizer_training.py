"""`train_tokenizer`: a vocabulary learned from files, by the core."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from gptrs import _core
from gptrs.errors import ConfigError
from gptrs.text.tokenizer import END_OF_TEXT, Tokenizer, named


def train_tokenizer(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    vocab_size: int | None = None,
    *,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    kind: Literal["bpe", "char"] = "bpe",
    threads: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Tokenizer:
    """Learns a tokenizer from UTF-8 files; the same files give the same tokenizer.

    "bpe" splits with GPT-2's pattern and merges the most frequent pair, again and again; of equals
    the one with the lower ids. "char" has the text's characters, sorted.

    Args:
        vocab_size: the number of ids, at most 65,536: for "bpe" the 256 bytes, the merges and the
            special tokens, and needed; for "char" an upper bound, or None.
        special_tokens: the last ids, in this order; no whitespace in them. Written in a text, they
            end a document: nothing is learned from them.
        threads: how many threads count words; None is one for each processor.
        on_progress: called with the number of merges so far, several times a second.

    Raises:
        ConfigError: vocab_size is too small or too large for the special tokens, or kind is none.
        SourceError: a file cannot be read, or is not UTF-8.
        TokenizerError: the text supports no such vocabulary, or these are no special tokens.
    """
    several = [files] if isinstance(files, (str, os.PathLike)) else files
    paths = [Path(path) for path in several]
    if isinstance(special_tokens, str):
        raise TypeError(f"special_tokens must be a sequence of str, found {special_tokens!r}")
    if vocab_size is not None and vocab_size < 1:
        raise ConfigError(f"vocab_size is at least 1, found {vocab_size}")
    special = list(special_tokens)
    if kind == "char":
        return named(_core.train_char(paths, vocab_size, special))
    if kind != "bpe":
        raise ConfigError(f'kind is "bpe" or "char", found {kind!r}')
    if vocab_size is None:
        raise ConfigError('kind "bpe" needs a vocab_size: 4096 suits some megabytes of text')
    return named(
        _core.train_bpe(paths, vocab_size, special, threads=threads, on_progress=on_progress)
    )
