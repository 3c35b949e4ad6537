"""Which entries share a row of a batch. NumPy alone.

    lengths 7 4 9 4 3 1 ...  ─►  [aaaaaaabbbb][ccccccccc..][ddddeeefffg]      rows of 11

Every entry is in one row, once, and whole. Which, is drawn once for all epochs, so that an epoch
has a known number of rows; their order is another in each.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptrs.training.order import permuted

Numbers = NDArray[np.int64]
PACKING_VERSION = 1
"""Changes with what shares a row; a run is resumed only in its own."""
_OF_PACKING = (1 << 64) - 1
"""An order's number that is no epoch's."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which entries are in which row, and where."""

    entries: Numbers
    """All entries, those of row 0 first."""
    bounds: Numbers
    """Row r has `entries[bounds[r] : bounds[r + 1]]`."""
    starts: Numbers
    """The place in its row where each of `entries` starts."""

    def __len__(self) -> int:
        return len(self.bounds) - 1


def pack(lengths: Numbers, row_length: int, seed: int) -> Rows:
    """Entries of these lengths in few rows: the longest first, each where it leaves least room.

    Args:
        lengths: int64, each in 1..row_length.
        seed: of the order among entries of equal length.
    """
    order = drawn(len(lengths), seed, _OF_PACKING)
    rows: list[list[int]] = []  # Their entries.
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    rooms: list[int] = []  # Those that some row has, in order.
    for entry in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[entry])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row = row_length, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rooms[place]
        rows[row].append(entry)
        if room > length:
            if not rows_with_room[room - length]:
                insort(rooms, room - length)
            rows_with_room[room - length].append(row)
    return _placed(rows, lengths)


def _placed(rows: list[list[int]], lengths: Numbers) -> Rows:
    counts = np.array([len(row) for row in rows])
    bounds = np.concatenate([[0], np.cumsum(counts)])
    entries = np.array([entry for row in rows for entry in row])
    ends = np.cumsum(lengths[entries])
    before = ends - lengths[entries]
    return Rows(entries, bounds, before - np.repeat(before[bounds[:-1]], counts))


def drawn(count: int, seed: int, number: int) -> Numbers:
    """0..count - 1 in an order that (seed, number) alone decide: as windows are in an epoch."""
    return permuted(np.arange(count, dtype=np.uint64), count, seed, number).astype(np.int64)


def ranges(starts: Numbers | int, lengths: Numbers) -> Numbers:
    """`start .. start + length - 1` for each pair, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    within: Numbers = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return within
