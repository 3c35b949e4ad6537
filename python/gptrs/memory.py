"""Large tensors of zeros: refused before anything is computed where there is no room for them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptrs.errors import GenerationError

ALIGNMENT = 64
"""Bytes: a cache line, and what AVX-512 loads at once."""
LARGE_BYTES = 4 << 20
"""From here on NumPy asks for large pages."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, what: str) -> Tensor:
    """Zeros of `shape`; an ordinary tensor even inside inference mode, so that it can outlive it.

    On the CPU the system hands out the memory page by page, as it is first written.

    Args:
        what: names the tensor in the error.
    Raises:
        GenerationError: there is not as much memory.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    check_memory(num_bytes, device, what)
    try:
        with torch.inference_mode(False):
            if device.type != "cpu" or num_bytes == 0:
                return torch.zeros(shape, dtype=dtype, device=device)
            # NumPy asks for cleared memory, which costs nothing; torch.zeros would clear it all.
            return _aligned(np.zeros(num_bytes + ALIGNMENT, dtype=np.uint8), shape, dtype)
    except (MemoryError, torch.OutOfMemoryError) as cause:
        raise GenerationError(f"{what} takes {num_bytes / 1e9:,.2f} GB: {cause}") from cause


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for numbers, on the CPU in large pages where the system has them.

    Weights that are read from end to end at every step are read up to a tenth faster so.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy asks for large pages; PyTorch does so only where its environment says so.
    return _aligned(np.empty(num_bytes + ALIGNMENT, dtype=np.uint8), shape, dtype)


def _aligned(array: NDArray[np.uint8], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in the memory of `array`, which has ALIGNMENT bytes too many."""
    memory = torch.from_numpy(array)
    start = -memory.data_ptr() % ALIGNMENT
    return memory[start : len(array) - ALIGNMENT + start].view(dtype).view(shape)


def check_memory(num_bytes: int, device: torch.device, what: str) -> None:
    """Raises GenerationError where a device has less than `num_bytes` left for `what`."""
    available = available_bytes(device)
    if available is not None and num_bytes > available:
        raise GenerationError(
            f"{what} takes {num_bytes / 1e9:,.2f} GB; {available / 1e9:,.2f} GB are available"
        )


def available_bytes(device: torch.device) -> int | None:
    """How much memory a process may still take; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
