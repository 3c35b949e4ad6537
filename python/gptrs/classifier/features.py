"""What a classifier's last layer is applied to: one vector a text, computed as seldom as possible.

    texts ─► ids, cut to max_length ─► hidden states ─► pooled [N, D] ─► out_head

               what learns        what is kept between epochs
    head       out_head           PooledTexts    the pooled vectors: the model runs once
    last_block the last block     BlockInputs    what goes into that block: it alone runs again
    lora, all  layers throughout  TokenTexts     nothing

Texts are padded on the right, where a causal model's other tokens never look.
"""

# Tensor names end in their shape: B texts, T tokens of the longest, D emb_dim, N all texts or all
# their tokens.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptrs.devices import Precision
from gptrs.embeddings.pooling import Window, batches_of, pooled
from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.memory import available_bytes
from gptrs.model.forward_pass import plan
from gptrs.model.gpt import GPTModel
from gptrs.model.trunk import trunk_of

BATCH_TOKENS = 4096
"""How many tokens, with padding, are computed at once where nothing is learned."""
_MEMORY_SHARE = 0.5
"""Of what is free, the most that kept hidden states take."""

OnTexts = Callable[[int], object]
"""Is told how many more texts are done."""


class Texts(Protocol):
    """Numbered texts, which become vectors."""

    def vectors(self, indices: Tensor) -> Tensor:
        """float32 [B, D] of the texts with these numbers; gradients flow where something learns."""


def batches_by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """All numbers of texts, the longest first, in batches of BATCH_TOKENS with their padding."""
    texts = [Window(index, 0, 0, length) for index, length in enumerate(lengths)]
    for batch in batches_of(texts, BATCH_TOKENS, most_padding=BATCH_TOKENS):
        yield [window.text for window in batch]


class TokenTexts:
    """Texts that go through all of the model each time."""

    def __init__(
        self, model: GPTModel, rows: list[Tensor], pooling: Pooling, precision: Precision
    ) -> None:
        self.model, self.rows, self.pooling, self.precision = model, rows, pooling, precision
        self.lengths = list(map(len, rows))
        self.device = model.tok_emb.weight.device

    def padded(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The ids [B, T], zeros behind a text's end, and the lengths [B]."""
        ids_BT = pad_sequence([self.rows[index] for index in indices], batch_first=True)
        lengths_B = torch.tensor([self.lengths[index] for index in indices])
        return ids_BT.to(self.device), lengths_B.to(self.device)

    def vectors(self, indices: Tensor) -> Tensor:
        """See `Texts`."""
        ids_BT, lengths_B = self.padded(indices.tolist())
        with self.precision.autocast(self.device):
            hidden_BTD = self.model.hidden_states(ids_BT)
        return pooled(hidden_BTD, lengths_B, self.pooling)

    @torch.no_grad()
    def all_vectors(self, on_texts: OnTexts) -> Tensor:
        """The vectors of all texts in their order, float32 [N, D], without gradients."""
        vectors_ND = torch.empty(len(self.rows), self.model.cfg.emb_dim, device=self.device)
        for batch in batches_by_length(self.lengths):
            vectors_ND[batch] = self.vectors(torch.tensor(batch))
            on_texts(len(batch))
        return vectors_ND


class PooledTexts:
    """Texts whose vectors are known: float32 [N, D]."""

    def __init__(self, vectors_ND: Tensor) -> None:
        self.vectors_ND = vectors_ND

    def vectors(self, indices: Tensor) -> Tensor:
        """See `Texts`."""
        return self.vectors_ND[indices]


class BlockInputs:
    """Texts that go through the last block and the last norm alone; what precedes is kept."""

    def __init__(self, texts: TokenTexts, on_texts: OnTexts) -> None:
        self._texts = texts
        self._ends = torch.tensor([0, *texts.lengths]).cumsum(0).tolist()
        self._hidden_ND = torch.empty(self._ends[-1], texts.model.cfg.emb_dim, device=texts.device)
        body = trunk_of(texts.model, len(texts.model.trf_blocks) - 1)
        with torch.no_grad(), texts.precision.autocast(texts.device):
            for batch in batches_by_length(texts.lengths):
                hidden_BTD = body.hidden_states(texts.padded(batch)[0])
                for index, hidden_TD in zip(batch, hidden_BTD, strict=True):
                    start, end = self._ends[index : index + 2]
                    self._hidden_ND[start:end] = hidden_TD[: end - start]
                on_texts(len(batch))

    @staticmethod
    def fits(texts: TokenTexts) -> bool:
        """Whether there is memory for all hidden states."""
        num_bytes = 4 * sum(texts.lengths) * texts.model.cfg.emb_dim
        available = available_bytes(texts.device)
        return available is None or num_bytes <= _MEMORY_SHARE * available

    def vectors(self, indices: Tensor) -> Tensor:
        """See `Texts`."""
        texts, model = self._texts, self._texts.model
        rows = [self._hidden_ND[slice(*self._ends[i : i + 2])] for i in indices.tolist()]
        lengths_B = torch.tensor([len(row) for row in rows], device=texts.device)
        x_BTD = pad_sequence(rows, batch_first=True)
        # What the blocks are told of the places depends on the shape of the ids alone.
        way = plan(model.cfg, lengths_B.new_zeros(x_BTD.shape[:2]), None, None, None)
        if model.pos_bias is not None:
            way = way.biased(model.pos_bias, x_BTD)
        last = len(model.trf_blocks) - 1
        block, attend = model.trf_blocks[last], way.layer(last, None)
        with texts.precision.autocast(texts.device):
            x_BTD = block(x_BTD) if attend is None else block(x_BTD, attend)
            x_BTD = model.final_norm(x_BTD)
        return pooled(x_BTD, lengths_B, texts.pooling)
