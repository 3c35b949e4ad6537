"""A GPTModel made of the tensors in a file, one after the other.

    config ─► model on the meta device, with shapes only ─► every mismatch ─► filled part by part

Nothing is drawn, and no tensor exists twice: loading needs little more memory than the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError
from gptrs.memory import empty
from gptrs.model.gpt import GPTModel
from gptrs.weights.files import FLOATS, Entry, WeightFile
from gptrs.weights.names import Recipe, Source

# A part of the tensors is mapped at a time: this share of all, or one tensor if that is larger; of
# a large one, so many bytes.
_PARTS = 20
_LARGE_BYTES = 32 << 20


def filled_model(
    cfg: GPTConfig,
    file: WeightFile,
    recipe: Recipe,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> GPTModel:
    """A model of `cfg` with the tensors of `file`, in eval mode.

    Args:
        recipe: which tensors of ours are made of which in `file`.
        dtype: of all weights; default: the one of the file's that holds them all.
    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape or dtype, not finite, or
            two that should be one differ; the message lists all of them.
    """
    model = _unfilled(cfg)
    shapes = _shapes(model)
    sources = dict(recipe.sources)
    zeros = set() if recipe.has_biases else {n for n in shapes if n.endswith((".bias", ".shift"))}
    if problems := [*_mismatches(shapes, sources, zeros, file.entries)]:
        raise _misfit(file, problems)
    head = sources.pop("out_head.weight") if cfg.tie_embeddings else None
    dtype = dtype or _widest(file.entries[source.name].dtype for source in sources.values())
    tensors = {n: torch.zeros(shapes[n], dtype=dtype, device=device) for n in zeros - {*sources}}
    for ours, source, rows, stored in _stored(file, sources):
        if ours not in tensors:
            tensors[ours] = empty(shapes[ours], dtype, torch.device(device))
        tensors[ours][rows].copy_(source.take(stored))
        if not _is_finite(tensors[ours][rows]):
            problems.append(f"{source.name}: {ours} has values that are not finite in {dtype}")
    if head is not None and not _is_same(head, sources["tok_emb.weight"], file):
        other = sources["tok_emb.weight"].name
        problems.append(f"{head.name} is not {other}, and the model is to tie them")
    if problems:
        raise _misfit(file, problems)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def misfits(model: GPTModel) -> list[str]:
    """The tensors of `model` that a model of its config has not, or has in another shape.

    With LoRA's layers, or an output layer of somebody's own, it could not be loaded again.
    """
    expected, found = _shapes(_unfilled(model.cfg)), _shapes(model)
    return sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )


def _unfilled(cfg: GPTConfig) -> GPTModel:
    """Shapes without numbers."""
    with torch.device("meta"), _Undrawn():
        return GPTModel(cfg)


def _shapes(model: GPTModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


class _Undrawn(TorchFunctionMode):
    """Leaves out first weights: on the meta device, torch imports 170 MB of code to draw none."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _mismatches(
    shapes: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, Source],
    zeros: set[str],
    entries: Mapping[str, Entry],
) -> Iterator[str]:
    for ours, shape in shapes.items():
        if ours not in sources:
            if ours not in zeros:
                yield f"{ours} has nothing to load"
            continue
        entry = entries[sources[ours].name]
        found = sources[ours].shape(entry.shape)
        if found != shape:
            yield (
                f"{ours} is {list(shape)}, {sources[ours].name} of {list(entry.shape)} gives "
                f"{list(found)}"
            )
        if entry.dtype not in FLOATS.values():
            yield f"{sources[ours].name} has dtype {entry.dtype}; it must be floating point"
    for ours, source in sources.items():
        if ours not in shapes:
            yield f"{source.name} is unexpected"


def _misfit(file: WeightFile, problems: list[str]) -> CheckpointError:
    listed = "\n  ".join(dict.fromkeys(problems))
    return CheckpointError(f"{file.path}: the weights do not fit the model:\n  {listed}")


def _stored(
    file: WeightFile, sources: Mapping[str, Source]
) -> Iterator[tuple[str, Source, slice, Tensor]]:
    """Our names, and of each all rows with what they are taken from, or some after the others."""
    targets: dict[str, list[str]] = {}
    for ours, source in sources.items():
        targets.setdefault(source.name, []).append(ours)
    for part in _parts({name: math.prod(file.entries[name].shape) for name in targets}):
        by_rows = [name for name in part if _is_large(file, [sources[o] for o in targets[name]])]
        for name, stored in file.read([name for name in part if name not in by_rows]):
            for ours in targets[name]:
                yield ours, sources[ours], slice(None), stored
        for name in by_rows:
            for rows, stored in _row_by_row(file, name):
                for ours in targets[name]:
                    yield ours, sources[ours], rows, stored


def _is_large(file: WeightFile, sources: Sequence[Source]) -> bool:
    """Whether a tensor is too large to be mapped as a whole, and its rows are those of ours."""
    is_plain = all(source.part is None and not source.is_transposed for source in sources)
    return is_plain and _num_bytes(file, sources[0].name) > _LARGE_BYTES


def _row_by_row(file: WeightFile, name: str) -> Iterator[tuple[slice, Tensor]]:
    """Rows in groups, each unmapped before the next is read."""
    count = file.entries[name].shape[0]
    step = max(1, count * _LARGE_BYTES // _num_bytes(file, name))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        for _, stored in file.read([name]):
            yield rows, stored[rows]


def _num_bytes(file: WeightFile, name: str) -> int:
    entry = file.entries[name]
    itemsize = entry.dtype.itemsize if isinstance(entry.dtype, torch.dtype) else 1
    return math.prod(entry.shape) * itemsize


def _parts(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names in groups, each unmapped before the next is read."""
    most = sum(sizes.values()) / _PARTS
    part: list[str] = []
    room = most
    for name, size in sizes.items():
        if part and size > room:
            yield part
            part, room = [], most
        part.append(name)
        room -= size
    yield part


def _widest(dtypes: Iterable[torch.dtype | str]) -> torch.dtype:
    """The one dtype that holds them all: a model has one, files of mixed precision have two."""
    return reduce(torch.promote_types, (d for d in dtypes if isinstance(d, torch.dtype)))


def _is_finite(tensor: Tensor) -> bool:
    """Least and greatest carry whatever is not finite, and need no second tensor."""
    if not tensor.numel():
        return True
    return all(math.isfinite(value.item()) for value in torch.aminmax(tensor.detach()))


def _is_same(one: Source, other: Source, file: WeightFile) -> bool:
    """Whether two names stand for the same numbers."""
    if one.name == other.name:
        return True
    storages = [file.entries[source.name].storage for source in (one, other)]
    if storages[0] is not None and storages[0] == storages[1]:
        return True
    tensors = dict(file.read([one.name, other.name]))
    first, second = tensors[one.name], tensors[other.name]
    return first.dtype == second.dtype and torch.equal(first, second)
