"""int8 weights in a safetensors file: packed once, and mapped by every engine that reads them.

    NativeEngine packs ─► write_int8 ─► FILE ─► read_int8: mapped, not read ─► the next NativeEngine

    <parameter>.int8      uint8 [rows, columns], filled up to multiples of 16 and 64: blocks of 16
                          rows, in a block four columns of each row by turns, as products read them
    <parameter>.scales    float32 [rows]: weight = (byte - 128) * scale
    samples               some numbers of every parameter: by them another model's file is known

Programs that map one file share its memory, and what is not used need not be in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from gptrs import _core
from gptrs.engines.decode_weights import probe
from gptrs.engines.native_weights import Weights, matrix_names
from gptrs.errors import CheckpointError, ConfigError
from gptrs.files import write_whole_with
from gptrs.model.gpt import GPTModel

FORMAT, FORMAT_VERSION = "gptrs-int8", "1"
_BYTES, _SCALES, _SAMPLES = ".int8", ".scales", "samples"


def write_int8(file: Path, model: GPTModel, packed: _core.PackedWeights) -> None:
    """Writes what an engine of `model` packed.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {_SAMPLES: _samples(model).numpy()}
    for name, (packed_bytes, scales) in zip(matrix_names(model), packed.parts(), strict=True):
        arrays[name + _BYTES] = packed_bytes.reshape(len(scales), -1)
        arrays[name + _SCALES] = scales
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION}
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
    try:
        with safe_open(file, framework="pt") as opened:
            _check_format(file, opened.metadata() or {})
            samples = opened.get_tensor(_SAMPLES)
            parts = [
                (
                    opened.get_tensor(name + _BYTES).numpy(),
                    opened.get_tensor(name + _SCALES).numpy(),
                )
                for name in names
            ]
            is_whole = len(opened.keys()) == 2 * len(names) + 1
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not is_whole or not _is_same(samples, _samples(model)):
        raise CheckpointError(
            f"{file}: has the int8 weights of another model; name another file, or remove this one "
            "to have this model's written there"
        )
    try:
        return _core.PackedWeights.of_parts(weights, parts)
    except (ConfigError, TypeError, BufferError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error


def _check_format(file: Path, metadata: dict[str, Any]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file}: not a file of int8 weights: its format is not {FORMAT!r}")
    if (version := metadata.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: has format version {version!r}; this gptrs reads version {FORMAT_VERSION!r}"
        )


def _is_same(found: Tensor, wanted: Tensor) -> bool:
    """Bit by bit: what is no number is not equal to itself."""
    is_float = found.dtype == wanted.dtype
    return is_float and torch.equal(found.view(torch.int32), wanted.view(torch.int32))


def _samples(model: GPTModel) -> Tensor:
    return probe(list(model.parameters())).float()
