"""Batches of instructions for the training loop: several in a row, none of which sees another.

    step ─► rows of the epoch's order, by formula ─► inputs, targets (-100 where nothing counts),
                                                     cu_seqlens: where each instruction begins

Positions begin at 0 in each instruction, so that the model computes what it would for each alone.
The step's number says which rows, whatever the micro-batch or the number of ranks: a checkpoint
needs nothing else.
"""

# Array names end in their shape: B rows, L tokens of a row, E entries in the rows, N their tokens.

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gptrs.errors import ConfigError
from gptrs.model.loss import IGNORE_INDEX
from gptrs.training.data import Batch, windows_per_step
from gptrs.training.instructions.packing import PACKING_VERSION, Numbers, drawn, pack, ranges
from gptrs.training.instructions.tokens import EncodedInstructions
from gptrs.training.order import ORDER_VERSION, permuted


class PackedInstructions:
    """Encoded instructions in rows of `row_length` tokens.

    Args:
        seed: of which ones share a row.
    Raises:
        ConfigError: an instruction is longer than a row.
    """

    def __init__(self, encoded: EncodedInstructions, row_length: int, *, seed: int = 0) -> None:
        if (longest := int(encoded.lengths.max())) > row_length:
            raise ConfigError(
                f"rows have {row_length} tokens, and an instruction has {longest}: encode them "
                f"with max_length={row_length}"
            )
        self.encoded, self.row_length = encoded, row_length
        rows = pack(encoded.lengths, row_length, seed)
        self._bounds, self._starts = rows.bounds, rows.starts
        # In the order of the rows.
        self._offsets = encoded.offsets[rows.entries]
        self._lengths = encoded.lengths[rows.entries]
        self._num_masked = encoded.num_masked[rows.entries]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._bounds) - 1

    @property
    def density(self) -> float:
        """The share of the rows' tokens that are instructions', not padding."""
        return float(self._lengths.sum()) / (len(self) * self.row_length)

    def __str__(self) -> str:
        return f"{len(self):,} rows of {self.row_length:,} tokens, {self.density:.0%} full"

    def batch(self, rows: Numbers) -> Batch:
        """These rows, in this order."""
        num_entries_B = self._bounds[rows + 1] - self._bounds[rows]
        entries_E = ranges(self._bounds[rows], num_entries_B)
        lengths_E = self._lengths[entries_E]
        row_starts_B = np.arange(len(rows)) * self.row_length
        starts_E = np.repeat(row_starts_B, num_entries_B) + self._starts[entries_E]

        source_N = ranges(self._offsets[entries_E], lengths_E)
        place_N = ranges(starts_E, lengths_E)
        counts_N = ranges(0, lengths_E) >= np.repeat(self._num_masked[entries_E], lengths_E)
        shape = len(rows), self.row_length
        inputs_BL = np.full(shape, self.encoded.end_of_text, dtype=np.int64)
        inputs_BL.flat[place_N] = self.encoded.tokens[source_N]
        targets_BL = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        targets_BL.flat[place_N[counts_N]] = self.encoded.tokens[source_N[counts_N] + 1]

        boundaries = np.unique(
            np.concatenate([starts_E, starts_E + lengths_E, row_starts_B, [inputs_BL.size]])
        )
        return Batch(
            torch.from_numpy(inputs_BL),
            torch.from_numpy(targets_BL),
            torch.from_numpy(_lengthened(boundaries).astype(np.int32)),
        )


class InstructionSource:
    """What a training run learns from when it learns to follow instructions.

    Each epoch has all rows once, in an order of its own; a step may have rows of two epochs. How
    many go through the model at once, `gptrs.train` sees to.

    Args:
        encoded: what `encode_instructions` made.
        context_length: tokens of a row: the model's, or fewer, but no instruction is longer.
        batch_tokens: tokens of a step on all ranks together, padding and prompts included: a
            multiple of context_length.
        rank, world_size: which rows of each step are this process's.
        held_out: what is validated on, for `describe` alone.
    Raises:
        ConfigError: a step is no whole number of rows, or has fewer rows than there are ranks; or
            an instruction is longer than a row.
    """

    def __init__(
        self,
        encoded: EncodedInstructions,
        context_length: int,
        batch_tokens: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        held_out: EncodedInstructions | None = None,
    ) -> None:
        self.num_rows = windows_per_step(batch_tokens, context_length, world_size)
        self._micro_batch = self.num_rows
        self.packed = PackedInstructions(encoded, context_length, seed=seed)
        self.seed, self._held_out = seed, held_out
        share = range(world_size + 1)
        self._share = [self.num_rows * r // world_size for r in share][rank : rank + 2]

    @property
    def num_tokens_per_step(self) -> int:
        """Of all ranks together, padding and prompts included."""
        return self.num_rows * self.packed.row_length

    def cut(self, micro_batch: int) -> InstructionSource:
        """The same steps, at most so many rows at once; uncut it is all of a rank's."""
        cut = copy.copy(self)
        cut._micro_batch = micro_batch
        return cut

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This rank's rows of a step, a micro-batch at a time."""
        rows = self._rows(*(step * self.num_rows + place for place in self._share))
        for begin in range(0, len(rows), self._micro_batch):
            yield self.packed.batch(rows[begin : begin + self._micro_batch])

    def epochs_before(self, step: int) -> float:
        """How often the instructions have been seen before a step."""
        return step * self.num_rows / len(self.packed)

    def describe(self) -> dict[str, Any]:
        """What the order depends on, and which instructions these are."""
        encoded, held_out = self.packed.encoded, self._held_out
        return {
            "kind": "instructions",
            "order": ORDER_VERSION,
            "packing": PACKING_VERSION,
            "tokens": encoded.fingerprint,
            "held_out": None if held_out is None else held_out.fingerprint,
            "num_instructions": len(encoded),
            "num_cut": encoded.num_cut,
            "num_dropped": encoded.num_dropped,
            "context_length": self.packed.row_length,
            "rows_per_step": self.num_rows,
            "seed": self.seed,
        }

    def _rows(self, first: int, stop: int) -> Numbers:
        """The rows first..stop - 1 of the run, in which epoch follows epoch without an end."""
        parts = [np.empty(0, dtype=np.int64)]
        num_rows = len(self.packed)
        while first < stop:
            epoch, place = divmod(first, num_rows)
            count = min(stop - first, num_rows - place)
            places = np.arange(place, place + count, dtype=np.uint64)
            parts.append(permuted(places, num_rows, self.seed, epoch).astype(np.int64))
            first += count
        return np.concatenate(parts)


def instruction_batches(
    encoded: EncodedInstructions,
    context_length: int,
    *,
    batch_size: int,
    max_rows: int | None = None,
) -> list[Batch]:
    """All instructions once, in the same batches of `batch_size` rows each time: to validate on.

    Args:
        max_rows: of more rows than this, so many are drawn, the same each time.
    Raises:
        ConfigError: an instruction is longer than context_length.
    """
    packed = PackedInstructions(encoded, context_length)
    rows = drawn(len(packed), 0, 0)[:max_rows]
    return [
        packed.batch(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)
    ]


def _lengthened(boundaries: Numbers) -> Numbers:
    """The last repeated until there is a power of two: `torch.compile` sees few lengths.

    What is added are documents without a token.
    """
    length = 1 << (len(boundaries) - 1).bit_length()
    return np.pad(boundaries, (0, length - len(boundaries)), mode="edge")
