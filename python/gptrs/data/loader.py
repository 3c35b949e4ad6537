"""Batches from a token store, in an order that can be stopped, resumed and rescaled exactly.

    store ─► windows (arithmetic) ─► order (a permutation, by formula) ─► int64 batches, ahead

Rust fills the batches, in a thread of its own; there are no worker processes and no index. The
order depends on the store, the windows, the seed and the epoch alone, so a state of a few numbers
is enough to go on, on any number of ranks.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch.utils.data import IterableDataset, get_worker_info

from gptrs import _core
from gptrs.data.transfer import Batch, Progress, batches_on
from gptrs.errors import ConfigError, DataError
from gptrs.store.token_store import TokenStore

Boundary = Literal["stream", "document"]

STATE_VERSION: Final = 1
# A shared word for each; a DataLoader with more workers is refused.
_MOST_WORKERS = 1024
_LARGEST, _LARGEST_U64 = (1 << 63) - 1, (1 << 64) - 1


class WindowLoader(IterableDataset[Batch]):
    """Batches of windows: `inputs` and `targets`, int64 [batch_size, max_length] each.

    Each `iter()` is the next epoch. With `epochs=k` one iteration yields all epochs that are left
    of k; after it was broken off, another goes on behind the last batch. A yielded tensor is the
    caller's own and never overwritten.

    Of the global batch g, `order[g * W * B : (g + 1) * W * B]` for W ranks and B windows a batch,
    rank r gets the r-th B windows. Every rank yields equally many batches.

    Inside a `DataLoader(loader, batch_size=None, num_workers=n)` worker k fills every n-th batch,
    so that the order stays the same. torchdata's `StatefulDataLoader` saves and loads the state.

    Args:
        store: a `TokenStore`, or the path of one.
        batch_size: windows a batch, on each rank.
        max_length: tokens a window.
        stride: tokens from one window's start to the next; None is `max_length`.
        shuffle: whether each epoch has an order of its own, from (seed, epoch); else the store's.
        rank, world_size: which batches of each global batch are this process's.
        drop_last: whether to leave out what is no whole global batch at an epoch's end. Otherwise
            it is shared evenly; with several ranks, less than one window for each is left out.
        epochs: how many epochs there are; None is no end.
        boundary: "stream" joins all documents; with "document" a window lies inside one, its
            end-of-text included, and `dropped_tokens` has what is too short for one.
        return_positions: whether batches have two more tensors: `position_ids`, int64 [B, T],
            which counts from 0 at each row's start and behind each document's end; and
            `cu_seqlens`, int32: where these parts start among the row-major B*T tokens, and B*T.
        device: where the tensors are. For "cuda" they go through pinned memory, one batch ahead of
            the caller, on a CUDA stream of their own.
        prefetch: how many batches a thread fills ahead; 0 fills each when it is asked for.
    Raises:
        ConfigError: a setting makes no sense.
        DataError: the store has fewer windows than one batch takes.
        StoreError: the store's files cannot be read.
    """

    def __init__(
        self,
        store: TokenStore | str | os.PathLike[str],
        batch_size: int,
        max_length: int,
        *,
        stride: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        epochs: int | None = None,
        boundary: Boundary = "stream",
        return_positions: bool = False,
        device: torch.device | str | int | None = None,
        prefetch: int = 2,
    ) -> None:
        self.store = store if isinstance(store, TokenStore) else TokenStore.open(store)
        self.batch_size = _checked("batch_size", batch_size, 1)
        self.max_length = _checked("max_length", max_length, 1)
        self.stride = self.max_length if stride is None else _checked("stride", stride, 1)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.seed = _checked("seed", seed, 0, _LARGEST_U64)
        self.world_size = _checked("world_size", world_size, 1)
        self.rank = _checked("rank", rank, 0, self.world_size - 1)
        self.epochs = None if epochs is None else _checked("epochs", epochs, 1)
        if boundary not in get_args(Boundary):
            raise ConfigError(f'boundary is "stream" or "document", found {boundary!r}')
        self.boundary, self.return_positions = boundary, return_positions
        self.device = torch.device("cpu" if device is None else device)
        self.prefetch = _checked("prefetch", prefetch, 0, 1 << 16)
        self._batches = self._new_batches()
        if not self._batches.batches_per_epoch:
            raise DataError(self._too_few())
        self._start = _Place(0, 0)
        """Where the next iteration begins, if none has begun since this was made or loaded."""
        self._resumed_at: tuple[int, int] | None = None
        self._progress: Progress | None = None
        """Of the newest iteration."""
        # Fresh copies of this object work in a DataLoader's workers: here they read which epoch is
        # next. One word a worker, which no other writes.
        self._worker_epochs = torch.full((_MOST_WORKERS,), -1, dtype=torch.int64).share_memory_()

    def _new_batches(self) -> _core.WindowBatches:
        return _core.WindowBatches(
            self.store._core,
            max_length=self.max_length,
            stride=self.stride,
            boundary=self.boundary,
            seed=self.seed if self.shuffle else None,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
            return_positions=self.return_positions,
        )

    def _too_few(self) -> str:
        windows = f"windows of {self.max_length} and their targets"
        if self.boundary == "document":
            windows += ", each inside one document"
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        needed = self.world_size * (self.batch_size if self.drop_last else 1)
        return (
            f"the store has {len(self.store):,} tokens, hence {self.num_windows:,} {windows}; "
            f"batch_size {self.batch_size} on {ranks} needs {needed:,}"
        )

    @property
    def num_windows(self) -> int:
        """How many windows an epoch has, on all ranks together."""
        return self._batches.num_windows

    @property
    def dropped_windows(self) -> int:
        """How many windows of an epoch are in no rank's batch."""
        return self._batches.dropped_windows

    @property
    def dropped_tokens(self) -> int:
        """How many tokens of the store are in no window, neither as input nor as target."""
        return self._batches.dropped_tokens

    def __len__(self) -> int:
        """How many batches an epoch has on each rank; with `epochs=k`, all k together."""
        return self._batches.batches_per_epoch * (self.epochs or 1)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        if worker is not None and self.device.type != "cpu":
            raise ConfigError(
                f"a DataLoader's workers cannot fill tensors on {self.device}: leave device out "
                "here, and use the DataLoader's pin_memory"
            )
        place = self._next_place() if worker is None else self._next_place_of(worker)
        stream = self._batches.stream(
            place.epoch,
            place.position,
            end_epoch=self._end_epoch(place.epoch),
            skip=place.skip,
            step=1 if worker is None else worker.num_workers,
            prefetch=self.prefetch if worker is None else 0,
        )
        iterator, self._progress = batches_on(self.device, stream)
        return iterator

    def _next_place(self) -> _Place:
        """Where an iteration begins that begins now, in this process."""
        if self._progress is None:
            return self._start
        cursor = self._progress.cursor
        if self._progress.has_ended:
            return _Place(self._end_epoch(cursor[0]), 0)
        # Who loads a state may call iter() twice, as torchdata does: that is no epoch yet.
        if self.epochs is not None or cursor == self._resumed_at:
            return _Place(*cursor)
        return _Place(cursor[0] + 1, 0)

    def _next_place_of(self, worker: Any) -> _Place:
        """The same in a DataLoader's worker, in a copy that is as fresh as the worker."""
        if worker.num_workers > _MOST_WORKERS:
            raise ConfigError(f"num_workers is at most {_MOST_WORKERS}, found {worker.num_workers}")
        epoch = int(self._worker_epochs[worker.id])
        place = self._next_place() if epoch < 0 else _Place(epoch, 0)
        self._worker_epochs[worker.id] = self._end_epoch(place.epoch)
        if place.is_of_worker:
            return place
        return _Place(place.epoch, place.position, skip=worker.id)

    def _end_epoch(self, epoch: int) -> int:
        return epoch + 1 if self.epochs is None else self.epochs

    def state_dict(self) -> dict[str, Any]:
        """How far the newest iteration has come: what was yielded, not what is ready and waiting.

        A dict of numbers, strings and a list of strings. Batch size, ranks, `drop_last` and
        `epochs` are not part of it: they may differ where it is loaded.
        """
        worker = get_worker_info()
        progress, whose = self._progress, {}
        if worker is not None and progress is not None:
            # The other workers may not have ended their parts of the epoch.
            epoch, position = progress.cursor
            whose = {"worker": worker.id, "num_workers": worker.num_workers}
        elif progress is not None and not progress.has_ended:
            epoch, position = progress.cursor
        else:
            next_place = self._next_place()
            epoch, position = next_place.epoch, next_place.position
        place = {"seed": self.seed, "epoch": epoch, "position": position}
        return {"version": STATE_VERSION, **self._identity(), **place, **whose}

    def _identity(self) -> dict[str, Any]:
        """What the order depends on, besides the seed and the epoch."""
        return {
            "stores": [self.store.fingerprint],
            "max_length": self.max_length,
            "stride": self.stride,
            "boundary": self.boundary,
            "order": self._batches.order,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on behind the last batch that was yielded when `state` was made.

        The seed comes from the state.

        Raises:
            ConfigError: the state is of another store, other windows, another kind of order or a
                newer version; the message says which.
        """
        worker = get_worker_info()
        numbers = self._checked_state(state, worker)
        if numbers["seed"] != self.seed:
            self.seed = numbers["seed"]
            self._batches = self._new_batches()
        self._resumed_at = numbers["epoch"], numbers["position"]
        self._start = _Place(*self._resumed_at, is_of_worker="worker" in state)
        self._progress = None
        self._worker_epochs[slice(None) if worker is None else worker.id] = -1

    def _checked_state(self, state: Mapping[str, Any], worker: Any) -> dict[str, int]:
        """The state's seed, epoch and position."""
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"the state's version is {state.get('version')!r}, expected {STATE_VERSION}"
            )
        for name, expected in self._identity().items():
            if state.get(name) != expected:
                raise ConfigError(
                    f"the state is of another loader: its {name} is {state.get(name)!r}, "
                    f"here it is {expected!r}"
                )
        whose = state.get("worker"), state.get("num_workers")
        here = (None, None) if worker is None else (worker.id, worker.num_workers)
        if whose not in ((None, None), here):
            raise ConfigError(
                f"the state is of worker {whose[0]} of {whose[1]}: such a DataLoader has to load it"
            )
        return {
            "seed": _checked("seed", state.get("seed"), 0, _LARGEST_U64),
            "epoch": _checked("epoch", state.get("epoch"), 0),
            "position": _checked("position", state.get("position"), 0, self.num_windows),
        }

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_batches"]
        # A copy has no iteration of its own, and goes on as if it had this one.
        state["_start"], state["_progress"] = self._next_place(), None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._batches = self._new_batches()
        self._worker_epochs.share_memory_()

    def __repr__(self) -> str:
        return (
            f"WindowLoader({self.store!r}, batches of {self.batch_size} x {self.max_length}, "
            f"stride {self.stride}, {self._batches.order}, rank {self.rank} of {self.world_size})"
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an iteration begins."""

    epoch: int
    position: int
    skip: int = 0
    """How many batches are other workers' before the first."""
    is_of_worker: bool = False
    """Whether a worker's own state said so, which skips already."""


def _checked(name: str, value: Any, least: int, most: int = _LARGEST) -> int:
    """`value` as an int, if it is one in least..most."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is an integer, found {value!r}") from None
    if number < least:
        raise ConfigError(f"{name} is at least {least}, found {number}")
    if number > most:
        raise ConfigError(f"{name} is at most {most}, found {number}")
    return number
