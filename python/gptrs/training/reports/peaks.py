"""What a device could multiply at most, so that a run can say how much of it it uses: its MFU.

    MFU = FLOPs a token (`gptrs.costs.flops`, 6 N + 12 L D T) * tokens/s / (peak FLOP/s * devices)

Model FLOPs utilisation is that of Chowdhery et al. 2022 (PaLM, appendix B): what the model needs,
not what was computed, so activation checkpointing does not raise it. Peaks of GPUs are the
manufacturers' for dense matrices, which NVIDIA prints at half its figure "with sparsity", with sums
in float32. A GPU that is not in the table has no MFU: "unknown" is said, nothing is guessed. Of a
CPU no such figure is published, so a short matmul is timed instead.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch

MEASURED_SIZES = (1024, 2048)
"""Width of the square matrices that a CPU multiplies."""
_MEASURED_S = 0.25
_QUICK_S = 0.02
"""A matmul that takes no longer is too small to show the most a CPU can do."""


class Peak(NamedTuple):
    """The most that one device can do."""

    flops_per_s: float | None
    """None: unknown."""
    source: str
    """Who says so."""


class _Gpu(NamedTuple):
    words: tuple[str, ...]
    """All of them are in the name that torch gives the device."""
    teraflops: dict[str, float]
    source: str


_A100 = "NVIDIA A100 data sheet"
_H100 = "NVIDIA H100 data sheet"
_H200 = "NVIDIA H200 data sheet"
_AMPERE = "NVIDIA GA102 whitepaper"
_ADA = "NVIDIA Ada whitepaper"

# The first that fits counts, so the longer names stand first.
_GPUS = (
    _Gpu(("MIG",), {}, ""),  # A part of a GPU.
    _Gpu(("H200", "NVL"), {"bfloat16": 835.5, "tf32": 417.5, "float32": 60}, _H200),
    _Gpu(("H200",), {"bfloat16": 989.5, "tf32": 494.5, "float32": 67}, _H200),
    _Gpu(("H100", "NVL"), {"bfloat16": 835.5, "tf32": 417.5, "float32": 60}, _H100),
    _Gpu(("H100", "PCIe"), {"bfloat16": 756.5, "tf32": 378, "float32": 51}, _H100),
    _Gpu(("H100",), {"bfloat16": 989.5, "tf32": 494.5, "float32": 67}, _H100),
    _Gpu(("A100",), {"bfloat16": 312, "tf32": 156, "float32": 19.5}, _A100),
    _Gpu(("A10G",), {}, ""),  # Not the A10, and its figures differ from page to page.
    _Gpu(("A10",), {"bfloat16": 125, "tf32": 62.5, "float32": 31.2}, "NVIDIA A10 data sheet"),
    _Gpu(("L40S",), {"bfloat16": 362.05, "tf32": 183, "float32": 91.6}, "NVIDIA L40S data sheet"),
    _Gpu(("L40",), {"bfloat16": 181.05, "tf32": 90.5, "float32": 90.5}, "NVIDIA L40 data sheet"),
    _Gpu(("L4",), {"bfloat16": 121, "tf32": 60, "float32": 30.3}, "NVIDIA L4 data sheet"),
    _Gpu(("RTX 4090 D",), {}, ""),
    _Gpu(("RTX 4090 Laptop",), {}, ""),
    _Gpu(("RTX 4090",), {"bfloat16": 165.2, "tf32": 82.6, "float32": 82.6}, _ADA),
    _Gpu(("RTX 3090 Ti",), {}, ""),
    _Gpu(("RTX 3090",), {"bfloat16": 71, "tf32": 35.6, "float32": 35.6}, _AMPERE),
    _Gpu(("V100-SXM2",), {"float16": 125, "float32": 15.7}, "NVIDIA V100 data sheet"),
    _Gpu(("Tesla T4",), {"float16": 65, "float32": 8.1}, "NVIDIA T4 data sheet"),
)


def peak(device: torch.device, dtype: str) -> Peak:
    """The most that `device` can multiply in `dtype`, in FLOP/s; on a CPU it is measured, once.

    Args:
        dtype: what matmuls compute in: "bfloat16", "float16" or "float32". Where torch may round
            the factors of float32 matmuls on a GPU, it is TF32's peak.
    """
    if device.type == "cpu":
        return measured_peak(dtype, torch.get_num_threads())
    if device.type != "cuda":
        return Peak(None, f"no figure is known for {device.type}")
    name = torch.cuda.get_device_name(device)
    is_rounded = dtype == "float32" and torch.get_float32_matmul_precision() != "highest"
    return gpu_peak(name, "tf32" if is_rounded else dtype)


def gpu_peak(name: str, dtype: str) -> Peak:
    """The published peak of the GPU called `name`, as `torch.cuda.get_device_name` calls it."""
    for gpu in _GPUS:
        if all(_has(name, word) for word in gpu.words):
            if dtype in gpu.teraflops:
                return Peak(gpu.teraflops[dtype] * 1e12, gpu.source)
            break
    return Peak(None, f"no figure is known for {name} in {dtype}")


@functools.cache
def measured_peak(dtype: str, num_threads: int) -> Peak:
    """The most that a matmul reaches on this CPU, timed once in a process.

    Args:
        num_threads: torch's, as they are.
    """
    best = 0.0
    for size in MEASURED_SIZES:
        factor = torch.full((size, size), 0.5, dtype=getattr(torch, dtype))
        quickest, ends = float("inf"), time.perf_counter() + _MEASURED_S
        while time.perf_counter() < ends:
            began = time.perf_counter()
            torch.mm(factor, factor)
            quickest = min(quickest, time.perf_counter() - began)
        best = max(best, 2 * size**3 / quickest)
        if quickest > _QUICK_S:
            break
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    return Peak(best, f"the quickest {dtype} matmul measured here, with {threads}")


def utilisation(
    tokens_per_s: float, training_flops: int, peak_flops_per_s: float | None, num_devices: int = 1
) -> float | None:
    """MFU as a share, 1 at the peak; None where the peak is unknown.

    Args:
        training_flops: of a token, forward and backward.
        peak_flops_per_s: of one device.
    """
    if not peak_flops_per_s:
        return None
    return tokens_per_s * training_flops / (peak_flops_per_s * num_devices)


def _has(name: str, word: str) -> bool:
    """Whether `word` stands in `name` as a whole: an L4 is no L40, an A10 no A100."""
    before, found, after = name.lower().partition(word.lower())
    return bool(found) and not before[-1:].isalnum() and not after[:1].isalnum()
