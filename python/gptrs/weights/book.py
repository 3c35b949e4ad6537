"""OpenAI's GPT-2 weights into a GPTModel: a table of names, and the two cases a name cannot say.

    params                        GPTModel
    wte [V, D]                    tok_emb.weight [V, D], and out_head.weight
    blocks[i].attn.c_attn.w ──┬─► trf_blocks.i.att.W_query.weight      split in three,
              [D, 3 D]        ├─► trf_blocks.i.att.W_key.weight        each transposed:
                              └─► trf_blocks.i.att.W_value.weight      theirs is x @ w, ours w @ x

Reads and writes no files: `params` is the nested dict of NumPy arrays that the book's
`load_gpt2_params_from_tf_ckpt` returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from gptrs.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.floating[Any]]

# Theirs -> ours. The untied head is theirs too: GPT-2 multiplies by its embedding again.
_MODEL = {
    "wte": ("tok_emb.weight", "out_head.weight"),
    "wpe": ("pos_emb.weight",),
    "g": ("final_norm.scale",),
    "b": ("final_norm.shift",),
}
_BLOCK = {
    "ln_1.g": "norm1.scale",
    "ln_1.b": "norm1.shift",
    "attn.c_proj.w": "att.out_proj.weight",
    "attn.c_proj.b": "att.out_proj.bias",
    "ln_2.g": "norm2.scale",
    "ln_2.b": "norm2.shift",
    "mlp.c_fc.w": "ff.layers.0.weight",
    "mlp.c_fc.b": "ff.layers.0.bias",
    "mlp.c_proj.w": "ff.layers.2.weight",
    "mlp.c_proj.b": "ff.layers.2.bias",
}
_QKV = {"attn.c_attn.w": "att.{}.weight", "attn.c_attn.b": "att.{}.bias"}
_QKV_LAYERS = ("W_query", "W_key", "W_value")


def load_weights_into_gpt(gpt: nn.Module, params: Mapping[str, Any]) -> None:
    """Copies OpenAI's GPT-2 weights into `gpt`, in place, in the model's dtype and on its device.

    Args:
        gpt: a GPTModel, tied or not, with QKV biases if `params` has them. (Any module with the
            book's names will do.)
        params: "wte", "wpe", "g", "b" and "blocks", a list with one nested dict a block, as the
            book's loader of OpenAI's checkpoint gives them.

    Raises:
        ConfigError: arrays are missing, unexpected, of another shape or dtype, or not finite in the
            model's dtype; the message lists all of them, and the model is untouched.
    """
    targets: dict[str, Tensor] = dict(gpt.named_parameters(remove_duplicate=False))
    unfilled, unused = dict.fromkeys(targets), dict.fromkeys(_arrays(params))
    problems: list[str] = []
    copies: list[tuple[Tensor, Array]] = []
    for source, name, array in _pairs(params):
        unfilled.pop(name, None)
        unused.pop(source, None)
        problem = _problem(source, name, array, targets)
        if problem is None:
            copies.append((targets[name], array))
        else:
            problems.append(problem)
    if len(unfilled) == len(targets):
        problems.append(f"params has none of GPT-2's arrays; its keys are {list(params)[:8]}")
    else:
        problems += [f"{name} has nothing to load" for name in unfilled]
        problems += [f"{source} is unexpected" for source in unused]
    if problems:
        listed = "\n  ".join(dict.fromkeys(problems))
        raise ConfigError(f"the weights do not fit the model, which is untouched:\n  {listed}")
    with torch.no_grad():
        for target, array in copies:
            target.copy_(torch.tensor(array))


def _problem(source: str, name: str, array: Array, targets: Mapping[str, Tensor]) -> str | None:
    """Why `array` cannot become the parameter `name`; None if it can."""
    target = targets.get(name)
    if target is None and name.removesuffix("bias") + "weight" in targets:
        return (
            "attn.c_attn.b has QKV biases, and the model has none: build it with qkv_bias=True, "
            "as the presets gpt2-124m to gpt2-1558m do"
        )
    if target is None:
        return f"{source} gives {name}, which the model does not have"
    if array.dtype.kind != "f":
        return f"{source} has dtype {array.dtype}; it must be floating point"
    if array.shape != target.shape:
        return f"{name} is {list(target.shape)}, {source} gives {list(array.shape)}"
    if not _is_finite(array, target.dtype):
        return f"{source}: {name} has values that are not finite in {target.dtype}"
    return None


def _is_finite(array: Array, dtype: torch.dtype) -> bool:
    """Least and greatest carry whatever is not finite, or too large for `dtype`: nothing is copied.

    A million does not fit into float16.
    """
    extremes = torch.tensor([float(array.min()), float(array.max())], dtype=torch.float64)
    return bool(extremes.to(dtype).isfinite().all())


def _pairs(params: Mapping[str, Any]) -> Iterator[tuple[str, str, Array]]:
    """(their name, our name, the array as ours has it) of every array there is."""
    for theirs, names in _MODEL.items():
        if (array := _find(params, theirs)) is not None:
            for ours in names:
                yield theirs, ours, array
    for index, block in enumerate(params.get("blocks", ())):
        source, target = f"blocks[{index}].", f"trf_blocks.{index}."
        for theirs, ours in _BLOCK.items():
            if (array := _find(block, theirs)) is not None:
                yield source + theirs, target + ours, _transpose(array)
        for theirs, ours in _QKV.items():
            if (array := _find(block, theirs)) is not None:
                for layer, part in zip(_QKV_LAYERS, _split_qkv(array), strict=True):
                    yield source + theirs, target + ours.format(layer), _transpose(part)


def _transpose(array: Array) -> Array:
    """OpenAI multiplies x @ w, nn.Linear w @ x; biases and norms have nothing to transpose."""
    return array.T


def _split_qkv(array: Array) -> list[Array]:
    """Query, key and value lie side by side in the last dimension."""
    import numpy as np

    return np.array_split(array, 3, axis=-1)


def _arrays(tree: Any, path: str = "") -> Iterator[str]:
    """Where there are arrays, named as `_pairs` names them."""
    if isinstance(tree, Mapping):
        for key, node in tree.items():
            yield from _arrays(node, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, node in enumerate(tree):
            yield from _arrays(node, f"{path}[{index}]")
    elif hasattr(tree, "shape"):
        yield path


def _find(tree: Mapping[str, Any], path: str) -> Array | None:
    node: Any = tree
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    import numpy as np

    return np.asarray(node)
