"""PyTorch models as the Rust sampling loop sees them: slots that take tokens and answer logits.

    Rust loop ── extend(slots, starts, counts, wanted, tokens, copies) ──► engine ──► model
              ◄───────────────── logits of the wanted positions ─────────

One `extend` a step, whatever the batch. Knows nothing of sampling settings, stops or text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gptrs.errors import ConfigError
from gptrs.layers import MultiHeadAttention, TransformerBlock
from gptrs.model import GPTModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Logits [N, V] to chosen token ids, int64 [N, 1].
Choose = Callable[[Tensor], Tensor]
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step appends, slot after slot."""

    slots: list[int]
    """Ascending, without gaps."""
    starts: list[int]
    """How many tokens each slot keeps; what lay beyond is forgotten."""
    counts: list[int]
    """How many tokens each slot gets."""
    wanted: list[int]
    """For how many of the last positions logits are asked, 1..count."""
    tokens: Tensor
    """int64 [sum of counts], on the CPU."""


class Engine(ABC):
    """What `_core.Generation` asks of a model.

    Args:
        vocab_size: prompts are checked against it; None: the model checks them itself.
        context_length: most tokens a slot holds.
        slots: sequences at once.
        choose: draws in place of the Rust sampler.
    """

    def __init__(
        self, vocab_size: int | None, context_length: int, slots: int, choose: Choose | None
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.slots = slots
        self._choose = choose

    @torch.no_grad()
    def extend(
        self,
        slots: list[int],
        starts: list[int],
        counts: list[int],
        wanted: list[int],
        tokens: NDArray[np.int64],
        copies: list[tuple[int, int, int]],
    ) -> Any:
        """The loop's one callback a step; see `Step`.

        Args:
            copies: (from, to, length), slots whose tokens are copied before anything else.
        Returns:
            Logits of the sum(wanted) positions: see `to_answer`.
        """
        for source, target, length in copies:
            self._copy(source, target, length)
        logits_NV = self._logits(Step(slots, starts, counts, wanted, torch.from_numpy(tokens)))
        return to_answer(logits_NV, self._choose)

    @abstractmethod
    def _copy(self, source: int, target: int, length: int) -> None:
        """Makes the first `length` tokens of slot `target` those of slot `source`."""

    @abstractmethod
    def _logits(self, step: Step) -> Tensor:
        """Appends, and computes logits [sum(wanted), V]."""


class CachedEngine(Engine):
    """A GPTModel with a KV cache: each token is computed once."""

    def __init__(self, model: GPTModel, slots: int, choose: Choose | None = None) -> None:
        super().__init__(model.cfg.vocab_size, model.cfg.context_length, slots, choose)
        self._model = model
        self._cache = model.new_cache(slots)

    def _copy(self, source: int, target: int, length: int) -> None:
        self._cache.copy_row(source, target, length)

    def _logits(self, step: Step) -> Tensor:
        for slot, start in zip(step.slots, step.starts, strict=True):
            self._cache.lengths[slot] = start
        ids = step.tokens.to(self._model.tok_emb.weight.device)
        first_slot, start = step.slots[0], 0
        hidden: list[Tensor] = []
        # Neighbours that get equally many tokens share a forward pass, so that none is padded.
        for rows, count in _runs(step.counts):
            stop = start + (rows.stop - rows.start) * count
            cache = self._cache.rows(first_slot + rows.start, first_slot + rows.stop)
            x_BTD = self._model.hidden_states(ids[start:stop].view(-1, count), cache=cache)
            hidden.extend(_last_positions(x_BTD, step.wanted[rows]))
            start = stop
        # One call for all rows: the output layer's weights are read once.
        logits_NV: Tensor = self._model.out_head(torch.cat(hidden))
        return logits_NV


class PlainEngine(Engine):
    """Any callable from ids, int64 [B, T], to logits [B, T, V]: the whole window at every step."""

    def __init__(
        self,
        model: Model,
        slots: int,
        context_length: int,
        device: torch.device,
        choose: Choose | None = None,
    ) -> None:
        super().__init__(None, context_length, slots, choose)
        self._model = model
        self._ids = torch.zeros(slots, context_length, dtype=torch.int64, device=device)

    def _copy(self, source: int, target: int, length: int) -> None:
        self._ids[target, :length] = self._ids[source, :length]

    def _logits(self, step: Step) -> Tensor:
        ends = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
        new_tokens = step.tokens.split(step.counts)
        for slot, start, end, new in zip(step.slots, step.starts, ends, new_tokens, strict=True):
            self._ids[slot, start:end] = new
        first_slot = step.slots[0]
        logits: list[Tensor] = []
        for rows, end in _runs(ends):
            ids_BT = self._ids[first_slot + rows.start : first_slot + rows.stop, :end]
            logits.extend(_last_positions(self._model(ids_BT), step.wanted[rows]))
        return torch.cat(logits)


def make_engine(
    model: Model,
    slots: int,
    context_size: int,
    device: torch.device,
    choose: Choose | None = None,
) -> Engine:
    """The cached engine where it computes what calling `model` would, else the plain one.

    Args:
        slots: sequences at once.
        context_size: the model sees this many of the newest tokens.
        device: where a plain model wants its ids.
        choose: draws in place of the Rust sampler.
    Raises:
        ConfigError: context_size is below 1.
    """
    if context_size < 1:
        raise ConfigError(f"context_size is at least 1, found {context_size}")
    slots = max(slots, 1)
    if can_cache(model):
        return CachedEngine(cast(GPTModel, model), slots, choose)
    if isinstance(model, GPTModel):
        context_size = min(context_size, model.cfg.context_length)
    return PlainEngine(model, slots, context_size, device, choose)


def to_answer(logits_NV: Tensor, choose: Choose | None) -> Any:
    """Logits as NumPy sees them: float32, float16, or bfloat16's bits as uint16, [N, V] each.

    Where `choose` has the last word, one candidate a row: (ids [N, 1], logits [N, 1], zeros [N]).
    """
    if choose is not None:
        ids_N1 = choose(logits_NV).cpu()
        nothing = torch.zeros(ids_N1.shape)
        return ids_N1.numpy(), nothing.numpy(), nothing[:, 0].numpy()
    logits_NV = logits_NV.detach().cpu().contiguous()
    if logits_NV.dtype is torch.bfloat16:
        return logits_NV.view(torch.uint16).numpy()
    if logits_NV.dtype is not torch.float16:
        logits_NV = logits_NV.float()
    return logits_NV.numpy()


def can_cache(model: object) -> bool:
    """Whether a cached run of `model` computes what calling it would.

    Not if its class, blocks or attention are somebody's own, nor if a hook waits on the model
    itself, nor if dropout is on: then every token is drawn anew at every step.
    """
    if type(model) is not GPTModel or model._forward_hooks or model._forward_pre_hooks:
        return False
    blocks = list(model.trf_blocks)
    stock = all(
        type(block) is TransformerBlock and type(block.att) is MultiHeadAttention
        for block in blocks
    )
    return stock and not any(
        isinstance(module, nn.Dropout) and module.training and module.p > 0
        for module in model.modules()
    )


def _runs(values: list[int]) -> Iterator[tuple[slice, int]]:
    """Where neighbours are equal: (slice, value)."""
    start = 0
    for value, run in groupby(values):
        stop = start + len(list(run))
        yield slice(start, stop), value
        start = stop


def _last_positions(x_BTD: Tensor, wanted: list[int]) -> Iterator[Tensor]:
    """The last `wanted[b]` positions of each row, [wanted, D]; all rows at once where each is 1."""
    if set(wanted) == {1}:
        yield x_BTD[:, -1]
    else:
        for row_TD, count in zip(x_BTD, wanted, strict=True):
            yield row_TD[-count:]
