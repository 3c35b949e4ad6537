"""Checkpoints written beside the training: copied at once, on the disk some moments later.

the loop ─► save: waits for the one before, copies ─► goes on training
                                   └► a thread: writes, prunes, exports the best
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptrs.errors import CheckpointError
from gptrs.training.checkpoint import prune
from gptrs.weights.checkpoint import copy_checkpoint
from gptrs.weights.manifest import CONFIG_FILE, RUN_FOLDER


class Writable(Protocol):
    """A run at one moment, or one process's part of it."""

    @property
    def step(self) -> int:
        """After which it was."""

    def write(self, run_dir: Path) -> Path | None:
        """Writes a checkpoint: its folder; None: another process says what became of it.

        Raises:
            CheckpointError: it cannot be written; all older ones are as they were.
        """


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a checkpoint."""

    step: int
    seconds: float
    """How long training stood still for it."""
    path: Path | None
    """None: it could not be written, or another process knows."""
    problem: str | None = None


class CheckpointWriter:
    """Writes the checkpoints of the run in `run_dir`, one at a time; use it in a `with`.

    Args:
        keep_last: how many of the newest stay.
        keep_best: whether the best stays too, and is what `run_dir/checkpoint` has; else that is
            the newest.
    """

    def __init__(self, run_dir: Path, *, keep_last: int, keep_best: bool) -> None:
        self._run_dir, self._keep_last, self._keep_best = run_dir, keep_last, keep_best
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gptrs-checkpoint")
        self._writing: Future[Written] | None = None
        self._finished: list[Written] = []
        self.last_good: Path | None = None
        """The newest that is whole."""

    def save(self, take: Callable[[], Writable], *, best: int | None) -> None:
        """Copies what `take` gives, and has it written.

        Args:
            best: the step whose checkpoint is the best, this one included; None: not known.
        """
        began = time.perf_counter()
        self._wait()
        snapshot = take()
        blocked = time.perf_counter() - began
        self._writing = self._thread.submit(self._write, snapshot, best, blocked)

    def finished(self, *, wait: bool = False) -> list[Written]:
        """What was written since this was asked last.

        Args:
            wait: until nothing is being written.
        """
        if wait or (self._writing is not None and self._writing.done()):
            self._wait()
        finished, self._finished = self._finished, []
        return finished

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            written = writing.result()
            self.last_good = written.path or self.last_good
            self._finished.append(written)

    def _write(self, snapshot: Writable, best: int | None, blocked: float) -> Written:
        best = best if self._keep_best else None
        try:
            path = snapshot.write(self._run_dir)
            if path is None:
                return Written(snapshot.step, blocked, None)
            # Adapters alone are no model that could be exported.
            is_model = (path / CONFIG_FILE).exists()
            if is_model and (best is None or best == snapshot.step):
                copy_checkpoint(path, self._run_dir / RUN_FOLDER)
        except CheckpointError as error:
            # A full disk may be emptied: training goes on, and so do the older checkpoints.
            return Written(snapshot.step, blocked, None, str(error))
        prune(self._run_dir, keep_last=self._keep_last, best=best)
        return Written(snapshot.step, blocked, path)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
