"""Writes an index of vectors: passages in, a folder out. What is in it says `vector_index`.

    passages ─► blocks ─► vectors ─► .unfinished/ ─► graph.usearch ─► index.json ─► DIR

What was begun and stopped goes on: see `unfinished_index`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from tqdm.auto import tqdm

from gptrs.embeddings.nearest import Graph, Vectors, recall
from gptrs.embeddings.passages import Passage
from gptrs.embeddings.unfinished_index import (
    BEGUN_FILE,
    FOLDER,
    Plan,
    UnfinishedIndex,
    unfinished_folder,
)
from gptrs.embeddings.vector_index import (
    FORMAT,
    FORMAT_VERSION,
    GRAPH_FILE,
    INDEX_FILE,
    PASSAGES_FILE,
    VECTORS_FILE,
    Facts,
    VectorIndex,
)
from gptrs.errors import ConfigError, DataError, GptrsError, MissingExtraError, StoreError
from gptrs.files import write_whole

if TYPE_CHECKING:
    from gptrs.embeddings.embedder import Embedder

MOST_EXACT: Final = 100_000
"""So many vectors are all looked at in some hundredths of a second."""
SETTINGS: Final = ("pooling", "layer", "stride", "allow_special")
FILES: Final = (VECTORS_FILE, PASSAGES_FILE, GRAPH_FILE, INDEX_FILE)
# A block has about as many batches: enough to sort by length, and little to compute again.
BATCHES_IN_BLOCK: Final = 8
CHARS_IN_TOKEN: Final = 4
GRAPH_ROWS: Final = 1 << 10

OnResume = Callable[[int], object]
"""Is told how many passages are done already."""


def build_index(
    directory: str | os.PathLike[str],
    passages: Iterable[Passage],
    embedder: Embedder,
    *,
    approximate: bool | None = None,
    overwrite: bool = False,
    progress: bool = False,
    on_resume: OnResume | None = None,
) -> VectorIndex:
    """Embeds passages into `directory`; an index that is there is replaced once this one is done.

    What was begun there and stopped, by Ctrl-C, a kill or an error, goes on behind the last whole
    block; the bytes are those of a run that was never stopped. Memory holds a block of passages,
    whatever their number.

    Args:
        passages: to go on, the same again: they are read and compared, but not embedded.
        approximate: whether to make a graph. None: above 100,000 passages, if usearch is installed.
        overwrite: start anew, whatever was begun there.
        progress: show bars.
        on_resume: is called if something was begun, before the first new passage.
    Raises:
        DataError: there are no passages, or one is empty.
        ConfigError: the embedder does not normalize, or the folder has something else in it.
        MissingExtraError: a graph was asked for, and usearch is not installed.
        StoreError: the folder cannot be written; another process makes an index there; or one was
            begun with other passages, settings or weights.
        Whatever the passages raise, unchanged. The blocks that are done stay.
    """
    directory = Path(directory)
    if not embedder.normalize:
        raise ConfigError("an index is searched by cosine: it needs an embedder that normalizes")
    if approximate:
        Graph(1)  # Better refused now than when hours have passed.
    _check_folder(directory)
    plan = Plan.of(embedder)
    try:
        with unfinished_folder(directory, overwrite=overwrite) as folder:
            if (folder / INDEX_FILE).exists() and not (folder / BEGUN_FILE).exists():
                _move(folder, directory)  # A kill came in its midst.
            with UnfinishedIndex(folder, plan, embedder.model.cfg.emb_dim) as unfinished:
                _embed(unfinished, iter(passages), embedder, progress, on_resume)
            _finish(folder, unfinished.num_passages, plan, embedder, approximate, progress)
            (folder / BEGUN_FILE).unlink()  # From here on there is but moving to do.
            _move(folder, directory)
    except GptrsError:
        raise  # Many are an OSError, too.
    except OSError as error:
        raise StoreError(f"{directory}: the index cannot be written: {error}") from error
    return VectorIndex.open(directory)


def _check_folder(directory: Path) -> None:
    """Raises ConfigError if there are files in it, and they are no index."""
    if directory.is_dir() and not (directory / INDEX_FILE).exists():
        names = {entry.name for entry in directory.iterdir()}
        if foreign := sorted(names.difference(FILES, [FOLDER])):
            raise ConfigError(f"{directory} is no index, and has {foreign[0]} in it")


def _move(folder: Path, directory: Path) -> None:
    """Puts the files in the place of older ones; without index.json there is no index meanwhile.

    What a kill leaves over is moved by doing it again.
    """
    (directory / INDEX_FILE).unlink(missing_ok=True)
    if (folder / VECTORS_FILE).exists():  # None is moved yet: the graph there is an older one.
        (directory / GRAPH_FILE).unlink(missing_ok=True)
    for name in FILES:  # index.json comes last.
        with suppress(FileNotFoundError):
            (folder / name).replace(directory / name)


def _embed(
    unfinished: UnfinishedIndex,
    passages: Iterator[Passage],
    embedder: Embedder,
    progress: bool,
    on_resume: OnResume | None,
) -> None:
    """Adds the vectors of all passages that have none."""
    unfinished.pass_over_done(passages, progress=progress)
    done = unfinished.num_passages
    if done and on_resume is not None:
        on_resume(done)
    with tqdm(initial=done, unit=" passages", delay=0.2, disable=not progress) as bar:
        chars_in_block = embedder.batch_tokens * BATCHES_IN_BLOCK * CHARS_IN_TOKEN
        for block in _blocks(passages, chars_in_block):
            texts = [passage.text for passage in block]
            unfinished.append(block, embedder.embed(texts, on_texts=bar.update))
    if not unfinished.num_passages:
        raise DataError("there are no passages: the inputs have no text")


def _blocks(passages: Iterator[Passage], num_chars: int) -> Iterator[list[Passage]]:
    """Passages of so many characters or little more, in blocks that follow from nothing else."""
    block: list[Passage] = []
    room = num_chars
    for passage in passages:
        if not passage.text:
            raise DataError(f"{passage.place}: the passage is empty: it has no tokens to pool")
        block.append(passage)
        room -= len(passage.text) + 1
        if room <= 0:
            yield block
            block, room = [], num_chars
    if block:
        yield block


def _finish(
    folder: Path,
    num_passages: int,
    plan: Plan,
    embedder: Embedder,
    approximate: bool | None,
    progress: bool,
) -> None:
    """Writes the graph, if there is to be one, and index.json."""
    found = None
    if num_passages > MOST_EXACT if approximate is None else approximate:
        # Without usearch, search stays exact, and slower.
        with suppress(MissingExtraError):
            found = _write_graph(folder, progress)
    facts = Facts(
        num_passages=num_passages,
        dim=embedder.model.cfg.emb_dim,
        model=plan.model,
        settings={name: plan.settings[name] for name in SETTINGS},
        recall=found,
    )
    content = {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(facts)
    write_whole(folder / INDEX_FILE, json.dumps(content, indent=2).encode() + b"\n")


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
