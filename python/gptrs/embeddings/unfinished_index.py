"""An index of vectors that is being written: what was begun and stopped goes on.

    DIR/.unfinished/passages.jsonl   ┐ grow by a block at a time
                    vectors.npy      ┘
                    begun.json       how the vectors are made, and how much of both files is whole
                    lock             held by the process that writes

The files are synced before begun.json counts them, and what is behind that count is cut off when
the work goes on: a kill costs a block and the last second. Blocks follow from the passages alone,
so the bytes are those of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

import numpy as np
from tqdm.auto import tqdm

from gptrs.embeddings.nearest import Vectors
from gptrs.embeddings.passages import Passage
from gptrs.embeddings.vector_index import GRAPH_FILE, INDEX_FILE, PASSAGES_FILE, VECTORS_FILE, named
from gptrs.errors import StoreError
from gptrs.file_lock import take
from gptrs.files import write_whole

if TYPE_CHECKING:
    from gptrs.embeddings.embedder import Embedder

FOLDER: Final = ".unfinished"
BEGUN_FILE: Final = "begun.json"
LOCK_FILE: Final = "lock"
SAVE_EVERY_S: Final = 1.0
"""A disk takes some milliseconds to sync, and a GPU may take no more for a block."""
SETTINGS: Final = ("pooling", "layer", "stride", "allow_special", "batch_tokens", "dtype")
"""What the vectors follow from, to the last bit, besides the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the vectors are made: what was begun with one plan does not go on with another."""

    model: dict[str, Any]
    """As `Embedder.identity` gives it."""
    settings: dict[str, Any]

    @staticmethod
    def of(embedder: Embedder) -> Plan:
        """The embedder's."""
        settings = {name: getattr(embedder, name) for name in SETTINGS}
        settings["dtype"] = str(settings["dtype"]).removeprefix("torch.")
        return Plan(model=embedder.identity(), settings=settings)

    def difference(self, now: Plan) -> str | None:
        """What of `now` is another; None: nothing that counts."""
        if self.model["fingerprint"] != now.model["fingerprint"]:
            return f"the model was {named(self.model)}, now it is {named(now.model)}"
        for name, value in now.settings.items():
            if (then := self.settings.get(name)) != value:
                return f"{name} was {then!r}, now it is {value!r}"
        return None


class UnfinishedIndex:
    """The passages and vectors that are there, to be added to. A context manager.

    Raises:
        StoreError: what is there was begun with another plan, or is damaged.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, plan: Plan, dim: int) -> None:
        self._folder, self._plan, self._dim = folder, plan, dim
        for name in (INDEX_FILE, GRAPH_FILE):  # They are made of all vectors.
            (folder / name).unlink(missing_ok=True)
        self._done = self._read_begun()
        """How many passages, and bytes of them. Set at once: Ctrl-C comes between any two steps."""
        num_bytes = len(self._header()) + 4 * dim * self._done[0]
        with ExitStack() as files:
            self._passages = files.enter_context(self._opened(PASSAGES_FILE, self._done[1]))
            self._vectors = files.enter_context(self._opened(VECTORS_FILE, num_bytes))
            self._files = files.pop_all()
        self._saved_at = time.monotonic()

    @property
    def num_passages(self) -> int:
        """So many are there."""
        return self._done[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._files:
            if kind is None:
                self._vectors.seek(0)
                self._vectors.write(self._header())
                self.save()
            else:
                with suppress(OSError):  # Which may be what happened.
                    self.save()

    def pass_over_done(self, passages: Iterator[Passage], *, progress: bool = False) -> None:
        """Takes those off `passages` that are there, and makes sure that they are the same.

        Raises:
            StoreError: they are not.
        """
        done = self.num_passages
        with (self._folder / PASSAGES_FILE).open("rb") as lines:
            for number in tqdm(
                range(done), "reading again", unit=" passages", disable=not (progress and done)
            ):
                then, now = lines.readline(), next(passages, None)
                if now is None:
                    raise self._differs(f"{done} passages are done, and now there are {number}")
                if then != _line(now):
                    raise self._differs(f"passage {number + 1} {_change(then, now)}")

    def append(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        """Adds a block: passages and their vectors, float32 [n, D]."""
        self._passages.writelines(map(_line, passages))
        self._vectors.write(np.ascontiguousarray(vectors, "<f4").data)
        self._done = self._done[0] + len(passages), self._passages.tell()
        if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Makes what was added outlast a kill."""
        num_passages, passages_bytes = self._done
        if not num_passages:
            return
        for file in (self._passages, self._vectors):
            file.flush()
            os.fsync(file.fileno())
        counts = {"num_passages": num_passages, "passages_bytes": passages_bytes}
        content = json.dumps(asdict(self._plan) | counts, indent=2)
        write_whole(self._folder / BEGUN_FILE, content.encode() + b"\n")
        self._saved_at = time.monotonic()

    def _read_begun(self) -> tuple[int, int]:
        path = self._folder / BEGUN_FILE
        if not path.exists():
            return 0, 0
        try:
            content = json.loads(path.read_bytes())
            done = int(content.pop("num_passages")), int(content.pop("passages_bytes"))
            how = Plan(**content).difference(self._plan)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._differs(f"{BEGUN_FILE} is damaged: {error!r}") from None
        if how is not None:
            raise self._differs(how)
        return done

    def _opened(self, name: str, num_bytes: int) -> IO[bytes]:
        """A file, to be written behind what is whole; what no save has counted is cut off."""
        path = self._folder / name
        if not self.num_passages:  # Nothing, or a header, is there.
            path.write_bytes(self._header()[:num_bytes])
        if not path.exists() or path.stat().st_size < num_bytes:
            raise self._differs(f"{name} is shorter than it was")
        file = path.open("r+b")
        file.truncate(num_bytes)
        file.seek(num_bytes)
        return file

    def _header(self) -> bytes:
        """Of vectors.npy: NumPy leaves room in it for the number of rows to grow."""
        header = BytesIO()
        shape = self.num_passages, self._dim
        described = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()

    def _differs(self, how: str) -> StoreError:
        return StoreError(
            f"{self._folder.parent} holds an index that was begun otherwise: {how}; to start anew, "
            "use overwrite=True, or --overwrite"
        )


@contextmanager
def unfinished_folder(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """The folder in `directory` for what is unfinished, locked. It stays if there is work in it.

    Args:
        overwrite: throw away what is there.
    Raises:
        StoreError: another process writes there.
        OSError: it cannot be written.
    """
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder / LOCK_FILE):
            if overwrite:
                for name in (INDEX_FILE, BEGUN_FILE):
                    (folder / name).unlink(missing_ok=True)
            try:
                yield folder
            finally:
                if not any((folder / name).exists() for name in (BEGUN_FILE, INDEX_FILE)):
                    shutil.rmtree(folder, ignore_errors=True)
    finally:
        with suppress(OSError):
            if os.name == "nt":  # Which removes no file that is open, nor a folder with one.
                (folder / LOCK_FILE).unlink()
                folder.rmdir()
        with suppress(OSError):  # Unless there is something in it.
            directory.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, which the system releases when the process ends, however it does."""
    with path.open("ab") as file:
        if not take(file, path):
            raise StoreError(f"{path.parent.parent}: another process makes an index here")
        yield


def _change(then: bytes, now: Passage) -> str:
    """What became of the passage of a line."""
    try:
        was = Passage(**json.loads(then.decode("utf-8", "surrogatepass"))).place
    except (TypeError, ValueError):
        return f"is damaged in {PASSAGES_FILE}"
    return f"was {was}, now it {'has another text' if was == now.place else f'is {now.place}'}"


def _line(passage: Passage) -> bytes:
    """Of passages.jsonl. Halves of characters, which JSON allows, are kept."""
    line = json.dumps(passage._asdict(), ensure_ascii=False)
    return line.encode("utf-8", "surrogatepass") + b"\n"
