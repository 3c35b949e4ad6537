"""Named tensors in files, somebody else's too: shapes first, the numbers part by part.

    *.safetensors               one file
    *.safetensors.index.json    which of several safetensors files has which tensor
    *.pth *.pt *.bin            torch.save's: tensors only, no pickled code is ever run

Files are mapped, not read, and mapped anew for each part: what was copied out of one part no longer
counts as memory when the next is read. Knows nothing of what the names mean.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptrs.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes that weights may have, by their names in safetensors."""

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")

# Under these keys training scripts keep the state_dict: the book's, nanoGPT's, Lightning's.
_NESTED = ("model_state_dict", "model", "state_dict")


class Entry(NamedTuple):
    """A tensor that has not been read."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """A name where weights cannot have it."""
    storage: int | None
    """What two names of one tensor have in common; None: nothing can be shared in this format."""


class WeightFile(Protocol):
    """Tensors by name.

    Attributes:
        path: the file, for messages.
        entries: every tensor's shape and dtype.
        settings: what else the file says: nanoGPT's `model_args`.
    """

    path: Path
    entries: Mapping[str, Entry]
    settings: Mapping[str, Any]

    def read(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors, which live in the file's memory: copy what is to stay."""


def open_weights(path: Path) -> WeightFile:
    """The tensors in `path`, by the file's suffix.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, one of several shards, or
            holds pickled objects.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _Sharded(path)
    if path.suffix == ".safetensors":
        _check_whole(path)
        return _Safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _Torch(path)
    raise CheckpointError(
        f"{path}: expected .safetensors, .safetensors{INDEX_SUFFIX} or torch.save's "
        f"{', '.join(TORCH_SUFFIXES)}"
    )


def weights_in(folder: Path) -> list[Path]:
    """Files that may be a model's weights, whatever their names; of shards their index.

    No .bin: in a folder of somebody else's these are many other things, tokens too.
    """
    suffixes = (f".safetensors{INDEX_SUFFIX}", ".safetensors", ".pth", ".pt")
    found = [path for path in folder.iterdir() if path.name.endswith(suffixes) and path.is_file()]
    return sorted(
        path for path in found if not path.name.startswith(".") and _index_of(path) not in found
    )


def _index_of(path: Path) -> Path | None:
    """The index of the shards that `path` is one of; None if it is none."""
    match = _SHARD.fullmatch(path.name)
    return path.with_name(f"{match[1]}.safetensors{INDEX_SUFFIX}") if match else None


def _check_whole(path: Path) -> None:
    """Raises CheckpointError if `path` is one of several shards."""
    index, match = _index_of(path), _SHARD.fullmatch(path.name)
    if index is None or match is None or int(match[2]) == 1:
        return
    advice = f"open {index}" if index.is_file() else f"{index.name}, which joins them, is missing"
    raise CheckpointError(f"{path}: one of {int(match[2])} shards of a model: {advice}")


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: Mapping[str, Any] = {}
        with self._open() as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self.entries: Mapping[str, Entry] = {
                name: Entry(
                    tuple(part.get_shape()), FLOATS.get(part.get_dtype(), part.get_dtype()), None
                )
                for name, part in slices.items()
            }

    def read(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        with self._open() as file:
            for name in names:
                yield name, file.get_tensor(name)

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path}: not a readable safetensors file: {error}"
            ) from error


class _Sharded:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: Mapping[str, Any] = {}
        self._shard_of = _weight_map(path)
        self._shards = {
            name: _Safetensors(path.parent / name) for name in sorted({*self._shard_of.values()})
        }
        # The shards say what there is; the index alone may be wrong.
        self.entries: Mapping[str, Entry] = {
            name: self._shards[shard].entries[name]
            for name, shard in self._shard_of.items()
            if name in self._shards[shard].entries
        }

    def read(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        for shard, file in self._shards.items():
            yield from file.read([name for name in names if self._shard_of[name] == shard])


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text("utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a readable index of safetensors files: {error!r}"
        ) from error
    for shard in shards.values():
        if Path(shard).name != shard:  # Nothing outside the folder is opened.
            raise CheckpointError(f"{path}: {shard!r} is not the name of a file beside it")
    return shards


class _Torch:
    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = _load(path)
        settings = loaded.get("model_args")
        self.settings = settings if isinstance(settings, Mapping) else {}
        self.entries: Mapping[str, Entry] = {
            name: Entry(tuple(value.shape), value.dtype, value.untyped_storage().data_ptr())
            for name, value in _state_dict(loaded).items()
            if isinstance(value, Tensor)
        }

    def read(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        tensors = _state_dict(_load(self.path))
        for name in names:
            yield name, tensors[name]


def _state_dict(loaded: dict[str, Any]) -> dict[str, Any]:
    """The state_dict itself, or the one among what a training script saved with it."""
    for key in _NESTED:
        if isinstance(loaded.get(key), Mapping):
            return dict(loaded[key])
    return loaded


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = _load_tensors(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a file of tensors: it is damaged, or holds other pickled objects, which "
            f"could run code when they are loaded{_found(error)}. Save the model's state_dict() "
            "instead"
        ) from error
    except Exception as error:  # Reading damaged pickles fails in all the ways there are.
        raise CheckpointError(
            f"{path}: not a readable file of torch.save: {_first_line(error)}"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path}: expected a state_dict, a dict of tensors by name; found a "
            f"{type(loaded).__name__}"
        )
    return loaded


def _load_tensors(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    # Files of torch before 1.6 are no zip archives, and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _found(error: pickle.UnpicklingError) -> str:
    """Which object was refused, if torch says so; the rest of its text advises to run the code."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    return f" (found {match[1]})" if match else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
