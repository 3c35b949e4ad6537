"""LoRA (Hu et al. 2021): a frozen layer learns through two thin matrices beside it.

    x ─┬─► weight, bias: frozen ─────────────────────────────────► + ─► y
       └─► dropout ─► lora_A [rank, in] ─► lora_B [out, rank] ─► * alpha / rank

lora_B starts at zero, so nothing changes before the first step. A layer keeps its name and its
`weight` and `bias`; `lora_A` and `lora_B` come beside them. Works with any module's `nn.Linear`s:
the fused and native paths step aside, since such a layer is no plain `nn.Linear`.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.errors import CheckpointError, ConfigError
from gptrs.model.linear import Linear, is_plain
from gptrs.model.lora_base import ADAPTER_PARTS, described_base, differs_from
from gptrs.model.lora_base import base_fingerprint as base_fingerprint
from gptrs.tensor_folder import read_folder, write_folder

STEM = "lora"
"""`save_lora` writes lora.json, and the tensors beside it."""
ATTENTION_TARGETS = ("W_query", "W_value")
"""What the paper adapts (section 7.1): these two for a given number of parameters."""
ALL_TARGETS = "all"
"""Every layer, as the book adapts them."""

Model = TypeVar("Model", bound=nn.Module)

_BLOCK = re.compile(r"^.*?\.\d+\.")


class LoRALinear(Linear):
    """`linear`, whose parameters it takes over and freezes, plus `lora_B @ lora_A * alpha / rank`.

    Attributes:
        lora_A: [rank, in_features], drawn as nn.Linear draws its weights, from torch's generator.
        lora_B: [out_features, rank], zeros.
        scaling: alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(linear.training)

    @property
    def adapters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """lora_A and lora_B."""
        return self.lora_A, self.lora_B

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's name
        """[..., in_features] to [..., out_features]."""
        low_rank = F.linear(self.dropout(input), self.lora_A)
        return super().forward(input) + F.linear(low_rank, self.lora_B) * self.scaling

    def merged(self) -> nn.Linear:
        """A plain layer that computes the same as this one does without dropout, to rounding."""
        linear = Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        with torch.no_grad():
            added = self.lora_B.double() @ self.lora_A.double() * self.scaling
            weight = (self.weight.double() + added).to(self.weight.dtype)
        linear.weight, linear.bias = nn.Parameter(weight), self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha}"


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    targets: str | Iterable[str] = ATTENTION_TARGETS,
    dropout: float = 0.0,
) -> list[str]:
    """Freezes `model` and puts a `LoRALinear` in the place of each layer that `targets` name.

    >>> model = GPTModel.from_pretrained("gpt2")
    >>> add_lora(model, rank=8, alpha=16)
    >>> trained = [p for p in model.parameters() if p.requires_grad]  # 0.24% of the model's

    Args:
        rank: of what is learned, and with it how much; 1 or more.
        alpha: what is learned is multiplied by alpha / rank.
        targets: layers by the ends of their paths: "W_query" is that of every block,
            "trf_blocks.0.att.W_query" the first's alone, "ff.layers.0" and "out_head" work too.
            "all" is every nn.Linear, as in the book: its LinearWithLoRA computes the same of the
            same A and B, where alpha here is alpha there times rank.
        dropout: of what goes into lora_A while training.
    Returns:
        The paths of the replaced layers.
    Raises:
        ConfigError: a target is no nn.Linear of this model (the message lists those there are), or
            it shares its weight with another layer; the model has LoRA layers already; a number is
            impossible. The model is unchanged.
    """
    _check_numbers(rank, alpha, dropout)
    names = _target_names(model, [targets] if isinstance(targets, str) else list(targets))
    _replace_all(model, names, rank, alpha, dropout)
    return names


def merge_lora(model: nn.Module) -> None:
    """Adds what was learned to the weights: every LoRA layer becomes a plain `nn.Linear`.

    The model computes the same, to rounding, and all its parameters require a gradient again.

    Raises:
        ConfigError: the model has no LoRA layers.
    """
    for name, layer in _lora_layers(model):
        _put(model, name, layer.merged())
    model.requires_grad_(True)


def merged_copy(model: Model) -> Model:
    """A plain model that computes the same, to rounding; `model` goes on learning as it is.

    Shares all weights with it but those of the layers that have adapters: it is for saving or for
    reading, before `model` learns further or is merged itself.

    Raises:
        ConfigError: the model has no LoRA layers.
    """
    adapters = {id(part) for _, layer in _lora_layers(model) for part in layer.adapters}
    shared = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
        if id(parameter) not in adapters
    }
    plain = copy.deepcopy(model, shared)
    merge_lora(plain)
    return plain


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, `...lora_A` and `...lora_B` by their paths; the model's own tensors.

    Raises:
        ConfigError: the model has no LoRA layers.
    """
    return {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in _lora_layers(model)
        for part in ADAPTER_PARTS
    }


def load_lora_state_dict(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a model's adapters the values that `lora_state_dict` had.

    Raises:
        ConfigError: the model has no LoRA layers.
        CheckpointError: adapters are missing, unexpected or of another shape; the message lists
            all of them. Nothing was changed.
    """
    own = lora_state_dict(model)
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    if problems := [*_misshapen(tensors, shapes)]:
        raise CheckpointError("these are not the model's adapters:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def save_lora(
    model: nn.Module, directory: str | os.PathLike[str], *, fingerprint: str | None = None
) -> None:
    """Writes the adapters, and nothing of the model beside them, to `directory`.

    Args:
        fingerprint: the model's `base_fingerprint`, if it is known already: it is computed else.
    Raises:
        ConfigError: the model has no LoRA layers.
        CheckpointError: the folder cannot be written; what was there before still is.
    """
    layers = dict(_lora_layers(model))
    name, first = next(iter(layers.items()))
    content = {
        "rank": first.rank,
        "alpha": first.alpha,
        "dropout": first.dropout.p,
        "layers": list(layers),
        "base": described_base(model, name, fingerprint),
    }
    write_folder(Path(directory), STEM, content, lora_state_dict(model))


def load_lora(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Adds the adapters in `directory` to the model that they were trained on, as `add_lora` does.

    Raises:
        CheckpointError: there are none, or they are damaged or those of another model: its layers
            or their shapes differ, or a bit of its weights does (in another dtype than theirs:
            more than rounding). The model is unchanged.
        ConfigError: the model has LoRA layers already.
    """
    directory = Path(directory)
    content, tensors = read_folder(directory, STEM)
    try:
        names: list[str] = list(content["layers"])
        numbers = content["rank"], content["alpha"], content["dropout"]
        _check_numbers(*numbers)
        base = {key: content["base"][key] for key in ("layer", "first_numbers")} | content["base"]
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{directory}: damaged: {STEM}.json: {error!r}") from error
    _refuse_twice(model)
    if problems := [*_misfits(model, names, numbers[0], tensors, base)]:
        listed = "\n  ".join(problems)
        raise CheckpointError(f"{directory}: these are another model's adapters:\n  {listed}")
    _replace_all(model, names, *numbers)
    load_lora_state_dict(model, tensors)


def has_lora(model: nn.Module) -> bool:
    """Whether any layer is a `LoRALinear`."""
    return any(isinstance(module, LoRALinear) for module in model.modules())


def num_adapter_weights(model: nn.Module) -> int:
    """The weights that learn beside a frozen model; 0 where it has no `LoRALinear`."""
    if not has_lora(model):
        return 0
    return sum(weights.numel() for weights in model.parameters() if weights.requires_grad)


def _check_numbers(rank: Any, alpha: Any, dropout: Any) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"rank is {rank!r}; it must be an int, 1 or more")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ConfigError(f"alpha is {alpha!r}; it must be a number above 0")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"dropout is {dropout!r}; it must be a number, 0 <= dropout < 1")


def _target_names(model: nn.Module, targets: list[str]) -> list[str]:
    """The paths of the layers that the targets name, in the model's order."""
    _refuse_twice(model)
    linears = {name: m for name, m in model.named_modules() if is_plain(m) and name}
    if ALL_TARGETS in targets:
        targets = list(linears)
    if not targets:
        raise ConfigError(f"targets name no layer; there are {_known(linears)}")
    for target in targets:
        if not any(_is_meant(name, target) for name in linears):
            raise ConfigError(
                f"target {target!r} is no nn.Linear of this model; there are {_known(linears)}"
            )
    names = [name for name in linears if any(_is_meant(name, target) for target in targets)]
    for name in names:
        _refuse_shared(model, name, linears[name].weight)
    return names


def _is_meant(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _known(names: Iterable[str]) -> str:
    """The targets there are: of all blocks' layers, each once."""
    return ", ".join(dict.fromkeys(_BLOCK.sub("", name) for name in names)) or "none"


def _refuse_twice(model: nn.Module) -> None:
    if has_lora(model):
        raise ConfigError("the model has LoRA layers already: merge_lora makes them plain again")


def _refuse_shared(model: nn.Module, name: str, weight: Tensor) -> None:
    """A merged layer would change, or leave behind, the other that has the same tensor."""
    paths = [path for path, tensor in model.named_parameters(remove_duplicate=False)
             if tensor is weight and path != f"{name}.weight"]  # fmt: skip
    if paths:
        raise ConfigError(f"{name} shares its weight with {paths[0]}: it cannot have LoRA")


def _replace_all(
    model: nn.Module, names: list[str], rank: int, alpha: float, dropout: float
) -> None:
    model.requires_grad_(False)
    for name in names:
        linear: Any = model.get_submodule(name)
        _put(model, name, LoRALinear(linear, rank, alpha, dropout))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear)]
    if not layers:
        raise ConfigError("the model has no LoRA layers: add_lora makes some")
    yield from layers


def _misfits(
    model: nn.Module,
    names: list[str],
    rank: int,
    tensors: Mapping[str, Tensor],
    base: Mapping[str, Any],
) -> Iterator[str]:
    """Why saved adapters are not this model's."""
    modules = dict(model.named_modules())
    expected: dict[str, list[int]] = {}
    for name in names:
        module = modules.get(name)
        if not is_plain(module):
            yield f"the model has no nn.Linear {name}"
            continue
        expected[f"{name}.lora_A"] = [rank, module.in_features]
        expected[f"{name}.lora_B"] = [module.out_features, rank]
    yield from _misshapen(tensors, expected)
    if is_plain(modules.get(base["layer"])) and (why := differs_from(model, base)):
        yield why


def _misshapen(tensors: Mapping[str, Tensor], expected: Mapping[str, list[int]]) -> Iterator[str]:
    """Which tensors are missing, or not of the shape that the model needs; which are too many."""
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name, shape in expected.items():
        if found.get(name) != shape:
            yield f"{name} is {found.get(name, 'missing')}, and the model needs {shape}"
    for name in sorted(found.keys() - expected.keys()):
        yield f"{name} is not the model's"
