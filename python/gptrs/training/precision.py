"""What a training run computes in, and how much at once: as asked, or measured, with the reason."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

from gptrs.config import GPTConfig
from gptrs.costs.memory_budget import WORKING_PART, WORKING_SHARE, training_memory
from gptrs.devices import Precision
from gptrs.errors import ConfigError
from gptrs.memory import available_bytes
from gptrs.training.config import DtypeName

FASTER_FROM = 1.3
"""bfloat16 is taken from this ratio on: its rounding wants something in return."""
_MATRIX_SIZE = {"cpu": 768, "cuda": 4096}
_MEASURED_S = 0.05

_USED_SHARE = 0.8
"""Of the memory that is free."""
_MOST_TOKENS = {"cpu": 8192, "cuda": 65536}
"""More at once is no faster."""


class MicroBatch(NamedTuple):
    """How many windows go through the model at once."""

    size: int
    reason: str


def training_precision(name: DtypeName, device: torch.device) -> Precision:
    """The precision called `name`; "auto" measures the device, once a process.

    Raises:
        ConfigError: bfloat16 on a device that has none.
    """
    if name == "auto":
        return _measured(device)
    if name == "float32":
        return Precision(torch.float32, "as asked")
    if device.type == "mps":
        raise ConfigError(f"dtype {name} is not supported on mps; use float32")
    return Precision(torch.bfloat16, "as asked", is_pure=name == "pure-bfloat16")


@cache
def _measured(device: torch.device) -> Precision:
    if device.type not in _MATRIX_SIZE:
        return Precision(torch.float32, f"the safe choice on {device.type}")
    flops = {dtype: _flops_per_s(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    ratio = flops[torch.bfloat16] / flops[torch.float32]
    dtype = torch.bfloat16 if ratio >= FASTER_FROM else torch.float32
    return Precision(dtype, f"a bfloat16 matmul measured {ratio:.1f} times float32's speed")


def _flops_per_s(dtype: torch.dtype, device: torch.device) -> float:
    """Of one matmul, at its fastest."""
    size = _MATRIX_SIZE[device.type]
    # Not drawn: a run's random numbers stay as they are.
    matrix = torch.full((size, size), 0.01, dtype=dtype, device=device)
    fastest, began = float("inf"), time.perf_counter()
    runs = 0
    while runs < 4 or time.perf_counter() - began < _MEASURED_S:
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
        runs += 1
    return float(2 * size**3 / fastest)


def choose_micro_batch(
    cfg: GPTConfig,
    asked: int | None,
    windows: int,
    *,
    device: torch.device,
    precision: Precision,
    checkpointing: bool = False,
    num_sharing: int = 1,
    num_shards: int = 1,
    num_adapters: int = 0,
) -> MicroBatch:
    """How many of a process's `windows` a step go through the model at once.

    Args:
        asked: the setting `micro_batch`.
        checkpointing: whether each block keeps its input alone.
        num_sharing: processes that share the device's memory.
        num_shards: processes that share the weights, gradients and moments.
        num_adapters: weights of adapters beside the model, which alone learn; 0: all of it learns.
    Raises:
        ConfigError: not even one fits into memory.
    """
    if asked is not None:
        return MicroBatch(min(asked, windows), "as asked")
    available = available_bytes(device)
    most = max(1, _MOST_TOKENS.get(device.type, 8192) // cfg.context_length)
    reason = f"{most * cfg.context_length:,} tokens at once keep the device busy"
    if available is not None:
        available //= num_sharing
        fitting = _fitting(cfg, available, precision, checkpointing, num_shards, num_adapters)
        if fitting < 1:
            raise ConfigError(
                f"one window of {cfg.context_length:,} tokens and the model's weights, gradients "
                f"and moments need more than the {available / 1e9:.1f} GB that are free: take a "
                "smaller model or a shorter context, or set activation_checkpointing=true; "
                "micro_batch=1 tries it all the same"
            )
        if fitting < most:
            most = fitting
            reason = f"more would not fit into the {available / 1e9:.1f} GB that are free"
    if windows <= most:
        return MicroBatch(windows, "the whole step fits into memory")
    return MicroBatch(_even(windows, most), reason)


def _fitting(
    cfg: GPTConfig,
    available: int,
    precision: Precision,
    checkpointing: bool,
    num_shards: int,
    num_adapters: int,
) -> int:
    """The most windows that memory has room for, beside the weights and what goes with them."""
    column = "float32" if precision.dtype == torch.float32 else "bfloat16"
    rows = {row.part: getattr(row, column) for row in training_memory(cfg)}
    kept = sum(rows.pop(part) for part in ("activations", "attention weights") if part in rows)
    # What it has for weights and moments is in the memory that is left unused.
    del rows[WORKING_PART], rows["total"]
    if num_adapters:  # What is frozen has neither gradients nor moments.
        rows |= {"adapters": 4 * num_adapters, "gradients": 4 * num_adapters}
        rows["AdamW's moments"] = 2 * rows["gradients"]
    if checkpointing:
        # Each block's input, and one block's activations while it is computed again.
        kept = kept // cfg.n_layers + 4 * cfg.n_layers * cfg.context_length * cfg.emb_dim
    room = _USED_SHARE * available - sum(rows.values()) / num_shards
    return int(room // ((1 + WORKING_SHARE[column]) * kept))


def _even(windows: int, most: int) -> int:
    """The largest divisor up to `most`, if it is not much less: equal batches compile once."""
    divisor = next(size for size in range(most, 0, -1) if windows % size == 0)
    if 2 * divisor > most:
        return divisor
    count = -(-windows // most)
    return -(-windows // count)
