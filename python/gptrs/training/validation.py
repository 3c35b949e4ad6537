"""What a run is validated on: fixed batches, what they weigh, and what a model has to beat there.

tokens    0 1 2 3 4 5 6 7 8 9 | 10 11 12      held out: the last tenth, or other tokens
windows                         end to end, the same each time, without dropout
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptrs.config import GPTConfig
from gptrs.data.dataset import GPTDatasetV1
from gptrs.devices import Precision
from gptrs.errors import ConfigError, DataError, TokenIdError
from gptrs.store.token_store import TokenStore
from gptrs.text import corpus
from gptrs.training.config import TrainingConfig
from gptrs.training.data import Batch, Tokens
from gptrs.training.step import World

Validation = Tokens | TokenStore | Sequence[Batch]
"""What `train` can validate on."""

_COUNTED_TOKENS = 1 << 28
"""Of a store, most tokens to count for the unigram loss."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which tokens are trained on: the first so many; and what is held out, as an array."""

    num_train: int
    held_out: Tokens


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a run is validated on."""

    batches: Sequence[Batch]
    unigram_loss: float | None
    """What a model that knows only how common each token is gets, in nats per token."""
    bytes_per_token: float | None
    """None without a tokenizer."""

    @property
    def num_tokens(self) -> int:
        """How many positions count."""
        return sum(batch.num_targets for batch in self.batches)

    def bits_per_byte(self, loss: float | None) -> float | None:
        """A loss in nats per token, in bits per byte of text."""
        if self.bytes_per_token is None or loss is None:
            return None
        return corpus.bits_per_byte(loss, self.bytes_per_token)


@torch.no_grad()
def validation_loss(
    step_loss: nn.Module,
    batches: Sequence[Batch],
    device: torch.device,
    precision: Precision,
    world: World,
) -> float:
    """Mean loss per position that counts, in nats. The module is to be in eval mode."""
    loss_sum = count = 0.0
    for first in range(0, len(batches), world.world_size):
        is_mine = first + world.rank < len(batches)
        if not is_mine and not world.is_sharded:
            break
        # Shards are gathered by all processes: one that has no batch left computes any.
        batch = batches[first + world.rank if is_mine else first]
        num_targets = batch.num_targets
        if num_targets or world.is_sharded:  # The mean of no positions is no number.
            with precision.autocast(device):
                loss: Tensor = step_loss(*batch.to(device))
            if num_targets and is_mine:
                loss_sum += loss.item() * num_targets
                count += num_targets
    totals = world.sum(torch.tensor([loss_sum, count], dtype=torch.float64))
    return float(totals[0] / totals[1])


def split_data(
    data: Tokens | TokenStore,
    validation: Tokens | TokenStore | None,
    config: TrainingConfig,
    cfg: GPTConfig,
) -> Split:
    """The tokens to train on, and the first of those that are held out.

    Raises:
        DataError: a part is shorter than one window, context_length + 1 tokens.
        TokenIdError: a token id is outside the vocabulary.
    """
    num_train, begin = len(data), 0
    if validation is None:
        num_train -= math.ceil(len(data) * config.validation_fraction)
        validation, begin = data, num_train
    _check_window("train", num_train, len(data), cfg)
    _check_window("validation", len(validation) - begin, len(validation), cfg)
    for tokens in {id(tokens): tokens for tokens in (data, validation)}.values():
        check_ids(tokens, cfg.vocab_size)
    most = max(1, config.max_validation_tokens // cfg.context_length) * cfg.context_length + 1
    return Split(num_train, np.asarray(validation[begin : begin + most]))


def _check_window(name: str, length: int, of: int, cfg: GPTConfig) -> None:
    if length <= cfg.context_length:
        raise DataError(
            f"{name} has {length:,} of {of:,} tokens; a window of context_length "
            f"{cfg.context_length} needs {cfg.context_length + 1:,}: more text, or a shorter "
            "context"
        )


def check_ids(tokens: Tokens | TokenStore, vocab_size: int) -> None:
    """Raises TokenIdError if an id is outside the vocabulary."""
    if isinstance(tokens, TokenStore):
        if tokens.n_vocab > vocab_size:
            raise TokenIdError(
                f"{tokens!r} has ids up to {tokens.n_vocab - 1}, outside 0..{vocab_size - 1}, "
                "the model's vocabulary"
            )
    elif (largest := int(tokens.max())) >= vocab_size:
        position = int(tokens.argmax())
        raise TokenIdError(f"token id {largest} at {position} is outside 0..{vocab_size - 1}")


def held_out(
    data: Tokens | TokenStore, split: Split, cfg: GPTConfig, micro_batch: int, tokenizer: Any
) -> HeldOut:
    """The held-out tokens as batches of `micro_batch` windows, end to end."""
    windows = GPTDatasetV1.from_tokens(split.held_out, cfg.context_length, cfg.context_length)
    batches = [
        Batch(*windows.fill(range(start, min(start + micro_batch, len(windows)))))
        for start in range(0, len(windows), micro_batch)
    ]
    counts = _counts(data, split.num_train, cfg.vocab_size)
    per_token = None if tokenizer is None else corpus.bytes_per_token(split.held_out, tokenizer)
    return HeldOut(batches, corpus.unigram_loss(counts, split.held_out), per_token)


def given(batches: Sequence[Batch]) -> HeldOut:
    """Batches that somebody made.

    Raises:
        ConfigError: nothing in them counts.
    """
    made = HeldOut(batches, None, None)
    if not made.num_tokens:
        raise ConfigError("there is nothing to validate on: no position of the batches counts")
    return made


def _counts(data: Tokens | TokenStore, stop: int, vocab_size: int) -> Tokens:
    """How often each id is in the first `stop` tokens."""
    if not isinstance(data, TokenStore):
        return np.bincount(data[:stop], minlength=vocab_size)
    counted = min(stop, _COUNTED_TOKENS)
    counts = data._core.token_counts(0, counted, threads=None, on_progress=None)
    return np.pad(counts, (0, vocab_size - len(counts)))
