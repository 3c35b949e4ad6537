"""One job at a time trains a run: two would write over each other's checkpoints.

RUN/.lock    held by the job's first process; there as long as it trains, and after a kill -9
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from gptrs.errors import CheckpointError, GptrsError, TrainingError
from gptrs.file_lock import take
from gptrs.training.step import World

LOCK_FILE = ".lock"


@contextmanager
def locked(run_dir: Path, world: World) -> Iterator[None]:
    """Keeps all other jobs out of `run_dir`. If it was missing, and nothing came, it goes again.

    Raises:
        TrainingError: another job trains there, or prepares to; in all processes of this one.
        CheckpointError: `run_dir` cannot be written.
    """
    refusal: GptrsError | None = None
    with ExitStack() as held:
        if world.rank == 0:
            try:
                held.enter_context(_held(run_dir))
            except GptrsError as error:
                refusal = error
        refusal = world.first(refusal)
        if refusal is not None:
            raise refusal
        yield


@contextmanager
def _held(run_dir: Path) -> Iterator[None]:
    missing = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    file = run_dir / LOCK_FILE
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{run_dir}: cannot be written: {error}") from error
    try:
        with stream:
            _take(stream, run_dir)
            try:
                yield
            finally:
                _remove(file)  # While it is held: afterwards it may be another's.
    finally:
        if os.name == "nt":  # Which removes no file that is open, whoever has it open.
            _remove(file)
        with suppress(OSError):
            for folder in missing:  # The innermost first, as long as they are empty.
                folder.rmdir()


def _take(stream: TextIO, run_dir: Path) -> None:
    try:
        is_ours = take(stream, run_dir / LOCK_FILE)
    except OSError as error:
        tqdm.write(
            f"{run_dir}: cannot be locked ({error.strerror}): see to it that nothing else trains it"
        )
        return
    stream.seek(0)
    if not is_ours:
        holder = stream.read().strip() or "another process"
        raise TrainingError(
            f"{run_dir}: {holder} trains this run: wait for its end, or stop it; two would write "
            "over each other's checkpoints"
        )
    stream.truncate()
    stream.write(f"process {os.getpid()} on {platform.node()}\n")
    stream.flush()


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
