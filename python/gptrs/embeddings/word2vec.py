"""`train_word2vec`: a vector for every word of a text, or every token, learned by the core.

    files ─► lines ─► words  ─┐
    store ─► documents ─► ids ┴─► skip-gram or CBOW, negative sampling ─► WordVectors

Word2Vec (Mikolov et al., 2013) is where embeddings became everyday: words that occur among the same
words get similar vectors. A GPT's token embeddings can start with them. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from gptrs import _core
from gptrs.embeddings.word_vectors import WordVectors
from gptrs.errors import ConfigError, DataError
from gptrs.store.inputs import InputFormat, find_inputs
from gptrs.store.token_store import TokenStore
from gptrs.text.named_tokenizers import own_tokenizer
from gptrs.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tiktoken

OnProgress = Callable[[str, int, int], object]
"""Is given "counting" or "training", how much is done, and how much there is."""

WRITTEN: Final = {" ": "Ġ", "\n": "Ċ", "\r": "č", "\t": "ĉ"}
"""How names of tokens have whitespace: GPT-2's own vocabulary file has these letters for it."""


def train_word2vec(
    inputs: Any,
    *,
    tokenizer: str | os.PathLike[str] | Tokenizer | tiktoken.Encoding | None = None,
    pattern: str | None = None,
    lower: bool = False,
    algorithm: Literal["skip-gram", "cbow"] = "skip-gram",
    vector_size: int = 100,
    window: int = 5,
    negative: int = 5,
    epochs: int = 5,
    alpha: float = 0.025,
    min_alpha: float = 0.0001,
    sample: float = 1e-3,
    cbow_mean: bool = True,
    min_count: int = 5,
    max_vocab: int | None = None,
    seed: int = 1,
    threads: int | None = None,
    text_key: str = "text",
    input_format: InputFormat = "auto",
    errors: Literal["strict", "replace"] = "strict",
    progress: bool = False,
    on_progress: OnProgress | None = None,
) -> WordVectors:
    r"""Learns vectors of words, or of tokens, by skip-gram or CBOW with negative sampling.

    A line is a sentence, and no window crosses its end; a text of JSON Lines has as many as it has
    lines, a document of a store is one. The corpus is read anew each epoch and never kept: memory
    holds the vocabulary, and two float32 numbers for each of the result.

    One thread with the same corpus, settings and seed gives the same vectors on every machine.
    Threads share the vectors without locks, so that with several of them results differ in detail.

    Args:
        inputs: what `build_store` takes, as long as it can be read again: files, folders, patterns.
            Or a token store, open or its folder, whose ids get a vector each.
        tokenizer: learns vectors of the tokens that it makes of a line, not of words: for scripts
            without spaces. What `get_tokenizer` takes, or a tokenizer.
        pattern: words are what this matches; None splits at whitespace. A regular expression as
            Python has them, without look-around, references and a Unicode `\b`.
        lower: put the text in lower case first.
        algorithm: "skip-gram" predicts a word from each one around it, "cbow" from their sum.
        vector_size: the columns. 2 can be drawn as they are.
        window: the most words on each side that a word is predicted from; each time a random number
            of up to so many.
        negative: how many random words each right one is told from.
        epochs: how often the corpus is read.
        alpha, min_alpha: the learning rate, which falls evenly from one to the other.
        sample: words with a larger share of the text are left out now and then; 0 leaves out none.
        cbow_mean: whether "cbow" takes the mean, not the sum.
        min_count: words that occur less often get no vector, and are no neighbours.
        max_vocab: the most words with a vector: the most frequent.
        seed: what the random numbers come from.
        threads: how many threads learn; None is one for each processor.
        text_key, input_format, errors: as of `build_store`.
        progress: whether to show a progress bar.
        on_progress: called several times a second.

    Returns:
        The vectors, the most frequent word first. A token's word is its text; blanks and line ends
        in it are written Ġ, Ċ, č and ĉ as in GPT-2's vocabulary, what is no character by itself
        as `<0xE4>`.

    Raises:
        ConfigError: a setting makes no sense.
        DataError: no word occurs `min_count` times.
        SourceError: an input cannot be read, or can be read once only.
        StoreError: the store cannot be read.
        TokenizerError: there is no such tokenizer.
    """
    if algorithm not in ("skip-gram", "cbow"):
        raise ConfigError(f'algorithm is "skip-gram" or "cbow", found {algorithm!r}')
    if errors not in ("strict", "replace"):
        raise ConfigError(f'errors is "strict" or "replace", found {errors!r}')
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed is 0 to 2**64 - 1, found {seed}")
    store = _as_store(inputs, tokenizer)
    own = None if tokenizer is None or store is not None else own_tokenizer(tokenizer)
    learns_tokens = store is not None or own is not None
    if learns_tokens and (pattern is not None or lower):
        raise ConfigError("pattern and lower are for words: tokens are what the tokenizer makes")
    sources = [] if store is not None else find_inputs(inputs, input_format)
    with _progress_bars(progress) as show:

        def report(phase: str, done: int, total: int) -> None:
            show(phase, done, total)
            if on_progress is not None:
                on_progress(phase, done, total)

        words, counts, vectors = _core.train_word2vec(
            [(source.kind, source.name) for source in sources],
            None if store is None else store._core,
            None if own is None else own._core,
            text_key=text_key,
            replace_invalid=errors == "replace",
            pattern=pattern,
            lower=lower,
            cbow=algorithm == "cbow",
            cbow_mean=cbow_mean,
            vector_size=vector_size,
            window=window,
            negative=negative,
            epochs=epochs,
            alpha=alpha,
            min_alpha=min_alpha,
            sample=sample,
            min_count=min_count,
            max_vocab=max_vocab,
            seed=seed,
            threads=threads,
            on_progress=report,
        )
        report("training", total := epochs * int(counts.sum()), total)
    if isinstance(words, np.ndarray):
        words = token_names(store.tokenizer if store is not None else own, words.tolist())
    return WordVectors(words, vectors, counts)


def token_names(tokenizer: Any, ids: list[int]) -> list[str]:
    """What tokens are called in a file of vectors: names without blanks, no two of them the same.

    >>> token_names(get_tokenizer("gpt2"), [262, 198, 5641])
    ['Ġthe', 'Ċ', 'but']

    Args:
        tokenizer: whose ids they are; it has `decode_bytes`.
    """
    tokens = [tokenizer.decode_bytes([token]) for token in ids]
    names = [_name(token) for token in tokens]
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
        if row_of.setdefault(name, row) != row:  # Another's text has one of our letters in it.
            names[row] = "".join(f"<0x{byte:02X}>" for byte in tokens[row])
    if len(set(names)) < len(names):
        raise DataError("two tokens of this tokenizer have the same text")
    return names


def _name(token: bytes) -> str:
    # A byte that is no part of a character becomes a lone surrogate.
    return "".join(map(_written, token.decode("utf-8", "surrogateescape")))


def _written(char: str) -> str:
    if char in WRITTEN:
        return WRITTEN[char]
    if char.isprintable():
        return char
    return "".join(f"<0x{byte:02X}>" for byte in char.encode("utf-8", "surrogateescape"))


def _as_store(inputs: Any, tokenizer: Any) -> TokenStore | None:
    """The store that `inputs` is or names, if it does."""
    if isinstance(inputs, (list, tuple)) and len(inputs) == 1:
        inputs = inputs[0]
    if isinstance(inputs, TokenStore):
        return inputs
    if isinstance(inputs, (str, os.PathLike)) and Path(inputs, "manifest.json").is_file():
        return TokenStore.open(inputs, tokenizer)
    return None


@contextmanager
def _progress_bars(shown: bool) -> Iterator[OnProgress]:
    """What is to be called with how much is done; it shows a bar for each phase, or nothing."""
    if not shown:
        yield lambda phase, done, total: None
        return
    from tqdm.auto import tqdm

    bars: dict[str, tqdm[Any]] = {}

    def show(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            for bar in bars.values():
                bar.update((bar.total or 0) - bar.n)
                bar.close()
            unit = {"counting": "B", "training": " words"}[phase]
            bars[phase] = tqdm(desc=phase, total=total, unit=unit, unit_scale=True, delay=0.2)
        bars[phase].update(done - bars[phase].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
