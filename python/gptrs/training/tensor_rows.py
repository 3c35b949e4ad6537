"""Tensors of which each process has some rows: a file for each, and any number of readers.

    training-00001-of-00003.safetensors    the first rows of every tensor
    training-00002-of-00003.safetensors    those that follow
    training-00003-of-00003.safetensors    the last

Each file's header says where its rows begin, in the words of torch.distributed.checkpoint, which
reads such a folder too (its HuggingFaceStorageReader). A file that says nothing has whole tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptrs.errors import CheckpointError
from gptrs.tensor_file import save_tensors

_STARTS, _START = "DCP_SHARDING_INFO", "saved_offsets"


class Rows(NamedTuple):
    """Some rows of a tensor, or all of it."""

    tensor: Tensor
    start: int = 0
    """Which row of the whole tensor the first one is."""


class _Stored(NamedTuple):
    file: Any
    start: int
    num_rows: int


def share_name(stem: str, rank: int, world_size: int) -> str:
    """The name of one process's file."""
    return f"{stem}-{rank + 1:05d}-of-{world_size:05d}.safetensors"


def save_rows(rows: Mapping[str, Rows], file: Path) -> str:
    """Writes one process's rows; tensors of which it has none are left out.

    Returns:
        What `files.digest` gives for the file.
    Raises:
        OSError: it cannot be written.
    """
    there = {name: part for name, part in rows.items() if part.tensor.numel()}
    starts = {
        name: {_START: [part.start, *[0] * (part.tensor.ndim - 1)][: part.tensor.ndim]}
        for name, part in there.items()
    }
    tensors = {name: part.tensor for name, part in there.items()}
    return save_tensors(tensors, file, {"format": "pt", _STARTS: json.dumps(starts)})


class SavedTensors(Mapping[str, Tensor]):
    """What is in the files together, each tensor read when it is asked for.

    Args:
        files: with whole tensors, or with rows.
    Raises:
        CheckpointError: one cannot be read, or rows are missing.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._opened = ExitStack()
        self._stored: dict[str, list[_Stored]] = {}
        for path in files:
            try:
                file = self._opened.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            starts = json.loads((file.metadata() or {}).get(_STARTS, "{}"))
            for name in file.keys():  # noqa: SIM118  # It is no mapping.
                shape = file.get_slice(name).get_shape()
                start = starts[name][_START][0] if shape and starts else 0
                num_rows = shape[0] if shape else 1
                self._stored.setdefault(name, []).append(_Stored(file, start, num_rows))
        for name, parts in self._stored.items():
            parts.sort(key=lambda part: part.start)
            ends = [0, *(part.start + part.num_rows for part in parts)]
            if [part.start for part in parts] != ends[:-1]:
                raise CheckpointError(f"{files[0].parent}: rows of {name} are missing")

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor, on the CPU."""
        parts = self.parts(name)
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def parts(self, name: str) -> list[Tensor]:
        """The tensor's rows as they are stored, in the files' own memory."""
        return [part.file.get_tensor(name) for part in self._stored[name]]

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """So many rows from `start` on, and none of the others read."""
        found = []
        for part in self._stored[name]:
            first, last = max(start, part.start), min(start + count, part.start + part.num_rows)
            if first < last:
                found.append(part.file.get_slice(name)[first - part.start : last - part.start])
        return torch.cat(found) if found else self.parts(name)[0][:0].clone()

    def shape(self, name: str) -> torch.Size:
        """Of the whole tensor."""
        parts = self._stored[name]
        shape = parts[0].file.get_slice(name).get_shape()
        return torch.Size([sum(part.num_rows for part in parts), *shape[1:]] if shape else [])

    def close(self) -> None:
        """Lets go of the files."""
        self._opened.close()
