"""`gptrs.WindowLoader`: the order, its resuming and rescaling, and the batches themselves."""

import gc
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import warnings
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import gptrs
from gptrs import TokenStore, WindowLoader, convert_store
from gptrs.data import transfer
from gptrs.errors import ConfigError, DataError, StoreError

END = 50256
NUM_TOKENS = 3000
SHARD_TOKENS = 700
# What the threads of a batch's filler are called; Linux cuts names.
THREAD = "gptrs-batches"


def document_ends():
    """Where documents end: one is a single token, one is longer than a shard."""
    return sorted(
        {5, 6, 900, 2100, NUM_TOKENS, *random.Random(3).sample(range(10, NUM_TOKENS), 60)}
    )


def tokens():
    """Token i has the id i, so a window shows where it was cut; but documents end with END."""
    ids = np.arange(NUM_TOKENS, dtype=np.uint16)
    ids[np.array(document_ends()) - 1] = END
    return ids


TOKENS = tokens()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    TOKENS.tofile(folder / "train.bin")
    made = convert_store(
        folder / "train.bin", folder / "ours", to="gptrs", shard_tokens=SHARD_TOKENS
    )
    assert made.num_documents == len(document_ends())
    return made


@pytest.fixture(scope="module")
def other_store(tmp_path_factory):
    file = tmp_path_factory.mktemp("stores") / "other.bin"
    TOKENS[::-1].copy().tofile(file)
    return TokenStore.open(file)


def first_tokens(batches):
    """Where the windows of some batches start in the stream."""
    starts = []
    for inputs, targets, *_ in batches:
        rows = np.concatenate([inputs.numpy(), targets.numpy()[:, -1:]], axis=1)
        # The first id that says where it stands.
        column = (rows != END).argmax(axis=1)
        starts += (rows[np.arange(len(rows)), column] - column).tolist()
    return starts


def assert_equal(ours, expected):
    ours, expected = list(ours), list(expected)
    assert len(ours) == len(expected)
    for mine, other in zip(ours, expected, strict=True):
        assert len(mine) == len(other)
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


# The order


@given(
    length=st.integers(2, 40),
    stride=st.integers(1, 60),
    shuffle=st.booleans(),
    prefetch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=30)
def test_an_epoch_has_every_window_of_the_stream_once(store, length, stride, shuffle, prefetch):
    loader = WindowLoader(
        store, 7, length, stride=stride, shuffle=shuffle, drop_last=False, prefetch=prefetch
    )
    batches = list(loader)
    assert len(batches) == len(loader)
    starts = first_tokens(batches)
    expected = list(range(0, NUM_TOKENS - length, stride))
    assert (sorted(starts) if shuffle else starts) == expected
    for inputs, targets in batches:
        assert inputs.dtype == targets.dtype == torch.int64
        for row_in, row_out in zip(inputs, targets, strict=True):
            [at] = first_tokens([(row_in[None], row_out[None])])
            assert row_in.tolist() == TOKENS[at : at + length].tolist()
            assert row_out.tolist() == TOKENS[at + 1 : at + 1 + length].tolist()
    assert loader.num_windows == len(expected)
    assert loader.dropped_windows == 0


def permutation(n, seed, epoch):
    """The order that ARCHITECTURE.md describes, with NumPy's Philox."""
    word = (1 << 64) - 1

    def philox(block):
        # NumPy counts up before each block of four words.
        counter = epoch + (block << 64) - 1
        key = seed + (int.from_bytes(b"shuffle1") << 64)
        return np.random.Philox(counter=counter % (1 << 256), key=key).random_raw(4).tolist()

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & word
        x = (x ^ x >> 27) * 0x94D049BB133111EB & word
        return x ^ x >> 31

    keys = [*philox(0), *philox(1)[:2]]
    bits = max(6, (n - 1).bit_length())
    right_bits = bits - bits // 2

    def once(number):
        left, right = number >> right_bits, number % (1 << right_bits)
        for i in (0, 2, 4):
            left ^= mix((right + keys[i]) & word) % (1 << bits // 2)
            right ^= mix((left + keys[i + 1]) & word) % (1 << right_bits)
        return left << right_bits | right

    order = []
    for number in map(once, range(n)):
        while number >= n:
            number = once(number)
        order.append(number)
    return order


@pytest.mark.parametrize("seed", [0, 1, (1 << 64) - 1])
@pytest.mark.parametrize("length", [2, 10, 1024])
def test_the_order_is_the_documented_permutation(store, seed, length):
    loader = WindowLoader(store, 1, length, stride=3, seed=seed)
    for epoch in range(3):
        expected = [3 * window for window in permutation(loader.num_windows, seed, epoch)]
        assert first_tokens(loader) == expected


def test_each_iteration_is_the_next_epoch_even_after_a_broken_one(store):
    epochs = first_tokens(WindowLoader(store, 4, 16, epochs=3))
    size = len(epochs) // 3
    loader = WindowLoader(store, 4, 16)
    assert first_tokens(loader) == epochs[:size]
    assert first_tokens(islice(loader, 2)) == epochs[size:][:8]
    assert first_tokens(loader) == epochs[2 * size :]
    assert len({tuple(epochs[i * size :][:size]) for i in range(3)}) == 3


def test_several_epochs_are_one_iteration_that_goes_on_where_it_was_left(store):
    one = WindowLoader(store, 4, 16)
    expected = [batch for _ in range(3) for batch in one]
    loader = WindowLoader(store, 4, 16, epochs=3)
    assert len(loader) == len(expected) == 3 * len(one)
    found = list(islice(loader, len(one) + 2))
    found += list(loader)
    assert_equal(found, expected)
    assert list(loader) == [], "no epoch is left"


def test_seeds_give_different_orders_and_the_same_seed_the_same(store):
    orders = [first_tokens(WindowLoader(store, 4, 16, seed=seed)) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_batches_stay_as_they_were_when_others_come(store, prefetch):
    loader = WindowLoader(store, 3, 8, shuffle=False, prefetch=prefetch)
    kept = list(loader)
    for (inputs, targets), at in zip(kept, range(0, NUM_TOKENS, 24), strict=False):
        assert inputs.reshape(-1).tolist() == TOKENS[at : at + 24].tolist()
        assert targets.reshape(-1).tolist() == TOKENS[at + 1 : at + 25].tolist()
    assert len({tensor.data_ptr() for batch in kept for tensor in batch}) == 2 * len(kept)


# Ranks


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_any_number_of_ranks_sees_the_same_sequence(store, shuffle, drop_last):
    global_batch = 24
    options = {"shuffle": shuffle, "drop_last": drop_last, "seed": 5}
    expected = first_tokens(WindowLoader(store, global_batch, 16, **options))
    for world_size in (1, 2, 3, 4, 8):
        ranks = [
            list(
                WindowLoader(
                    store, global_batch // world_size, 16, rank=r, world_size=world_size, **options
                )
            )
            for r in range(world_size)
        ]
        union = []
        for step in zip(*ranks, strict=True):
            assert len({len(inputs) for inputs, _ in step}) == 1
            union += first_tokens(step)
        dropped = len(expected) - len(union)
        assert 0 <= dropped < (1 if drop_last else world_size)
        assert union == expected[: len(union)]


def test_a_run_saved_on_two_ranks_goes_on_on_three(store):
    def ranks(batch_size, world_size, state=None):
        loaders = [
            WindowLoader(store, batch_size, 16, rank=r, world_size=world_size, seed=9)
            for r in range(world_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        return loaders

    expected = first_tokens(WindowLoader(store, 12, 16, seed=9))
    before = ranks(6, 2)
    iterators = [iter(loader) for loader in before]
    found = [t for _ in range(5) for t in first_tokens(next(i) for i in iterators)]
    states = [loader.state_dict() for loader in before]
    assert states[0] == states[1], "the state is not of a rank"
    for step in zip(*ranks(4, 3, states[0]), strict=True):
        found += first_tokens(step)
    assert found == expected


# Stopping and going on


@given(
    stops=st.lists(st.integers(0, 30), max_size=6),
    prefetches=st.lists(st.integers(0, 4), min_size=7, max_size=7),
    batch_size=st.integers(1, 60),
    drop_last=st.booleans(),
    seed=st.integers(0, (1 << 64) - 1),
)
@settings(deadline=None, max_examples=40)
def test_stopped_and_resumed_any_number_of_times_is_never_interrupted(
    store, stops, prefetches, batch_size, drop_last, seed
):
    def loader(prefetch, **more):
        return WindowLoader(
            store, batch_size, 32, stride=24, drop_last=drop_last, prefetch=prefetch, **more
        )

    unbroken = loader(0, seed=seed, epochs=200)
    found, state = [], None
    for stop, prefetch in zip(stops, prefetches, strict=False):
        # The seed is in the state.
        mine = loader(prefetch, seed=0 if state else seed)
        if state:
            mine.load_state_dict(json.loads(json.dumps(state)))
        endless = (batch for _ in iter(int, 1) for batch in mine)
        found += list(islice(endless, stop))
        state = mine.state_dict()
    assert_equal(found, islice(unbroken, len(found)))


def test_the_state_counts_what_was_yielded_and_not_what_waits(store):
    states = []
    for prefetch in (0, 4):
        loader = WindowLoader(store, 4, 16, prefetch=prefetch)
        states.append([loader.state_dict()])
        for _, _ in zip(range(3), loader, strict=False):
            time.sleep(0.01)  # The thread fills what it may.
            states[-1].append(loader.state_dict())
    assert states[0] == states[1]
    assert [state["position"] for state in states[0]] == [0, 4, 8, 12]
    assert {type(value) for value in states[0][0].values()} == {int, str, list}


def test_a_state_from_between_two_epochs_goes_on_with_the_next(store):
    loader = WindowLoader(store, 4, 16)
    first, second = list(loader), list(loader)
    for num_batches, expected in ((len(first), []), (len(first) + 1, second)):
        saved = WindowLoader(store, 4, 16)
        iterator = iter(saved)
        for _ in range(num_batches):
            next(iterator, None)
        resumed = WindowLoader(store, 4, 16)
        resumed.load_state_dict(saved.state_dict())
        # Behind the last batch an epoch has nothing more; once it has ended, it is over.
        assert_equal(resumed, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 17}, "its max_length is 16, here it is 17"),
        ({"stride": 3}, "its stride is 16, here it is 3"),
        ({"boundary": "document"}, "its boundary is 'stream', here it is 'document'"),
        ({"shuffle": False}, "its order is 'feistel-1', here it is 'sequential'"),
    ],
)
def test_a_state_of_other_windows_is_refused_and_says_which(store, change, message):
    state = WindowLoader(store, 4, 16).state_dict()
    options = {"max_length": 16, "stride": 16, **change}
    with pytest.raises(ConfigError, match=message):
        WindowLoader(store, 4, **options).load_state_dict(state)


def test_a_state_of_another_store_or_version_is_refused(store, other_store):
    loader = WindowLoader(store, 4, 16)
    state = loader.state_dict()
    with pytest.raises(ConfigError, match=rf"stores is \['{store.fingerprint}'\], here it is"):
        WindowLoader(other_store, 4, 16).load_state_dict(state)
    for change, message in [
        ({"version": 2}, "the state's version is 2, expected 1"),
        ({"order": "feistel-2"}, "its order is 'feistel-2', here it is 'feistel-1'"),
        ({"position": 10_000}, "position is at most 187, found 10000"),
        ({"position": -1}, "position is at least 0, found -1"),
        ({"epoch": "3"}, "epoch is an integer, found '3'"),
        ({"seed": None}, "seed is an integer, found None"),
        ({"worker": 0, "num_workers": 2}, "of worker 0 of 2"),
    ]:
        with pytest.raises(ConfigError, match=message):
            loader.load_state_dict({**state, **change})
    assert first_tokens(loader) == first_tokens(WindowLoader(store, 4, 16)), "nothing has changed"


# Documents


def windows_inside_documents(length, stride):
    starts, seen, begin = [], set(), 0
    for end in document_ends():
        inside = range(begin, end - length, stride)
        starts += inside
        for start in inside:
            seen |= set(range(start, start + length + 1))
        begin = end
    return starts, NUM_TOKENS - len(seen)


@given(length=st.integers(2, 80), stride=st.integers(1, 90))
@settings(deadline=None, max_examples=30)
def test_windows_inside_documents_are_those_of_each_document_alone(store, length, stride):
    loader = WindowLoader(
        store, 1, length, stride=stride, boundary="document", shuffle=False, drop_last=False
    )
    starts, dropped = windows_inside_documents(length, stride)
    assert first_tokens(loader) == starts
    assert loader.dropped_tokens == dropped
    shuffled = WindowLoader(store, 1, length, stride=stride, boundary="document")
    assert sorted(first_tokens(shuffled)) == starts


@pytest.mark.parametrize("file", ["train.bin", "ours"])
@pytest.mark.parametrize("boundary", ["stream", "document"])
def test_positions_start_anew_at_rows_and_documents(store, boundary, file):
    loader = WindowLoader(
        store.path.parent / file, 5, 48, boundary=boundary, return_positions=True, seed=2
    )
    ends = set(document_ends())
    for inputs, targets, position_ids, cu_seqlens in loader:
        assert position_ids.shape == inputs.shape == targets.shape
        assert (position_ids.dtype, cu_seqlens.dtype) == (torch.int64, torch.int32)
        starts = []
        for row, at in enumerate(first_tokens([(inputs, targets)])):
            inside = [0, *(end - at for end in range(at + 1, at + 48) if end in ends)]
            starts += [48 * row + start for start in inside]
            assert boundary == "stream" or inside == [0]
        assert cu_seqlens.tolist() == [*starts, 5 * 48]
        lengths = np.diff(cu_seqlens.numpy())
        expected = np.concatenate([np.arange(length) for length in lengths])
        assert position_ids.reshape(-1).tolist() == expected.tolist()


def test_tokens_that_no_window_has_are_counted(store):
    assert WindowLoader(store, 1, 100, stride=100).dropped_tokens == 99
    assert WindowLoader(store, 1, 100, stride=90).dropped_tokens == 19
    assert WindowLoader(store, 1, 4, stride=10).dropped_tokens == NUM_TOKENS // 2


# Inside somebody's DataLoader


@pytest.fixture(autouse=True)
def _workers_are_what_num_workers_means():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        # By torch, on machines with few processors; by torchdata, which is older than this torch.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        yield


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("epochs", [None, 2])
def test_a_dataloader_gives_the_same_batches_with_any_number_of_workers(store, num_workers, epochs):
    expected = WindowLoader(store, 6, 16, epochs=epochs)
    loader = DataLoader(
        WindowLoader(store, 6, 16, epochs=epochs), batch_size=None, num_workers=num_workers
    )
    assert len(loader) == len(expected)
    for _ in range(3 if epochs is None else 1):
        assert_equal(loader, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "spawn"},
    ],
)
def test_epochs_go_on_in_workers_that_stay_and_in_workers_that_start_anew(store, options):
    expected = WindowLoader(store, 6, 16)
    batches = DataLoader(WindowLoader(store, 6, 16), batch_size=None, **options)
    for _ in range(2):
        assert_equal(batches, expected)


def test_a_loaded_state_goes_on_in_workers(store):
    loader = WindowLoader(store, 6, 16)
    expected = list(loader), list(loader)
    saved = WindowLoader(store, 6, 16)
    list(islice(saved, 5))
    resumed = WindowLoader(store, 6, 16)
    resumed.load_state_dict(saved.state_dict())
    batches = DataLoader(resumed, batch_size=None, num_workers=2)
    assert_equal(batches, expected[0][5:])
    assert_equal(batches, expected[1])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("num_batches", [0, 1, 6, 7, 30, 31, 32, 36])
def test_torchdatas_loader_saves_and_resumes_anywhere(store, num_workers, num_batches):
    def loader():
        return StatefulDataLoader(
            WindowLoader(store, 6, 16), batch_size=None, num_workers=num_workers
        )

    whole = WindowLoader(store, 6, 16)
    assert len(whole) == 31
    expected = [batch for _ in range(4) for batch in whole]
    saved = loader()
    found = []
    while len(found) < num_batches:
        for batch in saved:
            found.append(batch)
            if len(found) == num_batches:
                break
    state = saved.state_dict()
    resumed = loader()
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    for _ in range(3):
        found += list(resumed)
    assert_equal(found, expected[: len(found)])
    assert len(found) >= 3 * 31


def test_torchdatas_loader_gives_epoch_after_epoch(store):
    expected = WindowLoader(store, 6, 16)
    loader = StatefulDataLoader(WindowLoader(store, 6, 16), batch_size=None, num_workers=2)
    for _ in range(3):
        assert_equal(loader, expected)


def test_workers_refuse_a_device(store, monkeypatch):
    worker = SimpleNamespace(id=0, num_workers=1)
    monkeypatch.setattr("gptrs.data.loader.get_worker_info", lambda: worker)
    with pytest.raises(ConfigError, match="workers cannot fill tensors on meta"):
        iter(WindowLoader(store, 6, 16, device="meta"))


# Threads and processes


def num_filling_threads():
    number = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # It has just ended.
            number += (task / "comm").read_text().strip() == THREAD
    return number


def assert_filling_threads_become(number):
    """Threads take a moment to begin and to end."""
    deadline = time.monotonic() + 20
    while (found := num_filling_threads()) != number:
        assert time.monotonic() < deadline, f"{found} threads fill batches, expected {number}"
        time.sleep(0.005)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")


@needs_proc
def test_a_thread_ends_with_its_iterator(store):
    gc.collect()
    assert_filling_threads_become(0)
    loader = WindowLoader(store, 1, 16, prefetch=3)
    kept = iter(loader)
    next(kept)
    dropped = iter(WindowLoader(store, 1, 16, prefetch=3))
    next(dropped)
    assert_filling_threads_become(2)
    del dropped
    assert_filling_threads_become(1)
    assert len(list(loader)) == len(loader)  # An iteration that runs to its end.
    assert_filling_threads_become(1)
    del kept
    assert_filling_threads_become(0)
    assert loader.state_dict()["epoch"] == 2


@needs_proc
def test_without_prefetch_there_is_no_thread(store):
    gc.collect()
    assert_filling_threads_become(0)
    iterator = iter(WindowLoader(store, 1, 16, prefetch=0))
    next(iterator)
    assert num_filling_threads() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_goes_on_with_an_iteration_without_its_thread(store):
    loader = WindowLoader(store, 2, 16, prefetch=2)
    iterator = iter(loader)
    before = [next(iterator) for _ in range(3)]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child():
        results.put([first_tokens([batch]) for batch in iterator])

    process = context.Process(target=child)
    process.start()
    theirs = results.get()
    process.join(60)
    assert process.exitcode == 0
    ours = [first_tokens([batch]) for batch in iterator]
    assert theirs == ours
    assert len(before) + len(ours) == len(loader)


def test_a_process_that_ends_in_mid_epoch_ends_cleanly(store):
    code = """
import sys
from gptrs import WindowLoader
iterator = iter(WindowLoader(sys.argv[1], 2, 16, prefetch=4))
next(iterator)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_may_share_an_iteration(store):
    stream = WindowLoader(store, 1, 16, shuffle=False, prefetch=2)._batches.stream(
        0, 0, end_epoch=1, skip=0, step=1, prefetch=2
    )
    found = []

    def take():
        found.extend(int(inputs[0, 1]) for inputs, _ in stream)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(TOKENS[1 : NUM_TOKENS - 15 : 16].tolist())


def test_a_batch_takes_as_many_python_steps_whatever_its_size(store):
    def steps(batch_size):
        iterator = iter(WindowLoader(store, batch_size, 16, prefetch=0))
        next(iterator)
        events = []
        sys.setprofile(lambda frame, event, arg: events.append(event))
        try:
            next(iterator)
        finally:
            sys.setprofile(None)
        return events

    assert steps(2) == steps(90)
    assert len(steps(2)) < 20


# Devices


def test_tensors_are_on_the_device_that_was_asked_for(store):
    for inputs, targets in islice(WindowLoader(store, 4, 16, device="meta"), 2):
        assert inputs.device.type == targets.device.type == "meta"
        assert inputs.shape == (4, 16)


def test_copying_one_batch_ahead_changes_neither_batches_nor_progress(store, monkeypatch):
    """The order of events; what only a GPU can show is not here."""

    class Stream:
        def __init__(self, device=None):
            self.waits = []

        def record_event(self):
            return object()

        def wait_event(self, event):
            self.waits.append(event)

    current = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)

    def stream():
        batches = WindowLoader(store, 4, 16)._batches
        return batches.stream(0, 0, end_epoch=1, skip=0, step=1, prefetch=2)

    expected, copied = stream(), stream()
    yielded = transfer.Yielded(copied.cursor)
    for batch in transfer._cuda_batches(copied, torch.device("cpu"), yielded):
        assert_equal([batch], [tuple(map(torch.from_numpy, next(expected)))])
        assert yielded.cursor == expected.cursor
        assert copied.cursor[1] >= yielded.cursor[1]
    assert (next(expected, None), yielded.has_ended) == (None, True)
    assert len(set(current.waits)) == 46, "the caller waits for each copy"


# Refusals, and large stores


def test_settings_that_make_no_sense_are_refused(store):
    for change, message in [
        ({"batch_size": 0}, "batch_size is at least 1, found 0"),
        ({"batch_size": 2.5}, "batch_size is an integer, found 2.5"),
        ({"max_length": -1}, "max_length is at least 1, found -1"),
        ({"stride": 0}, "stride is at least 1, found 0"),
        ({"seed": -1}, "seed is at least 0, found -1"),
        ({"seed": 1 << 64}, "seed is at most 18446744073709551615"),
        ({"rank": 2, "world_size": 2}, "rank is at most 1, found 2"),
        ({"world_size": 0}, "world_size is at least 1"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"prefetch": -1}, "prefetch is at least 0"),
        ({"boundary": "page"}, 'boundary is "stream" or "document", found \'page\''),
        ({"batch_size": 1 << 62, "world_size": 4}, "more than can be counted"),
        (
            {"batch_size": 1 << 21, "max_length": 1 << 11, "return_positions": True},
            "too large for cu_seqlens",
        ),
    ]:
        options = {"batch_size": 4, "max_length": 16, **change}
        with pytest.raises(ConfigError, match=message):
            WindowLoader(store, **options)


def test_a_store_without_a_batch_is_refused(store):
    with pytest.raises(
        DataError,
        match=r"has 3,000 tokens, hence 3 windows of 999 and .*batch_size 2 on 2 ranks needs 4",
    ):
        WindowLoader(store, 2, 999, world_size=2)
    with pytest.raises(DataError, match="batch_size 9 on 1 rank needs 9"):
        WindowLoader(store, 9, 999)
    with pytest.raises(DataError, match="hence 0 windows of 3000"):
        WindowLoader(store, 1, NUM_TOKENS)
    with pytest.raises(DataError, match="each inside one document"):
        WindowLoader(store, 1, NUM_TOKENS - 1, boundary="document")
    with pytest.raises(StoreError, match="nowhere"):
        WindowLoader("nowhere", 1, 16)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_id_outside_the_vocabulary_is_refused_and_the_file_named(tmp_path, prefetch):
    ids = TOKENS.copy()
    ids[1000] = END + 1
    ids.tofile(tmp_path / "bad.bin")
    iterator = iter(WindowLoader(tmp_path / "bad.bin", 1, 100, shuffle=False, prefetch=prefetch))
    good = [next(iterator) for _ in range(9)]
    assert first_tokens(good) == list(range(0, 900, 100))
    with pytest.raises(StoreError, match=r"bad\.bin.*50257"):
        next(iterator)


def test_a_loader_travels_by_its_stores_path_and_says_what_it_is(store):
    loader = WindowLoader(store, 4, 16, rank=1, world_size=2)
    copy = pickle.loads(pickle.dumps(loader))
    assert_equal(copy, loader)
    assert "batches of 4 x 16, stride 16, feistel-1, rank 1 of 2" in repr(loader)


def sparse_store(file):
    """2^34 tokens that take no room on the disk: zeros, and the last 16 count up."""
    with file.open("wb") as stream:
        stream.seek(2 * (1 << 34) - 32)
        stream.write(np.arange(16, dtype="<u2").tobytes())
    return file


def test_windows_beyond_four_billion_tokens_are_where_they_should_be(tmp_path):
    file = sparse_store(tmp_path / "big.bin")
    loader = WindowLoader(file, 4, 1024, stride=1, shuffle=False)
    assert loader.num_windows == (1 << 34) - 1024
    loader.load_state_dict({**loader.state_dict(), "position": loader.num_windows - 4})
    [(inputs, targets)] = iter(loader)  # A list would ask for as much room as `len` says.
    assert targets[:, -1].tolist() == [12, 13, 14, 15]
    assert inputs[-1].tolist() == [0] * 1009 + list(range(15))
    assert next(iter(WindowLoader(file, 4, 1024, stride=1)))[0].shape == (4, 1024)


@needs_proc
def test_a_large_store_takes_no_more_memory_than_a_small_one(store, tmp_path):
    code = """
import sys, torch
from gptrs import WindowLoader

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

list(WindowLoader(sys.argv[1], 1, 1024, epochs=1))  # What is loaded when it is first used.
before = resident()
next(iter(WindowLoader(sys.argv[2], 8, 1024)))
print(resident() - before)
"""
    file = sparse_store(tmp_path / "big.bin")
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path), str(file)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < 20e6


def test_the_loader_is_exported():
    assert gptrs.WindowLoader is WindowLoader
