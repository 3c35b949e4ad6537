"""Keys and values of the tokens a model has already read, so that the next token costs one row.

           context_length slots, allocated once
    row 0  [ k k k k k . . . . . ]   lengths[0] = 5
    row 1  [ k k k . . . . . . . ]   lengths[1] = 3: rows may differ

A forward pass appends to every row. What lies beyond `lengths[b]` is never attended to, so lowering
`lengths[b]` is all it takes to forget. Knows nothing of the model, nor of the tokens themselves.
Rows without an end are `segment_cache`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from gptrs.errors import GenerationError
from gptrs.memory import zeros

# B batch rows, T new tokens, S slots attended to, H heads, K head_dim.

ExtendLayer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Stores a layer's new keys and values [B, H, T, K], returns all there are, [B, H, S, K]."""


class KVCache:
    """Keys and values of every layer; made by `GPTModel.new_cache`.

    Attributes:
        storage: [n_layers, 2, batch_size, n_heads, context_length, head_dim], keys and values.
        keys, values: one view [batch_size, n_heads, context_length, head_dim] of it a layer.
        lengths: how many tokens each row holds, ints on the host. Lower one to forget that row's
            last tokens. A cache made by `rows` has its parent's list, the same object.
        first_row: where this cache's row 0 stands in `lengths`; 0 unless it was made by `rows`.
        batch_size: number of rows.
        context_length: most tokens a row can hold.
    Raises:
        GenerationError: there is no memory for it.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        context_length: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (n_layers, 2, batch_size, n_heads, context_length, head_dim)
        # Zeros, not `empty`: a slot nobody wrote has attention weight 0, and 0 * nan would be nan.
        what = f"a key-value cache of {batch_size} rows of {context_length} tokens"
        self._view(zeros(shape, dtype, torch.device(device or "cpu"), what))
        self.lengths = [0] * batch_size
        self.first_row = 0
        self.batch_size = batch_size
        self.context_length = context_length

    def rows(self, start: int, stop: int) -> Self:
        """A cache over rows start..stop that shares storage and `lengths` with this one.

        Raises:
            GenerationError: there are no such rows.
        """
        if not 0 <= start < stop <= self.batch_size:
            raise GenerationError(
                f"rows {start}..{stop} were asked for; the cache has 0..{self.batch_size}"
            )
        view = copy.copy(self)
        view._view(self.storage[:, :, start:stop])
        view.first_row = self.first_row + start
        view.batch_size = stop - start
        return view

    def copy_row(self, src: int, dst: int, length: int) -> None:
        """Makes row `dst` hold the first `length` tokens of row `src`.

        Raises:
            GenerationError: no such row, or row `src` holds fewer tokens.
        """
        self._check_copy(src, dst, length)
        if src != dst:
            self.storage[:, :, dst, :, :length] = self.storage[:, :, src, :, :length]
        self.lengths[self.first_row + dst] = length

    def _view(self, storage: Tensor) -> None:
        self.storage = storage
        self.keys = [layer[0] for layer in storage]
        self.values = [layer[1] for layer in storage]

    def place(self, batch_size: int, num_tokens: int) -> Placement:
        """Where `num_tokens` more tokens of every row go. Writes nothing.

        Raises:
            GenerationError: another batch size than the cache's, or a row would outgrow
                context_length.
        """
        self._check_batch(batch_size)
        lengths = self.lengths[self.first_row : self.first_row + batch_size]
        for row, length in enumerate(lengths):
            if length + num_tokens > self.context_length:
                raise GenerationError(
                    f"row {row} of the cache holds {length} tokens, and {num_tokens} more exceed "
                    f"context_length {self.context_length}"
                )
        return self._place_behind(lengths, num_tokens)

    def _place_behind(self, num_filled: Sequence[int], num_tokens: int) -> Placement:
        """Tokens that go behind the filled slots of each row, and see all of these."""
        device = self.storage.device
        start = num_filled[0] if num_filled else 0
        # Not a set of them: its hashes would fix each length, and compile each anew.
        if all(filled == start for filled in num_filled):
            end = start + num_tokens
            position_ids = torch.arange(start, end, device=device)
            # A single token sees all there is, and from an empty cache plain causal attention does.
            mask = _visible(position_ids, end) if num_tokens > 1 and start > 0 else None
            return Placement(self, num_tokens, position_ids, mask, end, start)
        end = max(num_filled) + num_tokens
        starts = torch.tensor(num_filled, device=device)
        position_ids = starts[:, None] + torch.arange(num_tokens, device=device)
        mask = _visible(position_ids, end)[:, None]
        return Placement(self, num_tokens, position_ids, mask, end, starts=starts)

    def _check_batch(self, batch_size: int) -> None:
        if batch_size != self.batch_size:
            raise GenerationError(
                f"the input has {batch_size} rows, its cache has {self.batch_size}"
            )

    def _check_copy(self, src: int, dst: int, length: int) -> None:
        for row in (src, dst):
            if not 0 <= row < self.batch_size:
                raise GenerationError(f"row {row} is outside 0..{self.batch_size - 1}")
        held = self.lengths[self.first_row + src]
        if not 0 <= length <= held:
            raise GenerationError(f"{length} tokens of row {src} were asked for; it holds {held}")


@dataclass(frozen=True, slots=True)
class Placement:
    """The slots that one forward pass fills; the same in every layer."""

    cache: KVCache
    num_tokens: int
    position_ids: Tensor
    """The slots filled: int64 [T] where all rows are equally long, else [B, T]."""
    mask: Tensor | None
    """bool [T, S] or [B, 1, T, S], True where a new token sees a slot. None: see `is_causal`."""
    end: int
    """Where the slots that are looked at end; they begin at 0."""
    start: int | None = None
    """First slot filled, where all rows are equally long."""
    starts: Tensor | None = None
    """int64 [B], the first slot filled in each row, where they are not."""

    @property
    def is_causal(self) -> bool:
        """Without a mask: plainly causal from an empty cache, or else one token that sees all."""
        # A bool, which SDPA wants, from a symbol too: the comparison itself would stay one.
        return True if self.start == 0 else False  # noqa: SIM210

    def layer(self, index: int) -> ExtendLayer:
        """Stores what it is given in layer `index`."""
        return partial(self._extend, self.cache.keys[index], self.cache.values[index])

    def commit(self) -> None:
        """Counts the new tokens in. Until then, an interrupted pass has changed nothing."""
        first_row = self.cache.first_row
        for row in range(first_row, first_row + self.cache.batch_size):
            self.cache.lengths[row] += self.num_tokens

    def _extend(
        self, keys: Tensor, values: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor]:
        for stored, new_BHTK in ((keys, k_BHTK), (values, v_BHTK)):
            if self.starts is None:
                stored[:, :, self.start : self.end] = new_BHTK
            else:
                new_BTHK = new_BHTK.transpose(1, 2).to(stored.dtype)
                row_B1 = torch.arange(len(self.starts), device=stored.device)[:, None]
                stored[row_B1, :, self.position_ids] = new_BTHK
        # The cache may have another dtype than the layers: attention wants one.
        dtype = k_BHTK.dtype
        return keys[:, :, : self.end].to(dtype), values[:, :, : self.end].to(dtype)


def _visible(position_ids: Tensor, num_slots: int) -> Tensor:
    """Whether slot s is visible from position p, s <= p: bool [..., T, num_slots]."""
    return torch.arange(num_slots, device=position_ids.device) <= position_ids[..., None]
