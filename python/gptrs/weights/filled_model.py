"""A GPTModel made of the tensors in a file, one after the other.

    config ─► model on the meta device, with shapes only ─► what fits is filled, part by part
                                                       └──► what does not is listed, in one error

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
from gptrs.errors import CheckpointError, ConfigError
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
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
) -> GPTModel:
    """A model of `cfg` with the tensors of `file`, in eval mode.

    Args:
        recipe: which tensors of ours are made of which in `file`.
        dtype: of all weights; default: the one of the file's that holds them all.
    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape or dtype, not finite, or
            two that should be one differ; the message lists all of them.
        ConfigError: weights cannot have this dtype, or be on this device.
    """
    asked, device = weights_dtype(dtype), weights_device(device)
    model = _unfilled(cfg)
    shapes, sources = _shapes(model), dict(recipe.sources)
    zeros = set() if recipe.has_biases else {n for n in shapes if n.endswith((".bias", ".shift"))}
    problems = [*_mismatches(shapes, sources, zeros, file.entries)]
    # What fits is read even where something else does not: its numbers may be wrong as well.
    fitting = {
        ours: source
        for ours, source in sources.items()
        if ours in shapes and not [*_misfits_of(ours, source, shapes[ours], file.entries)]
    }
    head = fitting.pop("out_head.weight", None) if cfg.tie_embeddings else None
    dtype = asked or _widest(file.entries[source.name].dtype for source in fitting.values())
    tensors = {n: torch.zeros(shapes[n], dtype=dtype, device=device) for n in zeros - {*sources}}
    problems += _fill(tensors, file, fitting, shapes, dtype, device)
    embedding = fitting.get("tok_emb.weight")
    if head is not None and embedding is not None and not _is_same(head, embedding, file):
        problems.append(f"{head.name} is not {embedding.name}, and the model is to tie them")
    if problems:
        listed = "\n  ".join(dict.fromkeys(problems))
        raise CheckpointError(f"{file.path}: the weights do not fit the model:\n  {listed}")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _fill(
    tensors: dict[str, Tensor],
    file: WeightFile,
    sources: Mapping[str, Source],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[str]:
    """Adds ours to `tensors`, made of what is stored; gives those with values of no use."""
    for ours, source, rows, stored in _stored(file, sources):
        if ours not in tensors:
            tensors[ours] = empty(shapes[ours], dtype, device)
        tensors[ours][rows].copy_(source.take(stored))
        if not _is_finite(tensors[ours][rows]):
            yield f"{source.name}: {ours} has values that are not finite in {dtype}"


def weights_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """What `dtype` names: torch's, or its name, as "bfloat16"; None stays None.

    Raises:
        ConfigError: weights cannot have it.
    """
    names = {str(known).removeprefix("torch."): known for known in FLOATS.values()}
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in names.values()):
        return dtype
    if isinstance(dtype, str) and dtype in names:
        return names[dtype]
    raise ConfigError(f"dtype is {dtype!r}; it must be {', '.join(names)}, or None: as stored")


def weights_device(device: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        ConfigError: there is none, or it holds no numbers.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"device is {device!r}: {reason}") from error
    if found.type == "meta":
        raise ConfigError('device is "meta", which holds no numbers: nothing can be loaded')
    return found


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
        if ours in sources:
            yield from _misfits_of(ours, sources[ours], shape, entries)
        elif ours not in zeros:
            yield f"{ours} has nothing to load"
    for ours, source in sources.items():
        if ours not in shapes:
            yield f"{source.name} is unexpected"


def _misfits_of(
    ours: str, source: Source, shape: tuple[int, ...], entries: Mapping[str, Entry]
) -> Iterator[str]:
    """What keeps the stored tensor from being ours, its numbers aside."""
    entry = entries[source.name]
    if (found := source.shape(entry.shape)) != shape:
        yield f"{ours} is {list(shape)}, {source.name} of {list(entry.shape)} gives {list(found)}"
    if entry.dtype not in FLOATS.values():
        yield f"{source.name} has dtype {entry.dtype}; it must be floating point"


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
    known = [dtype for dtype in dtypes if isinstance(dtype, torch.dtype)]
    return reduce(torch.promote_types, known) if known else torch.float32


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
