"""Passages and their vectors in a folder, to be searched.

    vectors.npy      float32 [N, D], of length 1: `np.load` opens it with no gptrs
    passages.jsonl   a line each: text, source, first_line, last_line
    graph.usearch    above 100,000 passages: what finds the nearest ones without looking at all
    index.json       how the vectors were made, by which model

Written in a folder of its own and moved when complete. Vectors of different models have nothing to
do with each other, so a search asks for the model that made them: its fingerprint is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gptrs.embeddings.nearest import Graph, Nearest, Vectors, exact_nearest
from gptrs.embeddings.passages import Passage
from gptrs.errors import ConfigError, DataError, StoreError

if TYPE_CHECKING:
    from gptrs.embeddings.embedder import Embedder

FORMAT: Final = "gptrs-vectors"
FORMAT_VERSION: Final = 1
INDEX_FILE, VECTORS_FILE, PASSAGES_FILE = "index.json", "vectors.npy", "passages.jsonl"
GRAPH_FILE: Final = "graph.usearch"


class Hit(NamedTuple):
    """A passage that was found."""

    passage: Passage
    score: float
    """The cosine of its vector and the question's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What index.json says."""

    num_passages: int
    dim: int
    model: dict[str, Any]
    """name, fingerprint, and path if it was read from one."""
    settings: dict[str, Any]
    """How the vectors were made, and a question's is: pooling, layer, stride, allow_special."""
    recall: float | None
    """The graph's, beside exact search; None: there is no graph."""


class VectorIndex:
    """An index that was opened; its vectors are mapped, not read.

    Attributes:
        directory, facts: where it is, and what its index.json says.
        vectors: float32 [N, D].
    """

    def __init__(self, directory: Path, facts: Facts, vectors: Vectors) -> None:
        self.directory, self.facts, self.vectors = directory, facts, vectors
        self._starts: npt.NDArray[np.int64] | None = None

    @staticmethod
    def open(directory: str | os.PathLike[str]) -> VectorIndex:
        """The index in a folder.

        Raises:
            StoreError: there is none, or it is damaged, or of a newer format.
        """
        directory = Path(directory)
        facts = _read_facts(directory / INDEX_FILE)
        path, expected = directory / VECTORS_FILE, (facts.num_passages, facts.dim)
        try:
            vectors = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        if vectors.shape != expected or vectors.dtype != np.float32:
            raise StoreError(
                f"{path}: damaged: {INDEX_FILE} says float32 {list(expected)}, found "
                f"{vectors.dtype} {list(vectors.shape)}"
            )
        return VectorIndex(directory, facts, vectors)

    def search(
        self, embedder: Embedder, question: str, top: int = 5, *, exact: bool = False
    ) -> list[Hit]:
        """The `top` passages that are most like a question, the best first.

        Args:
            exact: look at all of them, even if there is a graph.
        Raises:
            ConfigError: the embedder has another model, or settings, than made the index; or top is
                below 1.
            DataError: the question is empty.
            MissingExtraError: there is a graph, and usearch is not installed.
            StoreError: the index is damaged.
        """
        self.check(embedder)
        found = self.nearest(embedder.embed([question]), top, exact=exact)
        passages = self.passages(found.rows[0].tolist())
        return [Hit(*pair) for pair in zip(passages, found.scores[0].tolist(), strict=True)]

    def nearest(self, queries: Vectors, top: int, *, exact: bool = False) -> Nearest:
        """The rows nearest to vectors float32 [Q, D] of length 1; errors as of `search`."""
        if top < 1:
            raise ConfigError(f"top is {top}; it must be 1 or more")
        if queries.ndim != 2 or queries.shape[1] != self.facts.dim:
            raise DataError(f"queries are [Q, {self.facts.dim}], found {list(queries.shape)}")
        top = min(top, len(self.vectors))
        if exact or self.facts.recall is None:
            return exact_nearest(self.vectors, queries, top)
        return self._graph().nearest(queries, top)

    def check(self, embedder: Embedder) -> None:
        """Raises ConfigError unless the embedder makes vectors as the index has them."""
        made, here = self.facts.model, embedder.identity()
        if made["fingerprint"] != here["fingerprint"]:
            raise ConfigError(
                f"{self.directory} was made with {named(made)}; the model here is {named(here)}: "
                "vectors of different models have nothing to do with each other"
            )
        for name, value in self.facts.settings.items():
            if getattr(embedder, name) != value:
                raise ConfigError(
                    f"{self.directory} was made with {name} {value!r}; the embedder has "
                    f"{getattr(embedder, name)!r}"
                )

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """The passages of these rows.

        Raises:
            StoreError: their file is damaged.
        """
        path = self.directory / PASSAGES_FILE
        try:
            if self._starts is None:
                self._starts = _line_starts(path)
            if len(self._starts) != len(self.vectors) + 1:
                lines = f"{len(self._starts) - 1} whole lines"
                raise StoreError(f"{path}: damaged: {len(self.vectors)} vectors, {lines}")
            with path.open("rb") as file:
                return [_read_passage(file, int(self._starts[row])) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: damaged: {error!r}") from error
        except FileNotFoundError:
            raise StoreError(f"{path}: no such file") from None

    def _graph(self) -> Graph:
        path = self.directory / GRAPH_FILE
        try:
            graph = Graph.open(path, self.facts.dim)
        except ValueError as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        if len(graph) != len(self.vectors):
            raise StoreError(f"{path}: damaged: {len(graph)} of {len(self.vectors)} vectors")
        return graph


def _read_facts(path: Path) -> Facts:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path.parent}: no index here: there is no {path.name}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise StoreError(f"{path}: not an index of vectors: its format is not {FORMAT!r}")
    if (version := content.pop("format_version", None)) != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format version {version!r}; this gptrs reads version {FORMAT_VERSION}"
        )
    try:
        facts = Facts(**content)
        facts.model["fingerprint"], facts.model["name"]
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path}: damaged: {error}") from error
    return facts


def _line_starts(path: Path) -> npt.NDArray[np.int64]:
    """Where each line of a file begins, and where the last one ends."""
    starts, at = [np.zeros(1, np.int64)], 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            starts.append(ends + at + 1)
            at += len(block)
    return np.concatenate(starts)


def _read_passage(file: IO[bytes], start: int) -> Passage:
    file.seek(start)
    return Passage(**json.loads(file.readline().decode("utf-8", "surrogatepass")))


def named(model: dict[str, Any]) -> str:
    """A model in words, such as `runs/demo-001 (1a2b3c4d5e6f7a8b)`."""
    return f"{model.get('path') or model['name']} ({model['fingerprint']})"
