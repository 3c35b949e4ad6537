"""A GPTModel with Transformer-XL's memory: its slots have no end, and tokens go in by segments.

The loop may let a slot go on behind any of the tokens that it has read: those that the cache has
dropped by then are read again. So the ids are kept here, which takes little.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gptrs.engines.engine import Run
from gptrs.engines.torch_engine import TorchEngine
from gptrs.model.gpt import GPTModel
from gptrs.model.kv_cache import KVCache
from gptrs.model.segment_cache import SegmentCache

# B slots, T new tokens of each, R rows of logits, V vocab_size, D emb_dim.


class SegmentEngine(TorchEngine):
    """The cached engine of a model with `memory_length`; arguments as in TorchEngine."""

    def __init__(self, model: GPTModel, *, slots: int, **options: Any) -> None:
        super().__init__(model, slots=slots, **options)
        self._memory = cast(SegmentCache, self._cache)
        self._ids: list[list[int]] = [[] for _ in range(slots)]

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies ids, and what can be gone on from."""
        with torch.no_grad():
            for source, target, length in copies:
                self._ids[target] = self._ids[source][:length]
                if self._memory.can_resume(source, length):
                    self._memory.copy_row(source, target, length)
                else:
                    self._memory.lengths[target] = 0

    def _rows(self, run: Run) -> KVCache:
        new = self.tokens[run.tokens].view(-1, run.count).tolist()
        slots = range(run.slots.start, run.slots.stop)
        for slot, start, ids in zip(slots, run.starts, new, strict=True):
            if not self._memory.can_resume(slot, start):
                self._read_again(slot, self._ids[slot][:start])
            self._ids[slot][start:] = ids
        return super()._rows(run)

    def _read_again(self, slot: int, ids: list[int]) -> None:
        row = self._memory.rows(slot, slot + 1)
        row.lengths[slot] = 0
        for segment in torch.tensor([ids], device=self.device).split(row.segment_length, dim=1):
            self._model.hidden_states(segment, cache=row)

    def _read(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        read = super()._read
        segments = ids_BT.split(self._memory.segment_length, dim=1)
        return torch.cat([read(segment, cache) for segment in segments], dim=1)
