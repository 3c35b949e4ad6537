"""Transformer-XL's memory: a cache whose rows have no end (Dai et al. 2019, section 3.2).

    segments of C = 4 tokens, a memory of M = 3: each token of a segment sees the 3 before it, too

    tokens   0 1 2 3 │ 4 5 6 7 │ 8 9 10 11 │ 12 ..      lengths[0] = 10: tokens read
                         └─ M ─┘                        floors[0] = 4: the first one that is kept
    slots          [ 4 5 6 7 8 9 . . . . . ]            M + 2 * C of them

The token at p sees those from floor(p / C) * C - M to itself, however tokens are cut into calls.
When a row's slots are full, the tokens still in reach move to the front. To Transformer-XL only
distances count, so nobody asks where a token stands.
"""

# Tensor names end in their shape: B batch rows, T new tokens, S slots attended to.

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, GenerationError
from gptrs.model.kv_cache import KVCache, Placement


class SegmentCache(KVCache):
    """Keys and values of each row's newest tokens; made by `GPTModel.new_cache`.

    Args:
        segment_length: C.
        memory_length: M.
        max_tokens: most tokens that a row may read; None: no end.

    Attributes:
        lengths: how many tokens each row has read. One may be lowered to 0, or as far as all is
            kept that the next token then sees.
        floors: the first token that each row keeps; shared by `rows` as `lengths` is.
        context_length: how many tokens a row can keep.
        segment_length: also the most tokens of one call.
    Raises:
        GenerationError: there is no memory for it.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        segment_length: int,
        memory_length: int,
        head_dim: int,
        max_tokens: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        num_slots = memory_length + 2 * segment_length
        super().__init__(
            n_layers=n_layers,
            batch_size=batch_size,
            n_heads=n_heads,
            context_length=num_slots if max_tokens is None else min(num_slots, max_tokens),
            head_dim=head_dim,
            dtype=dtype,
            device=device,
        )
        self.segment_length = segment_length
        self.memory_length = memory_length
        self.max_tokens = max_tokens
        self.floors = [0] * batch_size

    def can_resume(self, row: int, length: int) -> bool:
        """Whether a row can go on behind its first `length` tokens."""
        row += self.first_row
        is_kept = length == 0 or self._first_seen(length) >= self.floors[row]
        return is_kept and length <= self.lengths[row]

    def copy_row(self, src: int, dst: int, length: int) -> None:
        """Makes row `dst` go on where row `src` does behind its first `length` tokens.

        Raises:
            GenerationError: no such row, or row `src` has read fewer tokens, or has dropped some
                that the next one would see.
        """
        self._check_copy(src, dst, length)
        floor = self._floor(src, length)
        if src != dst:
            num_kept = length - floor
            self.storage[:, :, dst, :, :num_kept] = self.storage[:, :, src, :, :num_kept]
        self.floors[self.first_row + dst] = floor
        self.lengths[self.first_row + dst] = length

    def place(self, batch_size: int, num_tokens: int) -> Placement:
        """Where `num_tokens` more tokens of every row go. May move what a row keeps.

        Raises:
            GenerationError: another batch size than the cache's; more tokens than a segment, or
                than max_tokens; a row was shortened too far.
        """
        self._check_batch(batch_size)
        if num_tokens > self.segment_length:
            raise GenerationError(
                f"{num_tokens} tokens in one pass are more than a segment of "
                f"{self.segment_length}, and the cache has a memory: give it segment by segment"
            )
        num_filled = [self._make_room(row, num_tokens) for row in range(batch_size)]
        placement = self._place_behind(num_filled, num_tokens)
        own_rows = slice(self.first_row, self.first_row + batch_size)
        lengths, floors = self.lengths[own_rows], self.floors[own_rows]
        last_seen = map(self._first_seen, (length + num_tokens - 1 for length in lengths))
        if all(first <= floor for first, floor in zip(last_seen, floors, strict=True)):
            return placement
        return replace(placement, mask=self._in_reach(placement, lengths, floors))

    def _in_reach(self, placement: Placement, lengths: list[int], floors: list[int]) -> Tensor:
        """Whether a new token sees a slot: bool [B, 1, T, S]."""
        device = self.storage.device
        slots_S = torch.arange(placement.end, device=device)
        new_T = torch.arange(placement.num_tokens, device=device)
        tokens_BT = torch.tensor(lengths, device=device)[:, None] + new_T
        segments_BT = tokens_BT - tokens_BT % self.segment_length
        first_BT = segments_BT - self.memory_length - torch.tensor(floors, device=device)[:, None]
        is_before_BTS = slots_S <= placement.position_ids[..., None]
        return (is_before_BTS & (slots_S >= first_BT[..., None]))[:, None]

    def _make_room(self, row: int, num_tokens: int) -> int:
        """How many slots of a row are filled, once there is room for more tokens."""
        length = self.lengths[self.first_row + row]
        if self.max_tokens is not None and length + num_tokens > self.max_tokens:
            raise GenerationError(
                f"row {row} of the cache has read {length} tokens, and {num_tokens} more exceed "
                f"max_tokens {self.max_tokens}"
            )
        floor = self.floors[self.first_row + row] = self._floor(row, length)
        if length - floor + num_tokens > self.context_length:
            floor = self._drop(row, length, floor)
        return length - floor

    def _floor(self, row: int, length: int) -> int:
        """The first token a row keeps, if its next one is number `length`."""
        floor = self.floors[self.first_row + row]
        if length == 0:
            return 0
        first = self._first_seen(length)
        if first < floor:
            raise GenerationError(
                f"row {row} of the cache is to go on behind {length} tokens: the next one sees "
                f"those from {first} on, and the row has dropped all before {floor}"
            )
        return floor

    def _drop(self, row: int, length: int, floor: int) -> int:
        """Moves the tokens that the next one sees to the front; returns the first of them."""
        first = self._first_seen(length)
        stored = self.storage[:, :, row]
        kept = stored[:, :, :, first - floor : length - floor].clone()
        # Interrupted from here on, the row says that it has dropped all: better than wrong tokens.
        self.floors[self.first_row + row] = length
        stored[:, :, :, : length - first] = kept
        self.floors[self.first_row + row] = first
        return first

    def _first_seen(self, token: int) -> int:
        """The first token that the one with this number sees."""
        return max(0, token - token % self.segment_length - self.memory_length)


def cache_for(
    cfg: GPTConfig,
    *,
    n_layers: int,
    batch_size: int,
    max_tokens: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """A cache for rows of up to `max_tokens` tokens; None: of context_length, or without an end.

    Raises:
        ConfigError: max_tokens is below 1, or more than the model takes.
        GenerationError: there is no memory for it.
    """
    if max_tokens is not None:
        check_most_tokens(cfg, "max_tokens", max_tokens)
    if cfg.memory_length:
        return SegmentCache(
            n_layers=n_layers,
            batch_size=batch_size,
            n_heads=cfg.n_heads,
            segment_length=cfg.context_length,
            memory_length=cfg.memory_length,
            head_dim=cfg.head_dim,
            max_tokens=max_tokens,
            dtype=dtype,
            device=device,
        )
    return KVCache(
        n_layers=n_layers,
        batch_size=batch_size,
        n_heads=cfg.n_heads,
        context_length=cfg.context_length if max_tokens is None else max_tokens,
        head_dim=cfg.head_dim,
        dtype=dtype,
        device=device,
    )


def check_most_tokens(cfg: GPTConfig, name: str, num_tokens: int) -> None:
    """Raises ConfigError unless a model can see `num_tokens` tokens; `name` is what asks for it."""
    if num_tokens < 1:
        raise ConfigError(f"{name} is at least 1, found {num_tokens}")
    if cfg.max_tokens is not None and num_tokens > cfg.max_tokens:
        raise ConfigError(
            f"{name} is {num_tokens}, but the model takes at most {cfg.max_tokens} tokens: pos is "
            f'"{cfg.pos}" and its context_length {cfg.context_length}'
        )
