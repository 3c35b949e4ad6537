"""Tensors written to a safetensors file past the page cache, and summed on the way.

    tensors ─► 1 MiB at a time: copied together ─► summed ─► written ─► file

A checkpoint of gigabytes is written while a model trains. To copy it into the page cache, and to
read it from there for a sum, takes several times as much of the processors as this.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptrs import _core

# In the format's order: the widest come first, so that all are aligned.
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES)}

_ALIGNMENT = 8
_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 4096
"""What is written past the page cache comes in multiples of a disk's blocks."""
DIRECT_BYTES = 64 << 20
"""Smaller files go through the page cache: they may be read again soon."""


def save_tensors(
    tensors: Mapping[str, Tensor | Sequence[Tensor]],
    file: Path,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Writes, to the byte, what safetensors' `save_file` would.

    Args:
        tensors: of any strides, on any device. In the place of one its rows may stand, in parts
            that were cut along the first dimension: they are put together in the file alone.
    Returns:
        What `files.digest` gives for the file.
    Raises:
        OSError: it cannot be written.
        TypeError: a dtype that a checkpoint does not have.
    """
    parts = {name: [t] if isinstance(t, Tensor) else [*t] for name, t in tensors.items()}
    ordered = sorted(parts.items(), key=lambda named: (_rank(*named), named[0]))
    header = _header(ordered, metadata)
    num_bytes = len(header) + sum(part.nbytes for _, each in ordered for part in each)
    with _Out(file, is_direct=num_bytes >= DIRECT_BYTES) as out:
        out.write(np.frombuffer(header, dtype=np.uint8))
        for part in chain.from_iterable(each for _, each in ordered):
            dense = part.detach().cpu().contiguous().reshape(-1)
            out.write(dense.view(torch.uint8).numpy())
        return out.finish()


def _rank(name: str, parts: Sequence[Tensor]) -> int:
    dtype = parts[0].dtype
    if dtype not in _RANKS:
        raise TypeError(f"{name} is {dtype}; a checkpoint has {', '.join(_DTYPES.values())}")
    return _RANKS[dtype]


def _header(ordered: list[tuple[str, list[Tensor]]], metadata: Mapping[str, str] | None) -> bytes:
    """Its length, and which tensor lies where behind it."""
    content: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, parts in ordered:
        start, end = end, end + sum(part.nbytes for part in parts)
        shape = list(parts[0].shape)
        if len(parts) > 1:
            shape[0] = sum(len(part) for part in parts)
        content[name] = {
            "dtype": _DTYPES[parts[0].dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_ALIGNMENT, "little") + text


class _Out(AbstractContextManager["_Out"]):
    """A file that is written in whole chunks, past the page cache where the system lets us."""

    def __init__(self, file: Path, *, is_direct: bool) -> None:
        self._direct = getattr(os, "O_DIRECT", 0) if is_direct else 0
        self._descriptor = self._opened(file)
        # Memory that begins where a page does, as the disk wants it.
        self._memory = memoryview(mmap.mmap(-1, _CHUNK_BYTES))
        self._chunk: NDArray[np.uint8] = np.frombuffer(self._memory, dtype=np.uint8)
        self._filled = 0
        self._digest = _core.Digest()

    def write(self, part: NDArray[np.uint8]) -> None:
        """Appends bytes."""
        while len(part):
            count = min(len(part), _CHUNK_BYTES - self._filled)
            # Without the GIL, as all that takes long here.
            np.copyto(self._chunk[self._filled : self._filled + count], part[:count])
            self._filled += count
            part = part[count:]
            if self._filled == _CHUNK_BYTES:
                self._flush()

    def finish(self) -> str:
        """Writes what is left, and returns the digest of everything."""
        self._flush()
        return self._digest.hexdigest()

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _opened(self, file: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        try:
            return os.open(file, flags | self._direct, 0o666)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            self._direct = 0  # This file system has nothing of the kind.
            return os.open(file, flags, 0o666)

    def _flush(self) -> None:
        rest = self._memory[: self._filled]
        self._filled = 0
        self._digest.update(rest)
        while len(rest):
            if self._direct and len(rest) % _BLOCK_BYTES:
                self._go_through_the_cache()
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._go_through_the_cache()

    def _go_through_the_cache(self) -> None:
        import fcntl  # Where there is O_DIRECT, there is this.

        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~self._direct)
        self._direct = 0
