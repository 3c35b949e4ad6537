"""Documents to one row of tokens, and what tokens weigh: bytes, and what a model has to beat.

documents ─► tokenizer ─► ids, an end-of-text after each ─► one array
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptrs.text.given_tokenizer import end_of_text_id
from gptrs.text.reading import read_text

Tokens = NDArray[np.integer[Any]]
# So much text is encoded together: enough for many threads, little beside the tokens.
BATCH_CHARS = 1 << 25


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


def unigram_loss(counts: Tokens, tokens: Tokens) -> float:
    """Nats per token of a model that ignores context: the counts, plus one each.

    A network that has learned nothing but how common each token is gets this loss.

    Args:
        counts: how often each id is in what the model learned from, [V].
        tokens: what it is validated on.
    """
    smoothed = counts.astype(np.int64) + 1
    log_probs = np.log(smoothed) - math.log(smoothed.sum())
    return float(-log_probs[tokens].mean())


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
