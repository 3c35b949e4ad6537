"""What GPT weights are called elsewhere, and how they lie there: tables, and two special cases.

    GPT-2's (transformers, OpenAI, nanoGPT)        ours, the book's
    wte.weight [V, D]                              tok_emb.weight [V, D]
    h.{}.attn.c_attn.weight [D, 3 D] ──┬─────────► trf_blocks.{}.att.W_query.weight  split in three,
       (nanoGPT: [3 D, D])             ├─────────► trf_blocks.{}.att.W_key.weight    and transposed:
                                       └─────────► trf_blocks.{}.att.W_value.weight  x @ w or w @ x
    att.qkv.weight [3 D, D], norm1.weight          the same, of the book's fast variant

Knows names and shapes, no files and no models.
"""

# D emb_dim, V vocab_size.

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_QKV_LAYERS = ("W_query", "W_key", "W_value")

# Theirs -> ours.
_GPT2_MODEL = {
    "wte.weight": "tok_emb.weight",
    "wpe.weight": "pos_emb.weight",
    "ln_f.weight": "final_norm.scale",
    "ln_f.bias": "final_norm.shift",
    "lm_head.weight": "out_head.weight",
}
_GPT2_BLOCK = {
    "ln_1.weight": "norm1.scale",
    "ln_1.bias": "norm1.shift",
    "attn.c_proj.weight": "att.out_proj.weight",
    "attn.c_proj.bias": "att.out_proj.bias",
    "ln_2.weight": "norm2.scale",
    "ln_2.bias": "norm2.shift",
    "mlp.c_fc.weight": "ff.layers.0.weight",
    "mlp.c_fc.bias": "ff.layers.0.bias",
    "mlp.c_proj.weight": "ff.layers.2.weight",
    "mlp.c_proj.bias": "ff.layers.2.bias",
}
_GPT2_QKV = "attn.c_attn"
# Of the book's fast variant; all its other names are the book's.
_FAST = {
    "final_norm.weight": "final_norm.scale",
    "final_norm.bias": "final_norm.shift",
}
_FAST_BLOCK = {
    "norm1.weight": "norm1.scale",
    "norm1.bias": "norm1.shift",
    "norm2.weight": "norm2.scale",
    "norm2.bias": "norm2.shift",
    "att.proj.weight": "att.out_proj.weight",
    "att.proj.bias": "att.out_proj.bias",
}
_FAST_QKV = "att.qkv"

_BLOCK = re.compile(r"(?:h|trf_blocks)\.(\d+)\.(.+)")
# Causal masks, which every one of these models can make anew.
_MASK = re.compile(r"(?:h\.\d+\.attn\.(?:bias|masked_bias)|trf_blocks\.\d+\.att\.mask)")


class Source(NamedTuple):
    """Where one of our tensors comes from."""

    name: str
    part: int | None = None
    """0, 1, 2: the query's, key's or value's third."""
    is_transposed: bool = False
    """Stored as [in, out], for x @ w, as transformers' Conv1D does."""

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that we get out of a tensor that is stored as `stored`."""
        shape = stored[::-1] if self.is_transposed else stored
        if self.part is None or not shape:
            return shape
        return (shape[0] // 3 if shape[0] % 3 == 0 else shape[0], *shape[1:])

    def take(self, stored: Tensor) -> Tensor:
        """Our tensor: a view of the stored one."""
        tensor = _transpose(stored) if self.is_transposed else stored
        return tensor if self.part is None else _split_qkv(tensor)[self.part]


class Recipe(NamedTuple):
    """How a file's names become ours."""

    sources: dict[str, Source]
    """Our names, and what each is made of. A name that means nothing here stays as it is."""
    has_biases: bool
    """nanoGPT can leave out every bias, which is as good as zeros."""


def recipe_for(shapes: Mapping[str, tuple[int, ...]]) -> Recipe | None:
    """How these tensors become ours; None where they are no GPT-2's nor the book's."""
    plain = [(_plain(name), name) for name in shapes]
    shorts = {short for short, _ in plain}
    if "wte.weight" in shorts:
        table, qkv = _GPT2_MODEL | _of_blocks(shorts, _GPT2_BLOCK, "h."), _GPT2_QKV
    elif "tok_emb.weight" in shorts:
        table, qkv = _FAST | _of_blocks(shorts, _FAST_BLOCK, "trf_blocks."), _FAST_QKV
    else:
        return None
    learned = [(short, name) for short, name in plain if not _MASK.fullmatch(short)]
    conv1d = _is_conv1d(shapes[name] for short, name in learned if _GPT2_QKV in short)
    sources: dict[str, Source] = {}
    for short, name in learned:
        is_transposed = conv1d and short.startswith("h.") and len(shapes[name]) == 2
        if f".{qkv}." not in short:
            ours = table.get(short, short)
            # Two names of one tensor of ours: the second is one too many.
            sources[name if ours in sources else ours] = Source(name, None, is_transposed)
            continue
        for part, layer in enumerate(_QKV_LAYERS):
            ours = re.sub(r"^h\.", "trf_blocks.", short).replace(qkv, f"att.{layer}")
            sources[ours] = Source(name, part, is_transposed)
    return Recipe(
        sources, has_biases=any(name.endswith((".bias", ".shift")) for name, _ in learned)
    )


def to_gpt2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The book's tensors as transformers' `GPT2LMHeadModel` names and stores them.

    Copies, but for what needs no change. Where the query, key and value layers have no bias, theirs
    is zeros.

    Raises:
        KeyError: a tensor that GPT-2 has is not there, or GPT-2 has none of this name.
    """
    left = dict(state_dict)
    tensors = {_prefixed(name): left.pop(ours).contiguous() for name, ours in _GPT2_MODEL.items()}
    num_blocks = 1 + max(int(match[1]) for match in map(_BLOCK.match, state_dict) if match)
    for index in range(num_blocks):
        theirs, ours = f"h.{index}.", f"trf_blocks.{index}."
        for name, own in _GPT2_BLOCK.items():
            tensors[_prefixed(theirs + name)] = _transpose(left.pop(ours + own)).contiguous()
        weights = [left.pop(f"{ours}att.{layer}.weight") for layer in _QKV_LAYERS]
        zeros = weights[0].new_zeros(len(weights[0]))
        biases = [left.pop(f"{ours}att.{layer}.bias", zeros) for layer in _QKV_LAYERS]
        joined = _transpose(torch.cat(weights)).contiguous()
        tensors[_prefixed(f"{theirs}{_GPT2_QKV}.weight")] = joined
        tensors[_prefixed(f"{theirs}{_GPT2_QKV}.bias")] = torch.cat(biases)
    if left:
        raise KeyError(", ".join(left))
    return tensors


def _transpose(tensor: Tensor) -> Tensor:
    """nn.Linear computes x @ w.T, Conv1D x @ w; biases and norms have nothing to transpose."""
    return tensor.T if tensor.ndim == 2 else tensor


def _split_qkv(tensor: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value lie below each other, once `tensor` is as nn.Linear has it."""
    return tensor.chunk(3)


def _plain(name: str) -> str:
    """Without what torch.compile and transformers' outer class put before it."""
    return name.replace("_orig_mod.", "").removeprefix("transformer.")


def _prefixed(name: str) -> str:
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _of_blocks(names: Iterable[str], table: Mapping[str, str], prefix: str) -> dict[str, str]:
    blocks = {match[1] for match in map(_BLOCK.match, names) if match}
    return {
        f"{prefix}{block}.{theirs}": f"trf_blocks.{block}.{ours}"
        for block in blocks
        for theirs, ours in table.items()
    }


def _is_conv1d(shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether query, key and value lie side by side, [D, 3 D]. Square layers look alike in both."""
    return any(len(shape) == 2 and shape[1] == 3 * shape[0] for shape in shapes)
