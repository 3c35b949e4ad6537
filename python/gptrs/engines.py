"""PyTorch models as the Rust sampling loop sees them: slots that take tokens and answer logits.

    Rust loop ── extend(slots, starts, counts, wanted, tokens, copies) ──► engine ──► model
              ◄───────────────── logits of the wanted positions ─────────

One `extend` a step, whatever the batch. Knows nothing of sampling settings, stops or text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, cast

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


class Engine(Protocol):
    """What `_core.Generation` asks of a model."""

    vocab_size: int | None
    """Prompts are checked against it; None: the model checks them itself."""
    context_length: int
    slots: int

    def extend(
        self,
        slots: list[int],
        starts: list[int],
        counts: list[int],
        wanted: list[int],
        tokens: NDArray[np.int64],
        copies: list[tuple[int, int, int]],
    ) -> Any:
        """Appends `counts[i]` tokens to slot `slots[i]` at `starts[i]`, after doing `copies`.

        Args:
            slots: ascending, without gaps.
            starts: how many tokens the slot keeps; what lay beyond is forgotten.
            wanted: for how many of the last positions logits are asked, 1..counts[i].
            tokens: int64 [sum of counts], slot after slot.
            copies: (from, to, length), rows of the cache.
        Returns:
            Logits of the sum(wanted) positions: see `to_answer`.
        """


class CachedEngine:
    """A GPTModel with a KV cache: each token is computed once."""

    def __init__(self, model: GPTModel, slots: int, choose: Choose | None = None) -> None:
        self.vocab_size: int | None = model.cfg.vocab_size
        self.context_length = model.cfg.context_length
        self.slots = slots
        self._model = model
        self._choose = choose
        self._cache = model.new_cache(slots)

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
        """See `Engine.extend`."""
        for source, target, length in copies:
            self._cache.copy_row(source, target, length)
        for slot, start in zip(slots, starts, strict=True):
            self._cache.lengths[slot] = start
        ids = torch.from_numpy(tokens).to(self._model.tok_emb.weight.device)
        hidden: list[Tensor] = []
        for rows, ids_BT in _equal_runs(ids, counts):
            cache = self._cache.rows(slots[rows.start], slots[rows.start] + len(ids_BT))
            x_BTD = self._model.hidden_states(ids_BT, cache=cache)
            hidden.extend(_last_positions(x_BTD, wanted[rows]))
        # One call for all rows: the output layer's weights are read once.
        return to_answer(self._model.out_head(torch.cat(hidden)), self._choose)


class PlainEngine:
    """Any callable from ids, int64 [B, T], to logits [B, T, V]: the whole window at every step."""

    def __init__(
        self,
        model: Model,
        slots: int,
        context_length: int,
        device: torch.device,
        choose: Choose | None = None,
    ) -> None:
        self.vocab_size: int | None = None
        self.context_length = context_length
        self.slots = slots
        self._model = model
        self._choose = choose
        self._ids = torch.zeros(slots, context_length, dtype=torch.int64, device=device)

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
        """See `Engine.extend`."""
        for source, target, length in copies:
            self._ids[target, :length] = self._ids[source, :length]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        new_tokens = torch.from_numpy(tokens).split(counts)
        for slot, start, end, new in zip(slots, starts, ends, new_tokens, strict=True):
            self._ids[slot, start:end] = new
        logits: list[Tensor] = []
        for rows, end in _runs(ends):
            ids_BT = self._ids[slots[rows.start] : slots[rows.stop - 1] + 1, :end]
            logits.extend(_last_positions(self._model(ids_BT), wanted[rows]))
        return to_answer(torch.cat(logits), self._choose)


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


def _equal_runs(ids: Tensor, counts: list[int]) -> Iterator[tuple[slice, Tensor]]:
    """Runs of neighbouring rows that get equally many tokens, so that none is padded."""
    start = 0
    for rows, count in _runs(counts):
        num_rows = rows.stop - rows.start
        yield rows, ids[start : start + num_rows * count].view(num_rows, count)
        start += num_rows * count


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
