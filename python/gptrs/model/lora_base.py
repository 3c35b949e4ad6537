"""By what the model beside its adapters is known again: a digest of its weights, and a few of them.

The digest sees every bit of what was frozen. It is of one dtype: where a model was loaded in
another, a layer's first numbers are compared, as exactly as both dtypes have them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER_PARTS = ("lora_A", "lora_B")
_SAMPLE_SIZE = 8


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters that are no adapters: names, dtypes, shapes and bits.

    The same before `add_lora` and after it, on every device. Takes about a second a gigabyte.
    """
    digest = hashlib.sha256()
    for name, parameter in _base_parameters(model).items():
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        content = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def described_base(model: nn.Module, layer: str, fingerprint: str | None) -> dict[str, Any]:
    """What is saved of the base beside the adapters.

    Args:
        layer: the path of the one that a few numbers are kept of.
        fingerprint: the model's, if it is known already.
    """
    parameters = _base_parameters(model)
    weight = parameters[f"{layer}.weight"]
    described = {"layer": layer, "first_numbers": _sample(weight), "dtype": str(weight.dtype)}
    # What learned beside the adapters is saved elsewhere, and need not be there yet when they are
    # loaded.
    if not any(parameter.requires_grad for parameter in parameters.values()):
        described["sha256"] = fingerprint or base_fingerprint(model)
    return described


def differs_from(model: nn.Module, described: Mapping[str, Any]) -> str | None:
    """Why `model`, which has that layer, is not the base that `described_base` described."""
    layer = described["layer"]
    weight = model.get_parameter(f"{layer}.weight")
    numbers = torch.tensor(_sample(weight)), torch.tensor(described["first_numbers"])
    # bfloat16 has 8 bits.
    if not torch.allclose(*numbers, rtol=0.01, atol=1e-6):
        return f"the weights of {layer} are not those that the adapters were trained beside"
    # Older files have no digest.
    if "sha256" in described and described.get("dtype") == str(weight.dtype):
        found, expected = base_fingerprint(model), described["sha256"]
        if found != expected:
            return (
                f"the weights have SHA-256 {found[:16]}..., and those that the adapters were "
                f"trained beside {expected[:16]}..."
            )
    return None


def _base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All but the adapters; a compiled module's have the names that they have without."""
    return {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
        if not name.endswith(ADAPTER_PARTS)
    }


def _sample(weight: Tensor) -> list[float]:
    sample: list[float] = weight.detach().flatten()[:_SAMPLE_SIZE].float().cpu().tolist()
    return sample
