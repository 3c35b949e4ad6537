"""Tokens to train and validate on: the split, the batches, and what a model has to beat.

tokens    0 1 2 3 4 5 6 7 8 9 | 10 11          validation: the last tenth, in order
epoch 0   [0 1 2 3][4 5 6 7]                   windows of 4, end to end, shuffled
epoch 1     [1 2 3 4][5 6 7 8]                 from another first token, shuffled anew
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gptrs.data import GPTDatasetV1
from gptrs.errors import DataError, TokenIdError
from gptrs.text import read_text
from gptrs.tokenizer import end_of_text_id

Tokens = NDArray[np.integer[Any]]
Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64 [B, T] each."""
# So much text is encoded together: enough for many threads, little beside the tokens.
BATCH_CHARS = 1 << 25


class Split(NamedTuple):
    """One token stream in two parts; views of it, not copies."""

    train: Tokens
    validation: Tokens


def tokenize_documents(texts: Iterable[str], tokenizer: Any) -> Tokens:
    """The tokens of all texts, one end-of-text after each; empty texts are left out.

    A tokenizer without `<|endoftext|>` puts nothing there: the texts follow each other directly.
    `<|endoftext|>` in a text is split like any other text: data cannot forge a boundary.

    Args:
        tokenizer: ours or a `tiktoken.Encoding`.
    Returns:
        uint16 [N] where the vocabulary allows, else uint32.
    """
    if hasattr(tokenizer, "encode_batch_to_numpy"):
        return _joined(chain.from_iterable(_encode_batches(texts, tokenizer)), tokenizer)
    documents = (tokenizer.encode_to_numpy(text, disallowed_special=()) for text in texts)
    return _joined(documents, tokenizer)


def tokenize_files(files: Iterable[Path], tokenizer: Any) -> Tokens:
    """What `tokenize_documents` gives for the texts of UTF-8 files; each file is one document.

    Raises:
        SourceError: a file cannot be read, or is not UTF-8.
        TokenizerError: a file has a character that the tokenizer does not know.
    """
    if not hasattr(tokenizer, "encode_file"):
        return tokenize_documents(map(read_text, files), tokenizer)
    documents = (tokenizer.encode_file(file, disallowed_special=()) for file in files)
    return _joined(documents, tokenizer)


def _encode_batches(texts: Iterable[str], tokenizer: Any) -> Iterator[list[Tokens]]:
    """Each document's tokens, for one batch of documents after another."""
    batch: list[str] = []
    room = BATCH_CHARS
    for text in chain(texts, [None]):
        if text is not None:
            batch.append(text)
            room -= len(text)
        if batch and (text is None or room <= 0):
            ids, offsets = tokenizer.encode_batch_to_numpy(batch, disallowed_special=())
            yield np.split(ids, offsets[1:-1])
            batch, room = [], BATCH_CHARS


def _joined(documents: Iterable[Tokens], tokenizer: Any) -> Tokens:
    """The documents that have tokens, an end-of-text after each."""
    dtype = np.uint16 if tokenizer.n_vocab <= np.iinfo(np.uint16).max + 1 else np.uint32
    end_of_text = end_of_text_id(tokenizer)
    end = np.array([] if end_of_text is None else [end_of_text], dtype=dtype)
    parts = [np.empty(0, dtype=dtype)]
    for ids in documents:
        if len(ids):
            parts += [ids.astype(dtype, copy=False), end]
    return np.concatenate(parts)


def split_tokens(
    tokens: Tokens, *, validation_fraction: float, context_length: int, vocab_size: int
) -> Split:
    """The last `validation_fraction` of `tokens` to validate on, the rest to train on, in order.

    Raises:
        DataError: a part is shorter than one window, context_length + 1 tokens.
        TokenIdError: a token id is outside the vocabulary.
    """
    num_validation = math.ceil(len(tokens) * validation_fraction)
    split = Split(tokens[: len(tokens) - num_validation], tokens[len(tokens) - num_validation :])
    for name, part in zip(split._fields, split, strict=True):
        if len(part) <= context_length:
            raise DataError(
                f"{name} has {len(part):,} of {len(tokens):,} tokens; a window of context_length "
                f"{context_length} needs {context_length + 1:,}: more text, or a shorter context"
            )
    if (largest := int(tokens.max())) >= vocab_size:
        position = int(tokens.argmax())
        raise TokenIdError(f"token id {largest} at {position} is outside 0..{vocab_size - 1}")
    return split


def training_batches(
    tokens: Tokens, *, batch_size: int, context_length: int, seed: int
) -> Iterator[Batch]:
    """Shuffled batches without end; each epoch's windows lie end to end, from another first token.

    Where an epoch is less than one batch, windows of several epochs share it.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    windows = GPTDatasetV1.from_tokens(tokens, context_length, stride=1)
    waiting = np.empty(0, dtype=np.int64)
    while True:
        first = int(generator.integers(min(context_length, len(windows))))
        epoch = np.arange(first, len(windows), context_length)
        waiting = np.concatenate([waiting, generator.permutation(epoch)])
        while len(waiting) >= batch_size:
            yield windows.fill(waiting[:batch_size])
            waiting = waiting[batch_size:]


def validation_batches(
    tokens: Tokens, *, batch_size: int, context_length: int, max_tokens: int
) -> list[Batch]:
    """The first `max_tokens` (one window at least) in windows end to end; always the same."""
    windows = GPTDatasetV1.from_tokens(tokens, context_length, stride=context_length)
    num_windows = min(len(windows), max(1, max_tokens // context_length))
    return [
        windows.fill(range(start, min(start + batch_size, num_windows)))
        for start in range(0, num_windows, batch_size)
    ]


def unigram_loss(split: Split, *, vocab_size: int) -> float:
    """Nats per validation token of a model that ignores context: training counts, plus one each.

    A network that has learned nothing but how common each token is gets this loss.
    """
    counts = np.bincount(split.train, minlength=vocab_size) + 1
    log_probs = np.log(counts) - math.log(counts.sum())
    return float(-log_probs[split.validation].mean())


def bytes_per_token(tokens: Tokens, tokenizer: Any) -> float:
    """How many UTF-8 bytes of text one token stands for, on average."""
    ids = tokens.tolist()
    if hasattr(tokenizer, "decode_bytes"):
        num_bytes = len(tokenizer.decode_bytes(ids))
    else:
        num_bytes = len(tokenizer.decode(ids).encode("utf-8"))
    return num_bytes / len(ids)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """`loss`, in nats per token, as bits per byte of text: comparable between tokenizers."""
    return loss / math.log(2) / bytes_per_token
