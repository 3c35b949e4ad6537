"""A model's modules and parameters, for those who look before every call.

PyTorch's own walks take several times as long: they make a name for everything on their way.
"""

from __future__ import annotations

from torch import nn


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module once, the model first: those of `model.modules()`, level by level."""
    found = [model]
    seen = {id(model)}
    for module in found:
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter once: those of `model.parameters()`, level by level."""
    own = (module._parameters.values() for module in modules_of(model))
    held = (parameter for values in own for parameter in values if parameter is not None)
    return list({id(parameter): parameter for parameter in held}.values())
