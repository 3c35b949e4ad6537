"""What a training run reads: batches by the number of the step, in a process's micro-batches.

    step ─► windows step * W .. (step + 1) * W ─► this rank's share ─► micro-batches

The step's number alone says what is in it. So a checkpoint has no position to keep, and neither
ranks nor micro-batches change what a step learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptrs.data.dataset import GPTDatasetV1
from gptrs.errors import ConfigError, TokenIdError
from gptrs.model.loss import IGNORE_INDEX
from gptrs.store.token_store import TokenStore
from gptrs.training.order import ORDER_VERSION, WindowOrder

Tokens = NDArray[np.integer[Any]]
Ids = Tokens | Tensor | Sequence[int]
"""Token ids in a row."""


def as_tokens(ids: Any, vocab_size: int) -> Any:
    """Integers in a row, of whatever kind, as uint16 or uint32 [N]; what is no ids as it is.

    Raises:
        ConfigError: an array of other numbers, or of other than one dimension.
        TokenIdError: an id is outside the vocabulary. Arrays that stay as they are, are not read.
    """
    if isinstance(ids, Tensor):
        ids = ids.detach().cpu()
        ids = ids.double().numpy() if ids.is_floating_point() else ids.numpy()
    elif isinstance(ids, list | tuple | range) and ids and isinstance(ids[0], int | np.integer):
        try:
            ids = np.array(ids)
        except ValueError as error:
            raise ConfigError(f"token ids are integers in a row: {error}") from error
    if not isinstance(ids, np.ndarray):
        return ids
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise ConfigError(
            f"token ids are integers in a row, [N]; found {ids.dtype} {list(ids.shape)}"
        )
    if ids.dtype in (np.uint16, np.uint32):
        return np.require(ids, requirements=["C", "A"])
    for position in (ids.argmin(), ids.argmax()) if len(ids) else ():
        if not 0 <= (found := int(ids[position])) < vocab_size:
            raise TokenIdError(f"token id {found} at {position} is outside 0..{vocab_size - 1}")
    return ids.astype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class Batch(NamedTuple):
    """What one forward pass reads."""

    inputs: Tensor
    """int64 [B, T]."""
    targets: Tensor
    """int64 [B, T]; -100 where a position does not count."""
    cu_seqlens: Tensor | None = None
    """int32 [documents + 1]: where documents start and end in the row-major B * T tokens, as
    `GPTModel.forward` takes it; None: a row is one."""

    @property
    def num_targets(self) -> int:
        """How many positions count."""
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; from pinned memory without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in memory that a GPU can copy from by itself."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        starts = None if self.cu_seqlens is None else change(self.cu_seqlens)
        return Batch(change(self.inputs), change(self.targets), starts)


class BatchSource(Protocol):
    """What `train` can train on, besides tokens."""

    @property
    def num_tokens_per_step(self) -> int:
        """Tokens that all ranks together read in a step."""

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This rank's part of step `step`, counted from 0: at least one batch, always the same."""

    def describe(self) -> dict[str, Any]:
        """What the order of the data depends on, as JSON: a resume compares it.

        Not the micro-batch, nor the ranks: these may change.
        """


@runtime_checkable
class Uncut(Protocol):
    """A source of batches that leaves it to the run how many rows go through the model at once."""

    @property
    def num_rows(self) -> int:
        """Rows of a step, of all ranks together, each as long as the model's context."""

    def cut(self, micro_batch: int) -> BatchSource:
        """The same steps, at most so many rows at once."""


class WindowSource:
    """Windows of a token stream, shuffled anew in every epoch; see `training_order`.

    Args:
        tokens: uint16 or uint32 [N], or a store.
        stop: train on the first so many; None is all.
        batch_tokens: tokens a step, a multiple of `length`.
        micro_batch: most windows a forward pass.
    Raises:
        ConfigError: a step cannot be shared by the ranks.
        DataError: the tokens are fewer than one window needs.
    """

    def __init__(
        self,
        tokens: Tokens | TokenStore,
        length: int,
        batch_tokens: int,
        *,
        seed: int,
        stop: int | None = None,
        micro_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_tokens = len(tokens) if stop is None else stop
        self.length, self.num_windows = length, windows_per_step(batch_tokens, length, world_size)
        self.micro_batch = micro_batch or self.num_windows
        self.order = WindowOrder(self.num_tokens, length, seed)
        self._tokens = tokens
        self._windows = GPTDatasetV1.from_tokens(tokens, length, stride=1)
        share = range(world_size + 1)
        self._share = [self.num_windows * r // world_size for r in share][rank : rank + 2]

    @property
    def num_tokens_per_step(self) -> int:
        """Tokens that all ranks together read in a step."""
        return self.num_windows * self.length

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This rank's windows of a step, `micro_batch` at a time."""
        first, stop = (step * self.num_windows + place for place in self._share)
        starts = self.order.starts(first, stop)
        for begin in range(0, len(starts), self.micro_batch):
            yield Batch(*self._windows.fill(starts[begin : begin + self.micro_batch]))

    def epochs_before(self, step: int) -> float:
        """How often the data has been seen before a step."""
        return self.order.epoch_of(step * self.num_windows)

    def describe(self) -> dict[str, Any]:
        """What the order depends on, and which tokens these are."""
        return {
            "kind": "windows",
            "order": ORDER_VERSION,
            "tokens": fingerprint(self._tokens),
            "num_tokens": self.num_tokens,
            "context_length": self.length,
            "windows_per_step": self.num_windows,
            "seed": self.order.seed,
        }


def windows_per_step(batch_tokens: int, length: int, world_size: int = 1) -> int:
    """How many windows a step has.

    Raises:
        ConfigError: no whole number, or fewer than there are ranks.
    """
    count, rest = divmod(batch_tokens, length)
    if rest or not count:
        nearest = " or ".join(f"{n * length:,}" for n in (count, count + 1) if n)
        raise ConfigError(
            f"batch_tokens {batch_tokens:,} is not a multiple of context_length {length:,}: "
            f"take {nearest}"
        )
    if count < world_size:
        raise ConfigError(
            f"batch_tokens {batch_tokens:,} is {count} windows of {length:,}, too few for "
            f"{world_size} processes: take {world_size * length:,} or more"
        )
    return count


def fingerprint(tokens: Tokens | TokenStore) -> str:
    """What tells these tokens from all others: a store's own, or a digest of an array."""
    if isinstance(tokens, TokenStore):
        return tokens.fingerprint
    import hashlib

    digest = hashlib.blake2b(str(tokens.dtype).encode(), digest_size=8)
    content: Any = np.ascontiguousarray(tokens)  # To mypy, an array is no buffer.
    digest.update(content)
    return digest.hexdigest()


class StepBatches(NamedTuple):
    """All that a rank computes in one step."""

    batches: list[Batch]
    num_targets: int
    """Positions that count, in all batches of this rank."""


class PrefetchedSteps:
    """The steps of a source in their order; the next is made while the caller works on one.

    Use it in a `with`: a thread ends with it.

    Args:
        first: the step to begin with.
        pin: whether batches are to be in pinned memory.
    """

    def __init__(self, source: BatchSource, first: int, *, pin: bool = False) -> None:
        self._source, self._pin = source, pin
        self._step = first
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gptrs-batches")
        self._coming: Future[StepBatches] = self._thread.submit(self._make, first)

    def __next__(self) -> StepBatches:
        """The next step's batches; an error of the source arrives unchanged."""
        ready = self._coming.result()
        self._step += 1
        self._coming = self._thread.submit(self._make, self._step)
        return ready

    def _make(self, step: int) -> StepBatches:
        batches = list(self._source.micro_batches(step))
        if not batches:
            raise ConfigError(f"{self._source!r} has no batches for step {step}")
        if self._pin:
            batches = [batch.pinned() for batch in batches]
        return StepBatches(batches, sum(batch.num_targets for batch in batches))

    def __enter__(self) -> PrefetchedSteps:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
