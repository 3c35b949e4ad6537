"""A GPTModel without PyTorch: Rust decodes on the model's own weights, where they lie.

    GPTModel ── why_not_native: None ──► Weights ─► _core.NativeModel ─► the loop, in Rust
                                            ▲                                │ now and then
                                            └─ refresh: has it changed? ◄────┘

Nothing is copied, except that int8 packs the matrices: what a training step writes between two
tokens is seen by the next. Knows nothing of sampling or text, nor how anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptrs import _core
from gptrs.engines.decode_weights import Watch
from gptrs.engines.engine import Engine, Run
from gptrs.engines.int8_file import read_int8, write_int8
from gptrs.engines.native_weights import (
    Weights,
    short,
    weights_of,
    why_not_native,
)
from gptrs.engines.vocabulary import vocab_size_of
from gptrs.errors import ConfigError, GenerationError
from gptrs.memory import check_memory
from gptrs.model.facts import sample_views, samples_of, together
from gptrs.model.gpt import GPTModel

CACHE_UNIT = 32
"""A head's keys and values are filled up to a multiple of this."""


class NativeEngine(Engine):
    """The engine in Rust; see `why_not_native`.

    A loop takes `native` and asks the model itself. Before and after, the methods of an Engine
    work, and another loop may take it.

    Args:
        model: in evaluation mode, or without dropout.
        slots: sequences at once.
        context_size: most tokens a slot holds, cut to what the model takes.
        prefill_tokens: most tokens of prompts in a call.
        int8: a byte a weight: the matrices are packed, row by row.
        int8_file: where the packed matrices are: read from there, or written if there is no file.
        threads: how many compute; None: as many as PyTorch takes (`torch.set_num_threads`), but no
            more than can run at once: who waits for others keeps a processor busy.
        kernels: one of `_core.NativeModel.available_kernels()`; None: the fastest.
    Raises:
        ConfigError: threads is below 1, or the processor does not have these kernels.
        GenerationError: there is no memory for the cache.
        CheckpointError: `int8_file` is of another model, or damaged, or cannot be written.
    """

    def __init__(
        self,
        model: GPTModel,
        *,
        slots: int,
        context_size: int,
        prefill_tokens: int,
        int8: bool = False,
        int8_file: Path | None = None,
        threads: int | None = None,
        kernels: str | None = None,
    ) -> None:
        self._model = model
        self._int8 = int8
        self._dtype = model.tok_emb.weight.dtype
        weights = weights_of(model)
        known = _known_packed(model, weights, int8_file) if int8 else None
        self._seen = _Seen(model, is_copied=int8) if known is None else known.seen
        self._torch_threads = torch.get_num_threads()
        if threads is None:
            threads = min(self._torch_threads, _core.NativeModel.available_threads())
        if threads < 1:
            raise ConfigError(f"threads is at least 1, found {threads}")
        context_length = min(context_size, model.cfg.max_tokens or context_size)
        is_narrow = int8 or self._dtype == torch.bfloat16
        self.cache_bytes = _check_cache(model, slots, context_length, is_narrow=is_narrow)
        self.native = _core.NativeModel(
            weights,
            slots=slots,
            context_length=context_length,
            threads=threads,
            int8=int8,
            kernels=kernels,
            packed=None if known is None else known.packed,
        )
        if (packed := self.native.packed) is not None:
            if known is None:
                known = _PACKED[model] = _Packed(self._seen, packed, _all_samples(model), None)
            if int8_file is not None and not int8_file.exists():
                write_int8(int8_file, model, packed)
                _PACKED[model] = known._replace(file=_file_as_it_is(int8_file))
        precision = "int8" if int8 else short(self._dtype)
        super().__init__(
            name=f"native {precision} {self.native.kernels}",
            vocab_size=vocab_size_of(model),
            context_length=context_length,
            slots=slots,
            prefill_tokens=prefill_tokens,
        )

    def fits(self, *, slots: int, context_size: int, int8: bool) -> bool:
        """Whether a new engine of these settings would be no other, and no loop has this one."""
        context_length = min(context_size, self._model.cfg.max_tokens or context_size)
        return (
            self.native.is_free
            and int8 == self._int8
            and slots == self.slots
            and context_length <= self.context_length
            and self._torch_threads == torch.get_num_threads()
            and self._seen.is_current_in_all()
        )

    def is_current(self) -> bool:
        """Whether an engine that is made now would compute the same."""
        return why_not_native(self._model) is None and self._seen.is_current_in_all()

    def refresh(self) -> Weights | None:
        """The weights, if they are not those that Rust reads or packed; asked now and then.

        Raises:
            GenerationError: the engine cannot go on with the model as it is now.
        """
        if self._seen.is_current():
            return None
        reason = why_not_native(self._model)
        dtype = self._model.tok_emb.weight.dtype
        if reason is None and dtype != self._dtype:
            reason = f"its weights are {short(dtype)} now, and were {short(self._dtype)}"
        if reason is None and not self._seen.has_shapes_of(self._model):
            reason = "its parameters have other shapes than before"
        if reason is not None:
            raise GenerationError(
                f"the model has changed, and the native engine cannot go on with it: {reason}"
            )
        # If Rust cannot take them, the engine is lost: nobody goes on with the old ones.
        self._seen = _Seen(self._model, is_copied=self._int8)
        return weights_of(self._model)

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies keys and values."""
        for source, target, length in copies:
            self.native.copy(source, target, length)

    def _logits(self, runs: list[Run], wanted: list[int]) -> Tensor:
        slots = [slot for run in runs for slot in range(run.slots.start, run.slots.stop)]
        starts = [start for run in runs for start in run.starts]
        counts = [run.count for run in runs for _ in run.starts]
        tokens = self.tokens[: runs[-1].tokens.stop].tolist()
        if (weights := self.refresh()) is not None:
            self.native.set_weights(weights)
        return torch.from_numpy(self.native.extend(tokens, slots, starts, counts, wanted))


def _check_cache(model: GPTModel, slots: int, context_length: int, *, is_narrow: bool) -> int:
    """How many bytes keys and values take; GenerationError where there is no memory for them."""
    width = model.cfg.n_heads * -(-model.cfg.head_dim // CACHE_UNIT) * CACHE_UNIT
    num_numbers = 2 * len(model.trf_blocks) * slots * context_length * width
    what = f"a key-value cache of {slots} rows of {context_length} tokens"
    num_bytes = num_numbers * (2 if is_narrow else 4)
    check_memory(num_bytes, torch.device("cpu"), what)
    return num_bytes


class _Seen:
    """What a model was when the engine read it.

    Args:
        is_copied: what is written to the parameters counts, too.
    """

    def __init__(self, model: GPTModel, *, is_copied: bool) -> None:
        self._watch = Watch(model)
        self._parameters = list(model.parameters())
        copied = self._parameters if is_copied else []
        # Inference tensors do not count how often they were written.
        self._counted = [parameter for parameter in copied if not parameter.is_inference()]
        self._places, self._versions = self._now()
        self._shapes = _shapes_of(self._parameters)
        self._views = sample_views(copied)
        self._samples = together(self._views)

    def is_current(self) -> bool:
        """Whether the model has the same layers and parameters at the same places.

        Asked at every step of a stream, so it takes microseconds.
        """
        return self._watch.sees_no_change() and self._now() == (self._places, self._versions)

    def is_current_in_all(self) -> bool:
        """The same, and shapes, classes, constants, and samples of what was copied.

        Nobody counts what is written through `parameter.data`.
        """
        return (
            self.is_current()
            and not self._watch.sees_other_code()
            and _shapes_of(self._parameters) == self._shapes
            # The parameters are where they were, so the views are theirs.
            and np.array_equal(together(self._views), self._samples)
        )

    def has_shapes_of(self, model: GPTModel) -> bool:
        """Whether the model's parameters have the shapes that they had."""
        return [shape for shape, _ in _shapes_of(model.parameters())] == [
            shape for shape, _ in self._shapes
        ]

    def _now(self) -> tuple[list[int], list[int]]:
        places = list(map(Tensor.data_ptr, self._parameters))
        return places, [p._version for p in self._counted]


def _shapes_of(parameters: Iterable[Tensor]) -> list[tuple[torch.Size, tuple[int, ...]]]:
    """Shapes and strides: a view may begin where the whole did."""
    return [(parameter.shape, parameter.stride()) for parameter in parameters]


class _Packed(NamedTuple):
    """Matrices in eight bits, and the model that they were packed of."""

    seen: _Seen
    packed: _core.PackedWeights
    samples: NDArray[Any]
    """Of every row."""
    file: tuple[Path, int] | None
    """Where they are, too; and when it was written."""


_PACKED: WeakKeyDictionary[GPTModel, _Packed] = WeakKeyDictionary()


def _known_packed(model: GPTModel, weights: Weights, file: Path | None) -> _Packed | None:
    """What an earlier engine packed, if the model is what it was then; or what the file has."""
    known = _PACKED.get(model)
    if known is not None and not (
        known.seen.is_current_in_all() and np.array_equal(known.samples, _all_samples(model))
    ):
        _PACKED.pop(model, None)  # The old copies go before others are made.
        known = None
    if file is not None and file.exists():
        as_it_is = _file_as_it_is(file)
        if known is None or known.file != as_it_is:
            packed = read_int8(file, model, weights)
            known = _Packed(_Seen(model, is_copied=True), packed, _all_samples(model), as_it_is)
            _PACKED[model] = known
    return known


def _file_as_it_is(file: Path) -> tuple[Path, int]:
    return file, file.stat().st_mtime_ns


def _all_samples(model: GPTModel) -> NDArray[Any]:
    return samples_of(model.parameters(), every_row=True)
