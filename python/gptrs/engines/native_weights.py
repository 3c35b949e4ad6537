"""A GPTModel's weights as Rust reads them, where they lie; and which models it can compute.

GPTModel ── why_not_native: None ──► weights_of ─► Weights ─► _core.NativeModel
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gptrs.engines.decode_weights import Linear, Norm, why_not_stock
from gptrs.engines.vocabulary import why_two_sizes
from gptrs.model.gpt import GPTModel
from gptrs.model.layers import LayerNorm, TransformerBlock, is_stock
from gptrs.model.parts import parameters_of
from gptrs.model.positions import alibi_slopes

# D emb_dim, V vocab_size.

POSITIONS = frozenset({"learned", "sinusoidal", "rope", "alibi", "none"})
"""The kinds of `GPTConfig.pos` that Rust computes."""
DTYPES = (torch.float32, torch.bfloat16)
"""Of weights that are read where they lie."""


class Block(NamedTuple):
    """One transformer block."""

    norm1: Norm
    query: Linear
    key: Linear
    value: Linear
    scale: float
    """Of the attention scores."""
    out: Linear
    norm2: Norm
    up: Linear
    down: Linear


class Weights(NamedTuple):
    """What Rust reads: tensors over the parameters' own memory, which nobody can resize."""

    tokens: Tensor
    """[V, D]."""
    positions: str
    """One of POSITIONS."""
    table: Tensor | None
    """[context_length, D], where positions are learned."""
    slopes: list[float]
    """One a head, where positions are "alibi"."""
    num_heads: int
    blocks: list[Block]
    norm: Norm
    """The last one."""
    head: Linear
    """[V, D]."""


def why_not_native(model: nn.Module) -> str | None:
    """Why Rust would not compute what calling `model` does, or None."""
    if type(model) is not GPTModel:
        return f"{type(model).__name__} is not GPTModel itself"
    if model.cfg.memory_length:
        return "the model has a memory of earlier segments"
    if model.cfg.pos not in POSITIONS:
        return f"positions are {model.cfg.pos}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if torch_module._has_any_global_hook():
        return "a hook waits on all modules"
    if not is_stock(model.out_head, nn.Linear):
        return "the output layer was replaced"
    return why_two_sizes(model) or why_not_stock(model) or _why_not_readable(model)


def _why_not_readable(model: GPTModel) -> str | None:
    """Why the parameters cannot be read where they lie."""
    for parameter in parameters_of(model):
        if (reason := _why_not_read(parameter)) is not None:
            name = next(name for name, each in model.named_parameters() if each is parameter)
            return f"{name} is {reason}"
    return None


def _why_not_read(parameter: Tensor) -> str | None:
    if type(parameter) not in (nn.Parameter, Tensor):
        return f"a {type(parameter).__name__}"
    if parameter.device.type != "cpu":
        return f"on {parameter.device}"
    if parameter.dtype not in DTYPES:
        return short(parameter.dtype)
    if parameter.layout != torch.strided or not parameter.is_contiguous():
        return "not contiguous"
    if parameter.data_ptr() % parameter.element_size():
        return "not aligned"
    return None


def weights_of(model: GPTModel) -> Weights:
    """The weights of a model that `why_not_native` has nothing against."""
    is_alibi = model.cfg.pos == "alibi"
    table = model.pos_emb.weight if isinstance(model.pos_emb, nn.Embedding) else None
    return Weights(
        tokens=_fixed(model.tok_emb.weight),
        positions=model.cfg.pos,
        table=None if table is None else _fixed(table),
        slopes=alibi_slopes(model.cfg.n_heads).tolist() if is_alibi else [],
        num_heads=model.cfg.n_heads,
        blocks=[_block(cast(TransformerBlock, block)) for block in model.trf_blocks],
        norm=_norm(model.final_norm),
        head=_linear(model.out_head),
    )


def matrix_names(model: GPTModel) -> list[str]:
    """The parameters that int8 packs, in the order in which Rust has them."""
    layers = (
        "att.W_query",
        "att.W_key",
        "att.W_value",
        "att.out_proj",
        "ff.layers.0",
        "ff.layers.2",
    )
    numbers = range(len(model.trf_blocks))
    names = [f"trf_blocks.{number}.{layer}.weight" for number in numbers for layer in layers]
    return [*names, "out_head.weight"]


def _block(block: TransformerBlock) -> Block:
    att = block.att
    up, _, down = cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(block.ff.layers))
    return Block(
        norm1=_norm(block.norm1),
        query=_linear(att.W_query),
        key=_linear(att.W_key),
        value=_linear(att.W_value),
        scale=att.scale,
        out=_linear(att.out_proj),
        norm2=_norm(block.norm2),
        up=_linear(up),
        down=_linear(down),
    )


def _linear(layer: nn.Linear) -> Linear:
    bias: Tensor | None = layer.bias  # nn.Linear says that it has one.
    return Linear(_fixed(layer.weight), None if bias is None else _fixed(bias))


def _norm(layer: LayerNorm) -> Norm:
    return Norm(_fixed(layer.scale), _fixed(layer.shift), layer.eps)


def _fixed(parameter: Tensor) -> Tensor:
    """A tensor over a parameter's memory, whatever becomes of the parameter.

    Once NumPy has seen a storage, PyTorch refuses to resize or free it: Rust never reads what is no
    longer there. Moving a model replaces its storages, which is not concerned.
    """
    fixed = parameter.detach()
    fixed.view(torch.int16).numpy()
    return fixed


def short(dtype: torch.dtype) -> str:
    """Its name alone."""
    return str(dtype).removeprefix("torch.")
