"""Vectors of words, from word2vec, GloVe or `train_word2vec`, as a GPT's first token embeddings.

    words, vectors ─► matched by the tokens' text ─► projected to emb_dim ─► tok_emb.weight
                      the rest: drawn from the matched ones' mean and deviation

A token is matched by its text, or by that without the space before it: " the" is the word "the".
"""

# Tensor names end in their shape: V vocab_size, N matched tokens or words, C columns of the
# vectors, D emb_dim.

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.embeddings.vector_projection import Project, Projection, Vectors
from gptrs.embeddings.word2vec import token_names
from gptrs.embeddings.word_vectors import WordVectors
from gptrs.errors import ConfigError, DataError
from gptrs.model.gpt import GPTModel
from gptrs.text.prompts import PromptReader
from gptrs.text.tokenizer import Tokenizer

_WORDS_TOGETHER = 1 << 15
"""How many words are cut into tokens at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Where each token's vector came from."""

    num_tokens: int
    """All of the vocabulary."""
    exact: int
    """Tokens whose text, or name in a file of token vectors, has a vector."""
    without_space: int
    """Tokens whose text has one without the space before it."""
    lower: int
    """Tokens whose text has one in lower case only."""
    averaged: int
    """Tokens that got the mean of the words they are a piece of."""
    projection: str
    """How the vectors got to emb_dim columns."""
    explained: float | None
    """The share of the vectors' variance that PCA kept; None without PCA."""
    std: float
    """The standard deviation of the numbers that the matched tokens now have."""

    @property
    def matched(self) -> int:
        """Tokens that got a vector, however they got it."""
        return self.exact + self.without_space + self.lower + self.averaged

    @property
    def share(self) -> float:
        """`matched` as a share of all tokens."""
        return self.matched / self.num_tokens

    def __str__(self) -> str:
        ways = {
            "by their text": self.exact,
            "without the space before it": self.without_space,
            "in lower case": self.lower,
            "as pieces of words": self.averaged,
        }
        listed = ", ".join(f"{number:,} {way}" for way, number in ways.items() if number)
        return (
            f"{self.matched:,} of {self.num_tokens:,} tokens ({self.share:.1%}) have a vector: "
            f"{listed}; {self.num_tokens - self.matched:,} are drawn. {self.projection}"
        )


class ProjectedEmbedding(nn.Embedding):
    """Vectors of C columns, and a matrix, learned with the model, that makes D of them.

    Attributes:
        weight: [V, C].
        projection: [D, C], first a random orthonormal one.
    """

    def __init__(self, weight_VC: Tensor, projection_DC: Tensor) -> None:
        super().__init__(len(weight_VC), weight_VC.shape[1], device="meta")
        self.weight = nn.Parameter(weight_VC)
        self.projection = nn.Parameter(projection_DC)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Embedding's name
        """Ids [...] to vectors [..., D]."""
        return F.linear(super().forward(input), self.projection)


def load_token_vectors(
    model: GPTModel,
    tokenizer: Any,
    vectors: WordVectors | str | os.PathLike[str],
    *,
    lower: bool = False,
    average_pieces: bool = False,
    freeze: bool = False,
    project: Project | None = "pca",
    std: float | None = None,
    seed: int = 0,
) -> Coverage:
    """Writes vectors of words into `model.tok_emb`, in place; what no word matches is drawn.

    In a tied model they are the output layer's too: the model starts with the opinion that a token
    follows where its vector points. Its embeddings are 0.02 wide, a file's vectors some ten times
    that, and so are the first logits: give std=0.02 there. `freeze` freezes both.

    Args:
        vectors: or the file of word2vec, GloVe or fastText to read.
        lower: a token without a vector takes that of its text in lower case.
        average_pieces: a token that is a piece of words, and none itself, takes the mean of theirs.
        freeze: the vectors do not learn; with "learned", the projection still does.
        project: to emb_dim, where the vectors have another number of columns. "pca": the directions
            in which the matched vectors differ most; where they have fewer, a random orthonormal
            map, which keeps every length and angle. "learned": the vectors stay as they are, and
            a matrix behind them learns: see `fold_projection`. None: such vectors are refused.
        std: the vectors are scaled so that their numbers have this standard deviation; None: as
            they are.
        seed: of what is drawn.
    Raises:
        SourceError: the file cannot be read.
        DataError: no token has a vector.
        ConfigError: an impossible option, other columns than emb_dim and project=None, "learned"
            with a tied model, or a tokenizer with other ids than the model. The model is unchanged.
    """
    if project not in ("pca", "learned", None):
        raise ConfigError(f'project is "pca", "learned" or None, found {project!r}')
    if std is not None and not 0 < std < np.inf:
        raise ConfigError(f"std is above 0, found {std}")
    if type(model.tok_emb) is not nn.Embedding:
        raise ConfigError(f"tok_emb is a {type(model.tok_emb).__name__}: fold_projection first")
    words = vectors if isinstance(vectors, WordVectors) else WordVectors.load(vectors)
    _check_columns(words.vector_size, model, project)
    match = _Match(model.cfg.vocab_size, words, tokenizer)
    match.by_text(lower)
    if average_pieces:
        match.by_pieces(tokenizer)
    is_matched_V = match.ways > 0
    if not is_matched_V.any():
        raise DataError(
            f"no token has a vector: the words are such as {words.words[:3]}, the tokens such as "
            f"{match.names[300:303]}"
        )
    random = np.random.Generator(np.random.Philox(seed))
    projection = Projection(match.table_VC[is_matched_V], model.cfg.emb_dim, project, random)
    matched_ND = projection.vectors
    if std is not None:
        matched_ND = matched_ND * (std / max(float(matched_ND.std()), 1e-12))
    _put(model, _table(matched_ND, is_matched_V, random), projection.learned_DC, freeze)
    counts = np.bincount(match.ways, minlength=5).tolist()
    return Coverage(
        num_tokens=model.cfg.vocab_size,
        exact=counts[1],
        without_space=counts[2],
        lower=counts[3],
        averaged=counts[4],
        projection=projection.words,
        explained=projection.explained,
        std=float(matched_ND.std()),
    )


def fold_projection(model: GPTModel) -> None:
    """Multiplies a learned projection into `tok_emb`, a plain nn.Embedding again, to rounding.

    Before it, checkpoints of the model do not load, since `tok_emb` has another shape.

    Raises:
        ConfigError: the model has no learned projection.
    """
    table = model.tok_emb
    if not isinstance(table, ProjectedEmbedding):
        raise ConfigError("tok_emb has no learned projection")
    with torch.no_grad():
        weight = (table.weight.double() @ table.projection.double().T).to(table.weight.dtype)
    embedding = nn.Embedding(len(weight), weight.shape[1], device="meta")
    embedding.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    model.tok_emb = embedding


class _Match:
    """Which vector each token has.

    Attributes:
        table_VC: the vectors, zeros where there is none.
        ways: how each token got it: 0 not at all, 1 to 4 as in `Coverage`.
        names: the tokens' texts; None where they are no whole characters.
    """

    def __init__(self, vocab_size: int, words: WordVectors, tokenizer: Any) -> None:
        known = PromptReader(tokenizer).n_vocab
        if not hasattr(tokenizer, "decode_bytes"):
            raise ConfigError(f"a tokenizer with decode_bytes is needed, found {tokenizer!r}")
        if known is not None and known > vocab_size:
            raise ConfigError(
                f"the model has vocab_size {vocab_size}, and the tokenizer has {known} ids"
            )
        self._words = words
        self._ids = list(range(vocab_size if known is None else known))
        self._file_names = token_names(tokenizer, self._ids)
        self.names = [_text(tokenizer.decode_bytes([token])) for token in self._ids]
        self.ways = np.zeros(vocab_size, dtype=np.int64)
        self.table_VC = np.zeros((vocab_size, words.vector_size), dtype=np.float32)

    def by_text(self, lower: bool) -> None:
        """Gives tokens the vectors of their texts."""
        for token in self._ids:
            text, file_name = self.names[token], self._file_names[token]
            bare = None if text is None else text.removeprefix(" ")
            small = bare.lower() if bare is not None and lower else None
            candidates = ((1, file_name), (1, text), (2, bare), (3, small))
            for way, word in candidates:
                if word in self._words:
                    self.ways[token] = way
                    self.table_VC[token] = self._words[str(word)]
                    break

    def by_pieces(self, tokenizer: Any) -> None:
        """Gives tokens without a vector the mean of the words that they are pieces of.

        A word is cut as it stands at the start of a text, and as it stands behind a space.
        """
        vocab_size, num_columns = self.table_VC.shape
        sums_VC = torch.zeros(vocab_size, num_columns)
        counts_V = torch.zeros(vocab_size)
        for start in range(0, len(self._words), _WORDS_TOGETHER):
            words = self._words.words[start : start + _WORDS_TOGETHER]
            vectors_NC = torch.tensor(self._words.vectors[start : start + len(words)])
            for before in ("", " "):
                ids, lengths = _pieces(tokenizer, [before + word for word in words])
                row_of = torch.arange(len(words)).repeat_interleave(lengths)
                sums_VC.index_add_(0, ids, vectors_NC[row_of])
                counts_V.index_add_(0, ids, torch.ones(len(ids)))
        is_new_V = (self.ways == 0) & (counts_V > 0).numpy()
        means_VC = (sums_VC / counts_V.clamp(min=1)[:, None]).numpy()
        self.table_VC[is_new_V] = means_VC[is_new_V]
        self.ways[is_new_V] = 4


def _table(
    matched_ND: Vectors, is_matched_V: npt.NDArray[np.bool_], random: np.random.Generator
) -> Vectors:
    """The matched vectors in their places, the others drawn column by column: [V, D]."""
    shape = (len(is_matched_V), matched_ND.shape[1])
    table: Vectors = random.standard_normal(shape, dtype=np.float32)
    table *= matched_ND.std(0)
    table += matched_ND.mean(0)
    table[is_matched_V] = matched_ND
    return table


def _pieces(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The ids of all texts, one after the other, and how many each has."""
    if isinstance(tokenizer, Tokenizer):
        ids, ends = tokenizer.encode_batch_to_numpy(texts, disallowed_special=())
        return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(np.diff(ends))
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    rows = [encode(text) for text in texts]
    joined = [token for row in rows for token in row]
    return torch.tensor(joined, dtype=torch.int64), torch.tensor([len(row) for row in rows])


def _text(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _check_columns(num_columns: int, model: GPTModel, project: Project | None) -> None:
    emb_dim = model.cfg.emb_dim
    if project is None and num_columns != emb_dim:
        raise ConfigError(
            f"the vectors have {num_columns} columns, and the model's emb_dim is {emb_dim}: "
            'project="pca" or "learned" makes them fit'
        )
    if project == "learned" and model.cfg.tie_embeddings:
        raise ConfigError(
            'project="learned" needs a model whose out_head is not tied to tok_emb: it would have '
            f"{num_columns} columns instead of {emb_dim}"
        )


def _put(model: GPTModel, table: Vectors, learned_DC: Vectors | None, freeze: bool) -> None:
    """Writes the vectors into the model."""
    weight = model.tok_emb.weight
    if learned_DC is None:
        with torch.no_grad():
            weight.copy_(torch.from_numpy(table))
    else:
        table_VC, projection_DC = (
            torch.from_numpy(array).to(weight.device, weight.dtype) for array in (table, learned_DC)
        )
        model.tok_emb = ProjectedEmbedding(table_VC, projection_DC)
    model.tok_emb.weight.requires_grad_(not freeze)
