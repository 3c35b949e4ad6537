"""The states of all random number generators that a training run may draw from, kept exactly.

torch's, one a GPU included, are tensors; Python's and NumPy's are JSON.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PREFIX = "random"


def random_tensors(rank: int, device: torch.device) -> dict[str, Tensor]:
    """The states of torch, uint8, by names of this rank."""
    states = {f"{_PREFIX}.{rank}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{_PREFIX}.{rank}.cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states[f"{_PREFIX}.{rank}.mps"] = torch.mps.get_rng_state()
    return states


def random_numbers() -> dict[str, Any]:
    """Python's and NumPy's states."""
    version, words, gauss = random.getstate()
    numpy_state: dict[str, Any] = dict(np.random.get_state(legacy=False))  # noqa: NPY002
    key = numpy_state["state"]
    numpy_state["state"] = {"key": [int(word) for word in key["key"]], "pos": int(key["pos"])}
    return {"python": [version, list(words), gauss], "numpy": numpy_state}


def restore_random(
    tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], rank: int, device: torch.device
) -> None:
    """Puts all generators where they were; those that were not there then stay."""
    states = {
        name.removeprefix(f"{_PREFIX}.{rank}."): tensors[name]
        for name in tensors
        if name.startswith(f"{_PREFIX}.{rank}.")
    }
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
    _restore_numbers(numbers)


@contextmanager
def own_random(seed: int, device: torch.device) -> Iterator[None]:
    """All generators start from `seed`; afterwards they are as they were before."""
    numbers, devices = random_numbers(), [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002
        try:
            yield
        finally:
            _restore_numbers(numbers)


def is_random_state(name: str) -> bool:
    """Whether a tensor of a checkpoint is one of these, not the optimizer's."""
    return name.startswith(f"{_PREFIX}.")


def _restore_numbers(numbers: Mapping[str, Any]) -> None:
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_state = dict(numbers["numpy"])
    key = numpy_state["state"]
    numpy_state["state"] = {"key": np.array(key["key"], dtype=np.uint32), "pos": key["pos"]}
    np.random.set_state(numpy_state)  # noqa: NPY002
