"""Which device a run uses, what its matmuls compute in, and why: a run prints and records it."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from gptrs.errors import ConfigError


class Precision(NamedTuple):
    """What matmuls compute in. Weights and sums stay float32, but for a pure one's weights."""

    dtype: torch.dtype
    reason: str
    is_pure: bool = False
    """Whether the model's weights have the dtype themselves."""

    @property
    def name(self) -> str:
        """As a setting: "float32", "bfloat16", "pure-bfloat16"."""
        return "pure-" * self.is_pure + str(self.dtype).removeprefix("torch.")

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context to run a forward pass and its loss in."""
        if self.dtype == torch.float32 or self.is_pure:
            return nullcontext()
        return torch.autocast(device.type, self.dtype)


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: that device is unknown, or not available here.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_there in available.items() if is_there)
    if name not in available:
        raise ConfigError(f"unknown device {name!r}; there are auto, cpu, cuda and mps")
    if not available[name]:
        here = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError(f"device {name} is not available here; available: {here}")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision called `name` ("auto", "float32" or "bfloat16") for `device`.

    Raises:
        ConfigError: unknown name, or bfloat16 on a device that has none.
    """
    if name == "float32":
        return Precision(torch.float32, "as asked")
    if name == "bfloat16":
        if device.type == "mps":
            raise ConfigError("dtype bfloat16 is not supported on mps; use float32")
        return Precision(torch.bfloat16, "as asked")
    if name != "auto":
        raise ConfigError(f"unknown dtype {name!r}; there are auto, float32 and bfloat16")
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(torch.bfloat16, "the GPU multiplies it natively")
    if device.type == "cpu" and has_amx():
        return Precision(torch.bfloat16, "the processor has AMX")
    if device.type == "cpu":
        return Precision(torch.float32, "the processor has no AMX")
    return Precision(torch.float32, f"the safe choice on {device.type}")


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16."""
    # A private name of torch's: an answer of "no" costs speed, never correctness.
    detect = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(detect and detect())
