"""A GPTModel's weights as the fused forward pass reads them, for as long as they are the model's.

    GPTModel ── every layer stock, no hooks ──► DecodeWeights: tensors, query, key and value in one
             └─ anything else ────────────────► None: call the layers

Float32 weights are the model's own tensors; only what is fused, or wanted in another dtype, is a
copy. Copies are kept with the model and made again once it changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from gptrs.model.facts import samples_of
from gptrs.model.gpt import GPTModel
from gptrs.model.layers import (
    GELU,
    FeedForward,
    LayerNorm,
    MultiHeadAttention,
    TransformerBlock,
    is_stock,
    stock_class,
)
from gptrs.model.parts import modules_of, parameters_of
from gptrs.model.positions import AlibiBias, SinusoidalEmbedding, T5Bias

# D emb_dim, V vocab_size.

_Expected = tuple[nn.Module | None, type | None]

_NOTHING = type(None)
_FUSED_KINDS: dict[str, tuple[type, type]] = {
    "learned": (nn.Embedding, _NOTHING),
    "sinusoidal": (SinusoidalEmbedding, _NOTHING),
    "rope": (_NOTHING, _NOTHING),
    "alibi": (_NOTHING, AlibiBias),
    "t5": (_NOTHING, T5Bias),
    "none": (_NOTHING, _NOTHING),
}
"""What `pos_emb` and `pos_bias` are where all that depends on places is known before the layers."""


class Linear(NamedTuple):
    """`x @ weight.T + bias`."""

    weight: Tensor
    """[out, in]."""
    bias: Tensor | None
    """[out]."""


class Norm(NamedTuple):
    """A layer norm's parameters."""

    scale: Tensor
    """[D]."""
    shift: Tensor
    """[D]."""
    eps: float


class Layer(NamedTuple):
    """One transformer block."""

    norm1: Norm
    qkv: Linear
    """[3 * D, D]: the query's rows, then the key's, then the value's."""
    scale: float | None
    """Of the attention scores; None: 1 / sqrt(head_dim), which PyTorch need not be told."""
    out: Linear
    norm2: Norm
    up: Linear
    down: Linear


class DecodeWeights:
    """All weights of one model in one dtype.

    Attributes:
        dtype: of all but the embedding tables.
        tokens, positions: the embedding tables, in the model's own dtype: few rows are read. The
            model may know places otherwise, and have no table of positions.
        embedding_dtype: the wider of theirs and `dtype`.
        sinusoids, bias: the model's own modules, where it has them.
        rotated_dim: the width of the heads, where queries and keys are turned.
        layers: the blocks.
        norm: the last layer norm.
        head: the output layer; None: somebody's own, to be called.
    """

    def __init__(self, model: GPTModel, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.tokens: Tensor = model.tok_emb.weight
        pos_emb = model.pos_emb
        self.positions = pos_emb.weight if isinstance(pos_emb, nn.Embedding) else None
        self.sinusoids = pos_emb if isinstance(pos_emb, SinusoidalEmbedding) else None
        self.bias = model.pos_bias
        self.rotated_dim = model.cfg.head_dim if model.cfg.pos == "rope" else None
        self.embedding_dtype = torch.promote_types(dtype, self.tokens.dtype)
        self._copied: list[Tensor] = []
        blocks: Any = model.trf_blocks
        with torch.no_grad(), torch.inference_mode(False):
            self.layers = [self._layer(block, dtype) for block in blocks]
            self.norm = self._norm(model.final_norm, dtype)
            self.head = self._linear(dtype, model.out_head) if _is_stock_head(model) else None
        self._watch = Watch(model)
        self._addresses = list(map(Tensor.data_ptr, self._copied))
        # Inference tensors do not count how often they were written.
        self._counted = [tensor for tensor in self._copied if not tensor.is_inference()]
        self._versions = list(map(_version, self._counted))
        self._samples = samples_of(self._copied)

    @staticmethod
    def of(model: GPTModel, dtype: torch.dtype) -> DecodeWeights | None:
        """The weights of `model`, as they are now. None where a layer must be called instead."""
        known = _KNOWN.setdefault(model, {})
        weights = known.get(dtype)
        if weights is not None and weights.is_current(thoroughly=True):
            return weights
        known.pop(dtype, None)  # The copies go before others are made.
        if not has_stock_layers(model):
            return None
        known[dtype] = DecodeWeights(model, dtype)
        return known[dtype]

    def is_current(self, *, thoroughly: bool = False) -> bool:
        """Whether the model's layers are the same and its tensors unchanged.

        Takes microseconds, for every step. What is written through `parameter.data` leaves no trace
        in PyTorch's version counters: `thoroughly` compares a sample of the numbers as well.
        """
        return (
            self._watch.sees_no_change()
            and list(map(Tensor.data_ptr, self._copied)) == self._addresses
            and list(map(_version, self._counted)) == self._versions
            and not (thoroughly and self._watch.sees_other_code())
            and not (thoroughly and not np.array_equal(samples_of(self._copied), self._samples))
        )

    def _layer(self, block: TransformerBlock, dtype: torch.dtype) -> Layer:
        att = block.att
        up, _, down = cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(block.ff.layers))
        return Layer(
            self._norm(block.norm1, dtype),
            self._linear(dtype, att.W_query, att.W_key, att.W_value),
            None if att.scale == 1 / math.sqrt(att.head_dim) else att.scale,
            self._linear(dtype, att.out_proj),
            self._norm(block.norm2, dtype),
            self._linear(dtype, up),
            self._linear(dtype, down),
        )

    def _linear(self, dtype: torch.dtype, *parts: nn.Linear) -> Linear:
        """One or several linear layers of the same input, their rows one below the other."""
        weight = self._joined([part.weight for part in parts], dtype)
        biases: list[Tensor | None] = [part.bias for part in parts]
        if not any(bias is not None for bias in biases):
            return Linear(weight, None)
        # Where one of several has none, it is 0.
        filled = (
            part.weight.new_zeros(part.out_features) if bias is None else bias
            for part, bias in zip(parts, biases, strict=True)
        )
        return Linear(weight, self._joined(list(filled), dtype))

    def _norm(self, norm: LayerNorm, dtype: torch.dtype) -> Norm:
        return Norm(self._joined([norm.scale], dtype), self._joined([norm.shift], dtype), norm.eps)

    def _joined(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        if len(parts) == 1 and parts[0].dtype == dtype:
            # Not detached: whatever is assigned to its `data` is seen.
            return parts[0]
        self._copied.extend(parts)
        return torch.cat([part.detach().to(dtype) for part in parts])


_KNOWN: WeakKeyDictionary[GPTModel, dict[torch.dtype, DecodeWeights]] = WeakKeyDictionary()


def has_stock_layers(model: GPTModel) -> bool:
    """Whether every layer before the output layer is just what the fused pass computes."""
    return why_not_stock(model) is None


def why_not_stock(model: GPTModel) -> str | None:
    """Why reading the weights would not be calling every layer before the output layer, or None."""
    if model.cfg.pos not in _FUSED_KINDS:
        return f"positions are {model.cfg.pos}"
    blocks: list[Any] = list(model.trf_blocks)
    embedding, bias = _FUSED_KINDS[model.cfg.pos]
    outer: list[_Expected] = [
        (model, GPTModel),
        (model.tok_emb, nn.Embedding),
        (model.pos_emb, embedding),
        (model.pos_bias, bias),
        (model.drop_emb, nn.Dropout),
        (model.trf_blocks, nn.Sequential),
        (model.final_norm, LayerNorm),
    ]
    for module, kind in chain(outer, *map(_expected_in, blocks)):
        if not (kind is _NOTHING if module is None else kind and is_stock(module, kind)):
            return _difference(model, module, kind)
    if any(block.att.num_heads != model.cfg.n_heads for block in blocks):
        return "a block has another number of heads than the config"
    if not (model.tok_emb.max_norm is None and getattr(model.pos_emb, "max_norm", None) is None):
        return "an embedding has a max_norm"
    if any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in modules_of(model)):
        return "dropout is on"
    kinds = {(p.dtype, p.device) for p in parameters_of(model)}
    if len(kinds) == 1:
        return None
    names = sorted(f"{dtype} on {device}".removeprefix("torch.") for dtype, device in kinds)
    return f"its weights are {' and '.join(names)}"


def _difference(model: GPTModel, module: nn.Module | None, kind: type | None) -> str:
    """What is not stock about a module that should be a `kind`, and where it is."""
    expected = "nothing" if kind in (None, _NOTHING) else kind.__name__
    if module is None:
        return f"a {expected} is missing"
    where = next(name for name, each in model.named_modules() if each is module) or "the model"
    if stock_class(module) is not kind:
        return f"{type(module).__name__} stands in the place of {expected} at {where}"
    if "forward" in vars(module):
        return f"{where} has a forward of its own"
    return f"a hook waits on {where}"


def _expected_in(block: Any) -> Iterator[_Expected]:
    """The parts of a block, each beside the class that it must have."""
    yield block, TransformerBlock
    yield from ((block.att, MultiHeadAttention), (block.ff, FeedForward))
    yield from ((block.norm1, LayerNorm), (block.norm2, LayerNorm), (block.drop_resid, nn.Dropout))
    # Whoever is asked for these has passed as stock, above.
    att, layers = block.att, block.ff.layers
    yield att.positions, _NOTHING
    yield from ((linear, nn.Linear) for linear in (att.W_query, att.W_key, att.W_value))
    yield from ((att.out_proj, nn.Linear), (att.dropout, nn.Dropout), (layers, nn.Sequential))
    classes = (nn.Linear, GELU, nn.Linear)
    # In a Sequential of another length one is missing, or one too many.
    yield from zip_longest(layers, classes)


def _is_stock_head(model: GPTModel) -> bool:
    return is_stock(model.out_head, nn.Linear)


class Watch:
    """Sees whether a module was replaced, hooked, given another parameter or a dropout turned on.

    Asked at every step, so it looks at dictionaries prepared once: nn.Module's own look-ups would
    take longer than a small model's step.
    """

    def __init__(self, model: GPTModel) -> None:
        # Not the model itself, nor its own dictionary: it could never be freed.
        inner = modules_of(model)[1:]
        every = (model, *inner)
        holders = [dict_ for m in every for dict_ in (m._modules, m._parameters) if dict_]
        held = [(dict_, name, value) for dict_ in holders for name, value in dict_.items()]
        self._owners, self._names, self._values = zip(*held, strict=True)
        hooks = [dict_ for m in every for dict_ in (m._forward_hooks, m._forward_pre_hooks)]
        # A child or a hook that is added makes one of these longer.
        self._dicts: list[Any] = [*holders, *hooks]
        self._lengths = list(map(len, self._dicts))
        self._dropouts = [m for m in inner if isinstance(m, nn.Dropout) and m.p > 0]
        self._inner = inner
        self._code = _code(inner)

    def sees_no_change(self) -> bool:
        """Whether the modules, their parameters, hooks and dropouts are as they were."""
        return (
            list(map(len, self._dicts)) == self._lengths
            and all(map(is_, map(dict.get, self._owners, self._names), self._values))
            and not any(module.training for module in self._dropouts)
        )

    def sees_other_code(self) -> bool:
        """Whether a module was given another class, a `forward` of its own or other constants."""
        return _code(self._inner) != self._code


def _code(modules: list[nn.Module]) -> list[tuple[Any, ...]]:
    own = ((type(module), vars(module)) for module in modules)
    return [(kind, "forward" in has, has.get("scale"), has.get("eps")) for kind, has in own]


_version = attrgetter("_version")
