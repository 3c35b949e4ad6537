"""The rows of a matrix with the largest products: exactly by NumPy, or nearly by usearch's graph.

The graph (HNSW, Malkov and Yashunin 2018) is the extra `search`. It looks at a few hundred rows of
millions, and misses some: its recall is measured where it is made.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gptrs.errors import MissingExtraError

Vectors = npt.NDArray[np.float32]

BLOCK_ROWS: Final = 1 << 14
SAMPLED_QUERIES: Final = 100
SAMPLED_TOP: Final = 10


class Nearest(NamedTuple):
    """For each query its best rows, the best first; equal ones in the order of the rows."""

    rows: npt.NDArray[np.int64]
    """[Q, K]."""
    scores: Vectors
    """[Q, K]."""


def exact_nearest(vectors: Vectors, queries: Vectors, top: int) -> Nearest:
    """The `top` rows of `vectors`, [N, D], with the largest products with `queries`, [Q, D].

    Reads a block at a time: `vectors` may be a file that is larger than memory.
    """
    best = Nearest(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
    for start in range(0, len(vectors), BLOCK_ROWS):
        scores = queries @ vectors[start : start + BLOCK_ROWS].T
        rows = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        best = _best(np.hstack([best.rows, rows]), np.hstack([best.scores, scores]), top)
    return best


def _best(rows: npt.NDArray[np.int64], scores: Vectors, top: int) -> Nearest:
    if top < scores.shape[1]:
        kept = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        rows, scores = np.take_along_axis(rows, kept, 1), np.take_along_axis(scores, kept, 1)
    order = np.lexsort((rows, -scores), axis=1)
    return Nearest(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))


class Graph:
    """usearch's graph over the rows of a matrix, by cosine.

    Raises:
        MissingExtraError: usearch is not installed; the message has the pip line.
    """

    def __init__(self, dim: int) -> None:
        self._index = _usearch().Index(ndim=dim, metric="cos", dtype="f32")

    def add(self, first: int, vectors: Vectors) -> None:
        """Rows that follow each other, numbered from `first`."""
        self._index.add(np.arange(first, first + len(vectors), dtype=np.uint64), vectors)

    def save(self, path: Path) -> None:
        """Writes the file that `open` maps."""
        self._index.save(str(path))

    @staticmethod
    def open(path: Path, dim: int) -> Graph:
        """The graph in a file, which is mapped, not read.

        Raises:
            MissingExtraError: usearch is not installed.
            ValueError: it is damaged, or of vectors of another width.
        """
        graph = Graph(dim)
        try:
            graph._index.view(str(path))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if graph._index.ndim != dim:
            raise ValueError(f"it has vectors of {graph._index.ndim} numbers, not {dim}")
        return graph

    def __len__(self) -> int:
        return len(self._index)

    def nearest(self, queries: Vectors, top: int) -> Nearest:
        """As `exact_nearest`, but some of the rows may be missed for less near ones."""
        found = [self._index.search(query, min(top, len(self))) for query in queries]
        least = min(map(len, found))  # A search may end early.
        rows = np.stack([each.keys[:least] for each in found]).astype(np.int64)
        return Nearest(rows, 1 - np.stack([each.distances[:least] for each in found]))


def recall(graph: Graph, vectors: Vectors) -> float:
    """Which share of the 10 nearest rows of 100 sampled rows, but for itself, a graph finds."""
    sample = np.random.default_rng(0).choice(
        len(vectors), min(SAMPLED_QUERIES, len(vectors)), replace=False
    )
    queries = np.asarray(vectors[np.sort(sample)])
    exact = exact_nearest(vectors, queries, SAMPLED_TOP + 1).rows[:, 1:]
    found = graph.nearest(queries, SAMPLED_TOP + 1).rows
    hits = [np.isin(right, rows).mean() for right, rows in zip(exact, found, strict=True)]
    return float(np.mean(hits))


def _usearch() -> Any:
    try:
        return import_module("usearch.index")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            'an approximate index needs usearch: pip install "gptrs[search]"', name="usearch"
        ) from error
