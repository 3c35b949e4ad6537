"""What a training step reads: a formula of the step's number, whatever the process looks like."""

import json
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gptrs
from gptrs.errors import ConfigError, DataError
from gptrs.training.data import Batch, PrefetchedSteps, WindowSource
from gptrs.training.order import WindowOrder, permuted

sizes = st.integers(1, 2000)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    (folder / "text.txt").write_text(" ".join(map(str, range(700))))
    return gptrs.build_store(folder / "text.txt", folder / "store")


def inputs(source, step):
    return torch.cat([batch.inputs for batch in source.micro_batches(step)])


@given(n=sizes, seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**40))
def test_the_order_of_an_epoch_has_every_number_once(n, seed, epoch):
    numbers = permuted(np.arange(n, dtype=np.uint64), n, seed, epoch)
    assert sorted(numbers.tolist()) == list(range(n))


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
@pytest.mark.parametrize("length", [4, 33])
def test_the_first_epoch_is_the_loaders_of_the_same_seed(store, seed, length):
    loader = gptrs.WindowLoader(store, 1, length, seed=seed)
    expected = torch.cat([inputs for inputs, _ in islice(loader, len(loader))])
    source = WindowSource(store, length, length * len(loader), seed=seed)
    assert torch.equal(inputs(source, 0), expected)


@given(num_tokens=sizes, length=st.integers(1, 50), seed=st.integers(0, 99))
def test_windows_of_an_epoch_lie_end_to_end_and_fit(num_tokens, length, seed):
    if num_tokens <= length:
        return
    order = WindowOrder(num_tokens, length, seed)
    first = 0
    for epoch in range(4):
        count = order.first_epoch if epoch == 0 else order.later_epochs
        starts = sorted(order.starts(first, first + count).tolist())
        assert {b - a for a, b in pairwise(starts)} <= {length}
        assert starts[0] >= 0
        assert starts[-1] + length < num_tokens
        assert order.epoch_of(first) == epoch
        first += count


def test_later_epochs_start_at_other_tokens():
    order = WindowOrder(1000, 10, seed=1)
    firsts = [min(order.starts(99 + 98 * e, 99 + 98 * (e + 1))) % 10 for e in range(30)]
    assert len(set(firsts)) > 5


@given(
    world_size=st.integers(1, 6),
    micro_batch=st.integers(1, 9),
    step=st.integers(0, 300),
)
def test_a_step_has_the_same_windows_on_any_ranks_in_any_micro_batches(
    world_size, micro_batch, step
):
    tokens = np.arange(500, dtype=np.uint16)
    whole = inputs(WindowSource(tokens, 5, 40, seed=3), step)
    parts = [
        inputs(
            WindowSource(
                tokens, 5, 40, seed=3, micro_batch=micro_batch, rank=rank, world_size=world_size
            ),
            step,
        )
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_micro_batches_are_no_larger_than_asked_and_targets_follow_inputs():
    source = WindowSource(np.arange(500, dtype=np.uint16), 5, 35, seed=3, micro_batch=3)
    batches = list(source.micro_batches(11))
    assert [len(batch.inputs) for batch in batches] == [3, 3, 1]
    assert all(torch.equal(batch.inputs + 1, batch.targets) for batch in batches)


def test_a_store_and_its_tokens_give_the_same_batches_and_stop_keeps_the_rest_out(store):
    array = np.array(store[:])
    kwargs = {"length": 8, "batch_tokens": 64, "seed": 5, "stop": 301}
    from_store, from_array = WindowSource(store, **kwargs), WindowSource(array, **kwargs)
    for step in range(12):
        assert torch.equal(inputs(from_store, step), inputs(from_array, step))
    starts = from_array.order.starts(0, 2000)
    assert starts.max() + 8 <= 300
    assert from_store.describe() | {"tokens": 0} == from_array.describe() | {"tokens": 0}
    json.dumps(from_store.describe())


def test_a_run_longer_than_its_data_takes_windows_of_two_epochs_in_a_step():
    source = WindowSource(np.arange(100, dtype=np.uint16), 10, 40, seed=0)
    starts = source.order.starts(0, 9 + 8).tolist()
    assert source.order.first_epoch == 9
    assert sorted(starts[:9]) == list(range(0, 90, 10))
    assert source.epochs_before(0) == 0
    assert source.epochs_before(4) == pytest.approx(1 + 7 / 8)


@pytest.mark.parametrize(
    ("batch_tokens", "world_size", "message"),
    [
        (12, 1, "batch_tokens 12 is not a multiple of context_length 8: take 8 or 16"),
        (5, 1, "take 8$"),
        (16, 3, "2 windows of 8, too few for 3 processes: take 24 or more"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(batch_tokens, world_size, message):
    with pytest.raises(ConfigError, match=message):
        WindowSource(np.arange(99, dtype=np.uint16), 8, batch_tokens, seed=0, world_size=world_size)


def test_tokens_without_a_window_are_refused():
    with pytest.raises(DataError, match="8 tokens"):
        WindowSource(np.arange(8, dtype=np.uint16), 8, 8, seed=0)


class Ragged:
    num_tokens_per_step = 8

    def micro_batches(self, step):
        if step == 3:
            raise OSError("the disk is gone")
        for count in (1, step):
            targets = torch.full((2, 2), -100)
            targets.flatten()[:count] = 5
            yield Batch(torch.zeros(2, 2, dtype=torch.int64), targets)

    def describe(self):
        return {}


def test_steps_are_made_ahead_and_what_counts_is_counted():
    with PrefetchedSteps(Ragged(), 1) as steps:
        assert next(steps).num_targets == 2
        assert next(steps).num_targets == 3
        with pytest.raises(OSError, match="the disk is gone"):
            next(steps)
