"""int8 weights in a safetensors file: packed once, and mapped by every engine that reads them.

    NativeEngine packs ─► write_int8 ─► FILE ─► read_int8: mapped, not read ─► the next NativeEngine

    <parameter>.int8      uint8 [rows, columns], filled up to multiples of 16 and 64: blocks of 16
                          rows, in a block four columns of each row by turns, as products read them
    <parameter>.scales    float32 [rows]: weight = (byte - 128) * scale
    samples               numbers of every row of every parameter: by them another model's file, or
                          one of weights that have changed, is known
    digest, in the header XXH3-64 of all bytes and scales in their order

Programs that map one file share its memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from gptrs import _core
from gptrs.engines.native_weights import Weights, matrix_names
from gptrs.errors import CheckpointError, ConfigError
from gptrs.files import write_whole_with
from gptrs.model.facts import samples_of
from gptrs.model.gpt import GPTModel

FORMAT, FORMAT_VERSION = "gptrs-int8", "2"
_BYTES, _SCALES, _SAMPLES = ".int8", ".scales", "samples"


def write_int8(file: Path, model: GPTModel, packed: _core.PackedWeights) -> None:
    """Writes what an engine of `model` packed.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {_SAMPLES: _samples(model)}
    parts = packed.parts()
    for name, (packed_bytes, scales) in zip(matrix_names(model), parts, strict=True):
        arrays[name + _BYTES] = packed_bytes.reshape(len(scales), -1)
        arrays[name + _SCALES] = scales
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": _digest(parts)}
    try:
        write_whole_with(file, lambda path: save_file(arrays, path, metadata=metadata))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: int8 weights cannot be written: {error}") from error


def read_int8(file: Path, model: GPTModel, weights: Weights) -> _core.PackedWeights:
    """The packed weights in a file, mapped.

    Args:
        weights: the model's, for their shapes.
    Raises:
        CheckpointError: the file is damaged, foreign, of a newer format, or of another model.
    """
    names = matrix_names(model)
    metadata, tensors = _content(file)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file}: not a file of int8 weights: its format is not {FORMAT!r}")
    if (version := metadata.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: has format version {version!r}; this gptrs reads version {FORMAT_VERSION!r}"
        )
    wanted = {_SAMPLES, *(name + kind for name in names for kind in (_BYTES, _SCALES))}
    if tensors.keys() != wanted or not np.array_equal(tensors[_SAMPLES].numpy(), _samples(model)):
        raise CheckpointError(
            f"{file}: has the int8 weights of another model, or of this one before it changed; "
            "name another file, or remove this one to have this model's written there"
        )
    parts = [(tensors[name + _BYTES].numpy(), tensors[name + _SCALES].numpy()) for name in names]
    try:
        packed = _core.PackedWeights.of_parts(weights, parts)
    except (ConfigError, TypeError, BufferError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error
    if (found := _digest(parts)) != metadata.get("digest"):
        raise CheckpointError(
            f"{file}: damaged: its digest is {metadata.get('digest')}, its content's is {found}"
        )
    return packed


def _content(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a safetensors file says of itself, and its tensors, mapped."""
    if not file.is_file():
        raise CheckpointError(f"{file}: not a file, so no file of int8 weights")
    try:
        # NumPy's arrays would be copies.
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return opened.metadata() or {}, tensors
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _digest(parts: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> str:
    digest = _core.Digest()
    for array in chain.from_iterable(parts):
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()


def _samples(model: GPTModel) -> NDArray[Any]:
    return samples_of(model.parameters(), every_row=True)
