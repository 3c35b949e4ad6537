"""What the Rust sampling loop asks of a model: slots that take tokens and answer logits.

    Rust loop ── writes `tokens` and `starts`, then step(2) or extend(...) ──► engine ──► model
              ◄──────────────── logits of the wanted positions ───────────────

One callback a step, whatever the batch. Knows nothing of sampling settings, stops or text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# B slots of a call, N new tokens of all of them, R rows of logits, V vocab_size.

# Logits [N, V] to chosen token ids, int64 [N, 1].
Choose = Callable[[Tensor], Tensor]
# Ids, int64 [B, T], to logits [B, T, V], or to an object that has them as `.logits`.
Model = Callable[[Tensor], Any]

SPARE_CANDIDATES = 16
"""How many more logits than asked for are looked at: those that tie with the last count too."""

Answer = Tensor | tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring slots that get equally many tokens in a call."""

    first_slot: int
    starts: list[int]
    """How many tokens each slot keeps."""
    count: int
    """How many new tokens each gets."""
    first_token: int
    """Where in the call's tokens they begin."""

    @property
    def slots(self) -> slice:
        """Its slots."""
        return slice(self.first_slot, self.first_slot + len(self.starts))

    @property
    def tokens(self) -> slice:
        """Its places among the call's tokens."""
        return slice(self.first_token, self.first_token + len(self.starts) * self.count)

    def rows(self) -> Iterator[Run]:
        """Slot by slot."""
        for i, start in enumerate(self.starts):
            yield Run(self.first_slot + i, [start], self.count, self.first_token + i * self.count)

    @property
    def is_level(self) -> bool:
        """Whether all its slots keep equally many tokens."""
        return self.starts.count(self.starts[0]) == len(self.starts)


class Engine(ABC):
    """A model as the loop sees it.

    Args:
        name: what runs, for people: it stands in each Completion.
        vocab_size: prompts are checked against it; None: the model checks them itself.
        context_length: most tokens a slot holds.
        slots: sequences at once.
        prefill_tokens: most tokens of prompts in a call.
        choose: draws in place of the Rust sampler.
        candidates: on a GPU, how many of a row's largest logits are enough; None: all are wanted.

    Attributes:
        tokens: int64 [prefill_tokens + slots], on the CPU. Before a call the loop writes its new
            tokens here, slot after slot.
        starts: int64 [slots], on the CPU. Before a call the loop writes here how many tokens each
            slot of the call keeps, in the call's order; what lay beyond is forgotten.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        *,
        name: str,
        vocab_size: int | None,
        context_length: int,
        slots: int,
        prefill_tokens: int,
        choose: Choose | None = None,
        candidates: int | None = None,
    ) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.slots = slots
        self._choose = choose
        self._candidates = candidates if self.device.type == "cuda" else None
        pinned = self.device.type == "cuda"
        with torch.inference_mode(False):
            self.tokens = torch.zeros(prefill_tokens + slots, dtype=torch.int64, pin_memory=pinned)
            self.starts = torch.zeros(slots, dtype=torch.int64, pin_memory=pinned)

    def is_current(self) -> bool:
        """Whether an engine that is made now would compute the same, but for weights' values."""
        return True

    def step(self, num_slots: int) -> Answer:
        """Slots 0..num_slots - 1 get one token each; logits are wanted of each."""
        starts = self.starts[:num_slots].tolist()
        with torch.no_grad():
            logits_RV = self._logits([Run(0, starts, 1, 0)], [1] * num_slots)
        return self._answer(logits_RV)

    def extend(self, slots: list[int], counts: list[int], wanted: list[int]) -> Answer | None:
        """Slots get any number of tokens.

        Args:
            slots: ascending; there may be gaps.
            counts: how many tokens each gets, at least 1.
            wanted: of how many of its last positions logits are wanted, 0..count.
        Returns:
            Logits [sum of wanted, V] on the CPU, contiguous, float32, bfloat16 or float16; or
            candidates: ids, int64 [R, C], values and log-sum-exp, float32 [R, C] and [R]. Valid
            until the next call. None where nothing is wanted.
        """
        with torch.no_grad():
            logits_RV = self._logits(list(_runs(slots, counts, self.starts.tolist())), wanted)
        return None if sum(wanted) == 0 else self._answer(logits_RV)

    @abstractmethod
    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """(from, to, length): the first `length` tokens of one slot become another's, in order."""

    @abstractmethod
    def _logits(self, runs: list[Run], wanted: list[int]) -> Tensor:
        """Appends, and computes logits [sum of wanted, V] on the model's device."""

    def _answer(self, logits_RV: Tensor) -> Answer:
        """As the loop reads it; one candidate a row where `choose` has the last word."""
        if self._choose is not None:
            ids_R1 = self._choose(logits_RV).cpu()
            nothing_R1 = torch.zeros(ids_R1.shape)
            return ids_R1.to(torch.int64).contiguous(), nothing_R1, nothing_R1[:, 0]
        logits_RV = logits_RV.detach()
        if self._candidates is not None:
            candidates = reduce_to_candidates(logits_RV, self._candidates)
            if candidates is not None:
                return candidates
        if logits_RV.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            logits_RV = logits_RV.float()
        return to_cpu(logits_RV.contiguous())


class PlainEngine(Engine):
    """Any callable from ids, int64 [B, T], to logits [B, T, V]: the whole window at every step."""

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        slots: int,
        context_length: int,
        prefill_tokens: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        vocab_size: int | None = None,
        choose: Choose | None = None,
        candidates: int | None = None,
    ) -> None:
        self.device = device
        super().__init__(
            name=name,
            vocab_size=vocab_size,
            context_length=context_length,
            slots=slots,
            prefill_tokens=prefill_tokens,
            choose=choose,
            candidates=candidates,
        )
        self._model = model
        self._autocast = autocast_to(dtype, device)
        self._ids = torch.zeros(slots, context_length, dtype=torch.int64, device=device)

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies ids."""
        for source, target, length in copies:
            self._ids[target, :length] = self._ids[source, :length]

    def _logits(self, runs: list[Run], wanted: list[int]) -> Tensor:
        windows: list[tuple[int, int]] = []
        for run in runs:
            new_BT = self.tokens[run.tokens].view(-1, run.count)
            for slot, start, new in zip(
                range(self.slots)[run.slots], run.starts, new_BT, strict=True
            ):
                self._ids[slot, start : start + run.count] = new
                windows.append((slot, start + run.count))
        logits: list[Tensor] = []
        for rows, first_slot, length in _level_windows(windows, wanted):
            ids_BT = self._ids[first_slot : first_slot + len(rows), :length]
            with self._autocast:
                output = self._model(ids_BT)
            logits_BTV: Tensor = output if isinstance(output, Tensor) else output.logits
            logits += last_positions(logits_BTV, rows)
        return torch.cat(logits) if logits else torch.empty(0, 0)


def reduce_to_candidates(
    logits_RV: Tensor, num_candidates: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The largest logits of each row: ids [R, C], values [R, C] and log-sum-exp [R], on the CPU.

    None where others may tie with the last that counts, or where a row is not finite: whoever draws
    must then see the whole row.
    """
    num_taken = num_candidates + SPARE_CANDIDATES
    if num_taken >= logits_RV.shape[1]:
        return None
    values_RC, ids_RC = logits_RV.float().topk(num_taken)
    packed = torch.cat((values_RC, logits_RV.float().logsumexp(-1, keepdim=True)), 1)
    # Ids up to 2 ** 53 are exact in float64: one copy, so one synchronisation.
    on_cpu = to_cpu(torch.cat((packed.double(), ids_RC.double()), 1))
    packed, ids_RC = on_cpu[:, : num_taken + 1].float(), on_cpu[:, num_taken + 1 :].long()
    values_RC, log_sum_exp_R = packed[:, :-1].contiguous(), packed[:, -1].contiguous()
    is_cut = values_RC[:, num_candidates - 1] == values_RC[:, -1]
    if is_cut.any() or not log_sum_exp_R.isfinite().all():
        return None
    return ids_RC, values_RC, log_sum_exp_R


def to_cpu(tensor: Tensor) -> Tensor:
    """From a GPU through pinned memory, which a copy reaches without a detour; waits for it."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Lets a model whose weights are left as they are compute in `dtype`."""
    if dtype in (None, torch.float32):
        return nullcontext()
    return torch.autocast(device.type, dtype)


def precision_suffix(dtype: torch.dtype) -> str:
    """For an engine's name: nothing for float32, else a blank and the dtype's."""
    return "" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"


def last_positions(x_BTD: Tensor, wanted: list[int]) -> Iterator[Tensor]:
    """The last `wanted[b]` positions of each row, [wanted, D]; all rows at once where each is 1."""
    if wanted.count(1) == len(wanted):
        yield x_BTD[:, -1]
    else:
        for row_TD, count in zip(x_BTD, wanted, strict=True):
            yield row_TD[len(row_TD) - count :]


def _runs(slots: list[int], counts: list[int], starts: list[int]) -> Iterator[Run]:
    """The slots of a call, cut where there is a gap or the number of new tokens changes.

    Several tokens for slots of different lengths are cut, too: only single tokens attend side by
    side there.
    """
    first = first_token = 0
    for i in range(1, len(slots) + 1):
        goes_on = (
            i < len(slots)
            and slots[i] == slots[i - 1] + 1
            and counts[i] == counts[first]
            and (counts[i] == 1 or starts[i] == starts[first])
        )
        if not goes_on:
            yield Run(slots[first], starts[first:i], counts[first], first_token)
            first_token += (i - first) * counts[first]
            first = i


def _level_windows(
    windows: list[tuple[int, int]], wanted: list[int]
) -> Iterator[tuple[list[int], int, int]]:
    """Neighbouring slots with equally long windows: (their wanted, first slot, length).

    Windows of which nothing is wanted are left out: the next call computes them anyway.
    """
    group: list[int] = []
    first_slot = length = 0
    for (slot, end), count in zip(windows, wanted, strict=True):
        if group and (slot != first_slot + len(group) or end != length or count == 0):
            yield group, first_slot, length
            group = []
        if count:
            first_slot, length = (first_slot, length) if group else (slot, end)
            group.append(count)
    if group:
        yield group, first_slot, length
