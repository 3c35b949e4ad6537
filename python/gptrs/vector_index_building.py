"""Writes an index of vectors: passages in, a folder out. What is in it says `vector_index`.

passages ─► passages.jsonl ─┐                    ┌─► vectors.npy ─► graph.usearch
                            └─► texts ─► embedder ┘
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from tqdm.auto import tqdm

from gptrs.errors import ConfigError, DataError, GptrsError, MissingExtraError, StoreError
from gptrs.nearest import Graph, Vectors, recall
from gptrs.passages import Passage
from gptrs.vector_index import (
    FORMAT,
    FORMAT_VERSION,
    GRAPH_FILE,
    INDEX_FILE,
    PASSAGES_FILE,
    VECTORS_FILE,
    Facts,
    VectorIndex,
)

if TYPE_CHECKING:
    from gptrs.embeddings import Embedder

MOST_EXACT: Final = 100_000
"""So many vectors are all looked at in some hundredths of a second."""
SETTINGS: Final = ("pooling", "layer", "stride", "allow_special")
FILES: Final = (VECTORS_FILE, PASSAGES_FILE, GRAPH_FILE, INDEX_FILE)
TEMPORARY: Final = ".tmp-"
GRAPH_ROWS: Final = 1 << 10


def build_index(
    directory: str | os.PathLike[str],
    passages: Iterable[Passage],
    embedder: Embedder,
    *,
    approximate: bool | None = None,
    progress: bool = False,
) -> VectorIndex:
    """Embeds passages into `directory`; an index that is there is replaced once this one is done.

    Memory holds a block of passages, whatever their number.

    Args:
        approximate: whether to make a graph. None: above 100,000 passages, if usearch is installed.
        progress: show bars.
    Raises:
        DataError: there are no passages.
        ConfigError: the embedder does not normalize, or the folder has something else in it.
        MissingExtraError: a graph was asked for, and usearch is not installed.
        StoreError: the folder cannot be written.
        Whatever the passages raise, unchanged. Nothing is left of what was begun.
    """
    directory = Path(directory)
    if not embedder.normalize:
        raise ConfigError("an index is searched by cosine: it needs an embedder that normalizes")
    if approximate:
        Graph(1)  # Better refused now than when hours have passed.
    try:
        with _begun(directory) as temporary:
            _write(temporary, passages, embedder, approximate, progress)
            _move(temporary, directory)
    except GptrsError:
        raise  # Many are an OSError, too.
    except OSError as error:
        raise StoreError(f"{directory}: the index cannot be written: {error}") from error
    return VectorIndex.open(directory)


@contextmanager
def _begun(directory: Path) -> Iterator[Path]:
    """A folder in `directory` that is gone afterwards, and so is `directory` if nothing is in it.

    Raises:
        ConfigError: `directory` has files that are no index.
    """
    if directory.is_dir() and not (directory / INDEX_FILE).exists():
        names = {entry.name for entry in directory.iterdir()}.difference(FILES)
        if foreign := sorted(name for name in names if not name.startswith(TEMPORARY)):
            raise ConfigError(f"{directory} is no index, and has {foreign[0]} in it")
    temporary = directory / f"{TEMPORARY}{os.urandom(4).hex()}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            directory.rmdir()


def _move(temporary: Path, directory: Path) -> None:
    """Puts the files in the place of older ones; without index.json there is no index meanwhile."""
    (directory / INDEX_FILE).unlink(missing_ok=True)
    for name in FILES:  # index.json comes last.
        if (temporary / name).exists():
            (temporary / name).replace(directory / name)
        else:
            (directory / name).unlink(missing_ok=True)


def _write(
    folder: Path,
    passages: Iterable[Passage],
    embedder: Embedder,
    approximate: bool | None,
    progress: bool,
) -> None:
    num_passages, dim = 0, embedder.model.cfg.emb_dim
    with _synced(folder / VECTORS_FILE) as vectors, _synced(folder / PASSAGES_FILE) as lines:
        _write_header(vectors, num_passages, dim)
        for block in embedder.embed_iter(_noted(passages, lines), progress=progress):
            vectors.write(np.ascontiguousarray(block, "<f4").data)
            num_passages += len(block)
        # NumPy leaves room in the header for the number to grow.
        _write_header(vectors, num_passages, dim)
    if not num_passages:
        raise DataError("there are no passages: the inputs have no text")
    found = None
    if num_passages > MOST_EXACT if approximate is None else approximate:
        # Without usearch, search stays exact, and slower.
        with suppress(MissingExtraError):
            found = _write_graph(folder, progress)
    facts = Facts(
        num_passages=num_passages,
        dim=dim,
        model=embedder.identity(),
        settings={name: getattr(embedder, name) for name in SETTINGS},
        recall=found,
    )
    content = {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(facts)
    with _synced(folder / INDEX_FILE) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def _noted(passages: Iterable[Passage], lines: IO[bytes]) -> Iterator[str]:
    """The texts of passages, which are written as they pass."""
    for passage in passages:
        line = json.dumps(passage._asdict(), ensure_ascii=False)
        lines.write(line.encode("utf-8", "surrogatepass") + b"\n")
        yield passage.text


def _write_graph(folder: Path, progress: bool) -> float:
    """Makes the graph; returns its recall."""
    vectors: Vectors = np.load(folder / VECTORS_FILE, mmap_mode="r")
    graph = Graph(vectors.shape[1])
    starts = range(0, len(vectors), GRAPH_ROWS)
    with tqdm(total=len(vectors), desc="graph", unit=" vectors", disable=not progress) as bar:
        for start in starts:
            block = np.asarray(vectors[start : start + GRAPH_ROWS])
            graph.add(start, block)
            bar.update(len(block))
    graph.save(folder / GRAPH_FILE)
    return recall(graph, vectors)


def _write_header(file: IO[bytes], num_rows: int, dim: int) -> None:
    """Of a .npy file, at its start."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, dim)}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def _synced(path: Path) -> Iterator[IO[Any]]:
    """A new file that is on the disk afterwards."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
