"""Vectors of words: looked up, compared, read and written in the formats everybody has. NumPy only.

>>> vectors = WordVectors.load("vectors.bin")
>>> vectors["king"].shape
(100,)
>>> vectors.most_similar("king", topn=2)
[('queen', 0.83), ('prince', 0.79)]
>>> vectors.analogy("man", "king", "woman")
[('queen', 0.71)]
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gptrs.embeddings.vector_files import ReadFormat, WriteFormat, read_vectors, write_vectors
from gptrs.errors import ConfigError, DataError, WordError

Vectors = npt.NDArray[np.float32]
Query = str | npt.ArrayLike
"""A word, or a vector of one's own."""


class WordVectors:
    """Words, and a vector for each; rows are numbered in the words' order. Not to be changed.

    Args:
        words: N different words. `train_word2vec` puts the most frequent first.
        vectors: [N, D], taken as float32; not copied if it is that already.
        counts: how often each word occurs, [N], where that is known.

    Raises:
        DataError: there are not as many vectors as words, or a word is there twice.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors: npt.ArrayLike,
        counts: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        self.words: list[str] = list(words)
        """The words, in the order of the rows."""
        self.vectors: Vectors = np.asarray(vectors, dtype=np.float32).view()
        """float32 [N, D], read-only."""
        self.counts = counts
        """How often each word occurs in what was learned from: uint64 [N]; None of a file."""
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.words):
            raise DataError(
                f"{len(self.words)} words need vectors of shape ({len(self.words)}, D), "
                f"found {self.vectors.shape}"
            )
        self.vectors.flags.writeable = False
        self._row_of = {word: row for row, word in enumerate(self.words)}
        if len(self._row_of) < len(self.words):
            row = next(row for row, word in enumerate(self.words) if self._row_of[word] != row)
            raise DataError(f"the word {self.words[row]!r} is there more than once")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        format: ReadFormat = "auto",  # noqa: A002
        *,
        errors: Literal["strict", "replace"] = "strict",
    ) -> WordVectors:
        """Reads a file of word2vec, text or binary, of fastText (`.vec`) or of GloVe (`.txt`).

        Args:
            format: "text" and "binary" are word2vec's, which begin with the numbers of words and
                columns; "glove" is text that begins with the first word. "auto" looks.
            errors: "replace" puts U+FFFD in the place of bytes that are not UTF-8.

        Raises:
            SourceError: there is no such file, or it is cut off, has a vector of another length,
                something that is no finite number, a word twice, or a word that is not UTF-8.
            ConfigError: there is no such format.
        """
        return cls(*read_vectors(Path(path), format, errors))

    def save(
        self,
        path: str | os.PathLike[str],
        format: WriteFormat = "auto",  # noqa: A002
    ) -> Path:
        """Writes a file that word2vec, gensim, fastText and others read, whole or not at all.

        Args:
            format: "binary" and "text" are word2vec's; "auto" is binary if the name ends with
                `.bin`. Both keep every bit.

        Returns:
            The path.

        Raises:
            DataError: a word is empty, or has a space or a line end in it: the format has no way to
                write it.
            ConfigError: there is no such format.
            OSError: the file cannot be written.
        """
        path = Path(path)
        write_vectors(path, format, self.words, self.vectors)
        return path

    @property
    def vector_size(self) -> int:
        """D, the columns."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._row_of

    def __getitem__(self, word: str) -> Vectors:
        """The vector of a word: float32 [D], read-only.

        Raises:
            WordError: it has none.
        """
        vector: Vectors = self.vectors[self.row(word)]
        return vector

    def __repr__(self) -> str:
        return f"<WordVectors: {len(self):,} words x {self.vector_size}>"

    def row(self, word: str) -> int:
        """The row of a word.

        Raises:
            WordError: it has none.
        """
        row = self._row_of.get(word)
        if row is None:
            raise WordError(f"the word {word!r} has no vector; {len(self):,} others have one")
        return row

    def coverage(self, words: Iterable[str]) -> float:
        """The share of `words` that have a vector, each as often as it occurs; 1.0 of none."""
        found = [word in self._row_of for word in words]
        return sum(found) / len(found) if found else 1.0

    def similarity(self, first: Query, second: Query) -> float:
        """The cosine of the angle between two words, or vectors: -1 to 1; 0 if one is all zeros.

        Raises:
            WordError: a word has no vector.
        """
        return float(self._unit(first) @ self._unit(second))

    def most_similar(
        self,
        positive: Query | Sequence[Query],
        negative: Query | Sequence[Query] = (),
        topn: int = 10,
    ) -> list[tuple[str, float]]:
        """The words closest to a word, or to what is left when words are added and taken away.

        Vectors are scaled to length 1, then summed, as in gensim. Words that were asked about are
        not among those that are found.

        Args:
            positive: a word, a vector [D], or several.
            negative: those to be taken away.
            topn: how many to find.

        Returns:
            (word, cosine), the closest first; of equals the one with the lower row.

        Raises:
            WordError: a word has no vector.
            ConfigError: nothing was asked about, or topn is below 1.
        """
        added, taken = _several(positive), _several(negative)
        if not added and not taken:
            raise ConfigError("most_similar needs a word or a vector")
        if topn < 1:
            raise ConfigError(f"topn is at least 1, found {topn}")
        sums = sum(map(self._unit, added)) - sum(map(self._unit, taken))
        cosines = (self.vectors @ _scaled(np.asarray(sums, np.float32))) / self._lengths
        rows = [self.row(query) for query in [*added, *taken] if isinstance(query, str)]
        cosines[rows] = -np.inf
        num_found = min(topn, len(self) - len(set(rows)))
        found = _largest(cosines, num_found)
        return [(self.words[row], float(cosines[row])) for row in found]

    def analogy(self, a: str, b: str, c: str, topn: int = 1) -> list[tuple[str, float]]:
        """`a` is to `b` as `c` is to what: the words closest to b - a + c, and their cosines.

        Raises:
            WordError: a word has no vector.
            ConfigError: topn is below 1.
        """
        return self.most_similar([b, c], [a], topn)

    def _unit(self, query: Query) -> Vectors:
        if isinstance(query, str):
            return _scaled(self[query])
        vector = np.asarray(query, dtype=np.float32)
        if vector.shape != (self.vector_size,):
            raise ConfigError(f"a vector has shape ({self.vector_size},), found {vector.shape}")
        return _scaled(vector)

    @cached_property
    def _lengths(self) -> Vectors:
        # In float64: squares of float32 may be too large for float32, or too small.
        squares = np.einsum("nd,nd->n", self.vectors, self.vectors, dtype=np.float64)
        squares[squares == 0] = 1  # What is all zeros is like nothing.
        lengths: Vectors = np.sqrt(squares).astype(np.float32)
        return lengths


def _several(queries: Any) -> list[Query]:
    if isinstance(queries, str):
        return [queries]
    if isinstance(queries, np.ndarray) and queries.ndim == 1:
        return [queries]
    return list(queries)


def _scaled(vector: Vectors) -> Vectors:
    length = np.linalg.norm(vector.astype(np.float64)).astype(np.float32)
    scaled: Vectors = vector / length if length > 0 else vector
    return scaled


def _largest(values: Vectors, count: int) -> npt.NDArray[np.intp]:
    """The places of the largest values, the largest first, of equals the first."""
    if count < 1:
        return np.empty(0, dtype=np.intp)
    least = np.partition(values, len(values) - count)[len(values) - count]
    places = np.flatnonzero(values >= least)  # In order; more than `count` if some are equal.
    return places[np.argsort(-values[places], kind="stable")][:count]
