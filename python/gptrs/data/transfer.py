"""Batches of NumPy arrays as tensors, on the CPU without a copy, on a GPU one batch ahead.

It knows neither windows nor order: what it is given is a stream of arrays that says how far it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptrs import _core

Batch = tuple[Tensor, ...]


class Progress(Protocol):
    """How far an iteration has come: a `_core.BatchStream`, or `Yielded`."""

    @property
    def cursor(self) -> tuple[int, int]:
        """Epoch, and position behind the last batch."""

    @property
    def has_ended(self) -> bool:
        """Whether the caller was told that there is no further batch."""


@dataclass(slots=True)
class Yielded:
    """How far an iteration has come whose stream is ahead of it."""

    cursor: tuple[int, int]
    has_ended: bool = False


def batches_on(device: torch.device, stream: _core.BatchStream) -> tuple[Iterator[Batch], Progress]:
    """The stream's batches on a device, and how far their iterator has come."""
    if device.type != "cuda":
        return _batches(stream, None if device.type == "cpu" else device), stream
    yielded = Yielded(stream.cursor)
    return _cuda_batches(stream, device, yielded), yielded


def _batches(stream: _core.BatchStream, device: torch.device | None) -> Iterator[Batch]:
    """The arrays as tensors that share their memory, or copies on the device."""
    from_numpy = torch.from_numpy
    try:
        for arrays in stream:
            # Written out: a tuple of a map would take a tenth of a small batch's time.
            batch: Batch = (from_numpy(arrays[0]), from_numpy(arrays[1]))
            if len(arrays) > 2:
                batch += tuple(map(from_numpy, arrays[2:]))
            yield batch if device is None else tuple([tensor.to(device) for tensor in batch])
    finally:
        # Who drops the iterator ends its thread, whoever else has the stream.
        stream.close()


def _cuda_batches(
    stream: _core.BatchStream, device: torch.device, yielded: Yielded
) -> Iterator[Batch]:
    """The batches on a GPU: while the caller works on one, the next is copied."""
    copying = torch.cuda.Stream(device)

    def following() -> tuple[Batch, torch.cuda.Event, tuple[int, int]] | None:
        arrays = next(stream, None)
        if arrays is None:
            return None
        with torch.cuda.stream(copying):
            # torch keeps pinned memory until the copies out of it are done.
            pinned = [torch.from_numpy(array).pin_memory() for array in arrays]
            batch = tuple([tensor.to(device, non_blocking=True) for tensor in pinned])
            return batch, copying.record_event(), stream.cursor

    try:
        waiting = following()
        while waiting is not None:
            batch, is_copied, cursor = waiting
            waiting = following()
            current = torch.cuda.current_stream(device)
            current.wait_event(is_copied)
            for tensor in batch:
                # Its memory is the other stream's: not to be used again before this one is done.
                tensor.record_stream(current)
            yielded.cursor = cursor
            yield batch
        yielded.has_ended = True
    finally:
        stream.close()
