"""A checkpoint that several processes write, each what it has of a model in shards.

    rank 0   makes the folder ─► its rows ─┐
    rank 1                    ─► its rows ─┼─► rank 0: joins the weights, state.json, renames
    rank 2                    ─► its rows ─┘

No process holds more than its rows, and training goes on meanwhile. The weights become one file,
which `from_pretrained` reads; the moments stay in rows, a file for each process.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch.distributed as dist
from torch import Tensor

from gptrs.errors import CheckpointError
from gptrs.files import write_whole_with
from gptrs.training.checkpoint import folder_of, put_in_place, temporary_of, write_state
from gptrs.training.tensor_rows import Rows, SavedTensors, save_rows, share_name

T = TypeVar("T")

_WEIGHTS, _TENSORS = "weights", "training"
_TIMEOUT = timedelta(hours=1)
"""So long the others wait for the disk of one."""


class Peers:
    """The processes that train, once more: for their threads that write, beside the training."""

    def __init__(self) -> None:
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._group = cast(dist.ProcessGroup, group)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def first(self, value: T) -> T:
        """What the first process has, on each."""
        holder = [value]
        dist.broadcast_object_list(holder, src=0, group=self._group)
        return holder[0]

    def gather(self, value: T) -> list[T]:
        """What all have, by rank, on the first; on the others, nothing."""
        every: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, every, dst=0, group=self._group)
        return every or []

    def part(self) -> None:
        """Ends the group."""
        dist.destroy_process_group(self._group)


class _Written(NamedTuple):
    """A process's file that stays, or what was wrong."""

    name: str = ""
    digest: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has of a run at one moment, copied: the run may go on meanwhile."""

    step: int
    weights: Mapping[str, Rows]
    tensors: Mapping[str, Rows]
    """Of the optimizer, and the states of random number generators."""
    write_model: Callable[[Path, Mapping[str, list[Tensor]]], object]
    """Writes the model's files to a folder, of the weights' rows in order."""
    state: Mapping[str, Any]
    """What JSON can hold."""
    peers: Peers

    def write(self, run_dir: Path) -> Path | None:
        """Writes it together with all others; the checkpoint's folder, on the first process.

        Raises:
            CheckpointError: one of them could not write; on the first process alone.
        """
        folder = folder_of(run_dir, self.step)
        temporary, problem = self.peers.first(self._begun(folder))
        written = self._saved(temporary) if problem is None else _Written(problem=problem)
        every = self.peers.gather(written)
        if self.peers.rank:
            return None
        try:
            self._finish(temporary, every)
            put_in_place(temporary, folder)
        except OSError as error:  # CheckpointError is one.
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{folder}: the checkpoint of step {self.step:,} cannot be written: {error}"
            ) from error
        return folder

    def _begun(self, folder: Path) -> tuple[Path, str | None]:
        """Where all are to write, on the first process; and why it cannot be made."""
        temporary = temporary_of(folder)
        if self.peers.rank:
            return temporary, None
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        except OSError as error:
            return temporary, str(error)
        return temporary, None

    def _saved(self, folder: Path) -> _Written:
        """Writes the rows of this process."""
        rank, world_size = self.peers.rank, self.peers.world_size
        name = share_name(_TENSORS, rank, world_size)
        try:
            save_rows(self.weights, folder / share_name(_WEIGHTS, rank, world_size))
            digest = write_whole_with(folder / name, lambda path: save_rows(self.tensors, path))
        except Exception as error:  # Of any kind: the others wait to hear of it.
            return _Written(problem=f"process {rank}: {error}")
        return _Written(name, digest)

    def _finish(self, folder: Path, every: list[_Written]) -> None:
        """Joins the weights of all, and says what is there."""
        if problems := {each.problem for each in every if each.problem}:
            raise CheckpointError("; ".join(sorted(problems)))
        files = [
            folder / share_name(_WEIGHTS, rank, self.peers.world_size)
            for rank in range(self.peers.world_size)
        ]
        weights = SavedTensors(files)
        try:
            self.write_model(folder, {name: weights.parts(name) for name in weights})
        finally:
            weights.close()
        for file in files:
            file.unlink()
        write_state(folder, self.step, self.state, {each.name: each.digest for each in every})
