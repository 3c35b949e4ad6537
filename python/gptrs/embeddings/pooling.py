"""Hidden states to one vector a text: which share each token has, and where long texts are cut.

    a text of 10 tokens, a context of 4, a stride of 3

    tokens     0 1 2 3 4 5 6 7 8 9
    window 0   0 1 2 3                  the first counts all its tokens
    window 1         3 4 5 6            the next ones those that none before has counted: the
    window 2               6 7 8 9      tokens before them are context only

So every token counts once, and a text in windows is pooled as one in a single piece is. All ways
but the maximum are weighted sums, which windows and batches add up.
"""

# Tensor names end in their shape: B windows, T tokens of the longest, D emb_dim, N texts.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gptrs.embeddings.pooling_kinds import Pooling


class Window(NamedTuple):
    """Tokens start..end of a text, of which those before `new` are context only."""

    text: int
    start: int
    new: int
    end: int


def windows_of(text: int, num_tokens: int, context_length: int, stride: int) -> Iterator[Window]:
    """The windows of one text, which has a token at least; `stride` <= `context_length`."""
    start = new = end = 0
    while end < num_tokens:
        end = min(start + context_length, num_tokens)
        yield Window(text, start, new, end)
        start, new = start + stride, end


def batches_of(
    windows: list[Window], batch_tokens: int, most_padding: int
) -> Iterator[list[Window]]:
    """Windows of like length together, the longest first: so memory runs out at once or never.

    Args:
        batch_tokens: most tokens of a batch, padding included, if it has more than one window.
        most_padding: so many tokens of padding cost as much as another batch does by itself.
    """
    batch: list[Window] = []
    num_tokens = longest = 0
    for window in sorted(windows, key=lambda each: each.start - each.end):
        length = window.end - window.start
        padded = (len(batch) + 1) * longest
        if padded > batch_tokens or padded - (num_tokens + length) > most_padding:
            yield batch
            batch, num_tokens = [], 0
        if not batch:
            longest = length
        batch.append(window)
        num_tokens += length
    if batch:
        yield batch


def pooled(hidden_BTD: Tensor, lengths_B: Tensor, pooling: Pooling) -> Tensor:
    """The vectors of texts that are whole in a batch: float32 [B, D]; gradients flow."""
    place_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None]
    length_B1 = lengths_B[:, None]
    return _pooled(hidden_BTD.float(), pooling, place_BT, length_B1, place_BT < length_B1)


class Pool:
    """Vectors of `num_texts` texts, to which windows are added in any order.

    Args:
        lengths: how many tokens each text has.
    """

    def __init__(
        self, pooling: Pooling, lengths: Sequence[int], emb_dim: int, device: torch.device
    ) -> None:
        self._pooling = pooling
        self._lengths = lengths
        first = -torch.inf if pooling == "max" else 0.0
        self._sums_ND = torch.full((len(lengths), emb_dim), first, device=device)

    def add(self, hidden_BTD: Tensor, windows: Sequence[Window]) -> None:
        """Takes the hidden states of windows, each from column 0 on; what is behind is padding."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):  # Sums are float32 anyway.
            self._add(hidden_BTD.float(), windows)

    def vectors(self) -> Tensor:
        """float32 [N, D], on the CPU."""
        return self._sums_ND.cpu()

    def _add(self, hidden_BTD: Tensor, windows: Sequence[Window]) -> None:
        device = hidden_BTD.device
        table = [(*window, self._lengths[window.text]) for window in windows]
        text_B, *bounds = torch.tensor(table, device=device).unbind(1)
        start_B1, new_B1, end_B1, length_B1 = (bound[:, None] for bound in bounds)
        place_BT = start_B1 + torch.arange(hidden_BTD.shape[1], device=device)
        counts_BT = (place_BT >= new_B1) & (place_BT < end_B1)
        part_BD = _pooled(hidden_BTD, self._pooling, place_BT, length_B1, counts_BT)
        if self._pooling == "max":
            self._sums_ND.scatter_reduce_(0, text_B[:, None].expand_as(part_BD), part_BD, "amax")
        else:
            self._sums_ND.index_add_(0, text_B, part_BD)


def _pooled(
    hidden_BTD: Tensor, pooling: Pooling, place_BT: Tensor, length_B1: Tensor, counts_BT: Tensor
) -> Tensor:
    """What the tokens that count add to their text's vector: float32 [B, D]."""
    if pooling == "max":
        return hidden_BTD.masked_fill(~counts_BT[..., None], -torch.inf).amax(1)
    share_BT = _shares(pooling, place_BT, length_B1) * counts_BT
    return torch.bmm(share_BT[:, None], hidden_BTD)[:, 0]


def _shares(pooling: Pooling, place_BT: Tensor, length_B1: Tensor) -> Tensor:
    """float32, as wide as [B, T]: what a token at a place counts; a text's tokens together, 1."""
    match pooling:
        case "mean":
            return 1 / length_B1
        case "weighted_mean":
            return 2 * (place_BT + 1) / length_B1 / (length_B1 + 1)
        case "cls":
            return (place_BT == 0).float()
        case _:
            return (place_BT == length_B1 - 1).float()
