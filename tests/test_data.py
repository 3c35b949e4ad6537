import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch import ch02
from torch.utils.data import DataLoader, Subset

import gptrs
from gptrs.data.dataset import GPTDatasetV1, collate_windows, create_dataloader_v1
from gptrs.errors import ConfigError, DataError, StoreError, WindowError

TOKENIZER = gptrs.get_tokenizer("gpt2")
TIKTOKEN = TOKENIZER.as_tiktoken()
TEXT = "The cat sat on the mat; the dog, who'd seen 12 cats, didn't.\n\n" * 20
# How the book's story opens.
OPENING = "I HAD always thought Jack Gisburn rather a cheap genius--though a good fellow enough"


@pytest.fixture(autouse=True)
def _book_has_a_tokenizer(monkeypatch):
    # The book's loader asks tiktoken for GPT-2's files, which needs a network.
    monkeypatch.setattr(ch02.tiktoken, "get_encoding", lambda name: TIKTOKEN)


def assert_same_lists(ours, books):
    assert len(ours) == len(books)
    assert all(torch.equal(a, b) for a, b in zip(ours, books, strict=True))


def test_the_first_window_is_the_books():
    dataset = GPTDatasetV1(OPENING, TOKENIZER, max_length=4, stride=1)
    inputs, targets = dataset[0]
    assert inputs.tolist() == [40, 367, 2885, 1464]
    assert targets.tolist() == [367, 2885, 1464, 1807]


@given(
    text=st.text(alphabet="ab c\n'é中<|endoftext|>", min_size=30, max_size=200),
    max_length=st.integers(1, 12),
    stride=st.integers(1, 15),
)
@settings(deadline=None)
def test_windows_equal_the_books_for_any_text_length_and_stride(text, max_length, stride):
    book = ch02.GPTDatasetV1(text, TIKTOKEN, max_length, stride)
    if len(book) == 0:
        with pytest.raises(DataError):
            GPTDatasetV1(text, TOKENIZER, max_length, stride)
        return
    ours = GPTDatasetV1(text, TOKENIZER, max_length, stride)
    assert_same_lists(list(ours.input_ids), book.input_ids)
    assert_same_lists(list(ours.target_ids), book.target_ids)


def test_columns_index_as_lists_do():
    ours = GPTDatasetV1(TEXT, TOKENIZER, 8, 3)
    book = ch02.GPTDatasetV1(TEXT, TIKTOKEN, 8, 3)
    for column in ("input_ids", "target_ids"):
        mine, theirs = getattr(ours, column), getattr(book, column)
        assert torch.equal(mine[-1], theirs[-1])
        assert_same_lists(mine[2:-5:4], theirs[2:-5:4])
        assert mine[0].dtype is torch.int64
        with pytest.raises(IndexError):
            mine[len(theirs)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_seed_gives_the_books_batches_and_leaves_its_generator_behind(shuffle, drop_last):
    def run(create):
        torch.manual_seed(123)
        loader = create(TEXT, 4, 8, 3, shuffle=shuffle, drop_last=drop_last)
        batches = [batch for _ in range(2) for batch in loader]
        return batches, torch.get_rng_state()

    ours, our_state = run(create_dataloader_v1)
    books, book_state = run(ch02.create_dataloader_v1)
    assert len(ours) == len(books)
    for mine, theirs in zip(ours, books, strict=True):
        assert_same_lists(mine, theirs)
    assert torch.equal(our_state, book_state)


def test_a_loader_is_a_dataloader_with_the_books_batches_in_workers_too():
    loader = create_dataloader_v1(TEXT, 4, 8, 3, shuffle=False)
    assert isinstance(loader, DataLoader)
    with warnings.catch_warnings():
        # Forking a process that has threads is what num_workers means.
        warnings.simplefilter("ignore", DeprecationWarning)
        in_workers = list(create_dataloader_v1(TEXT, 4, 8, 3, shuffle=False, num_workers=2))
    assert len(in_workers) == len(loader)
    for mine, theirs in zip(in_workers, loader, strict=True):
        assert_same_lists(mine, theirs)


def test_a_subset_sees_pairs_with_anyones_collate_function():
    dataset = create_dataloader_v1(TEXT, max_length=8, stride=8).dataset
    chosen = [5, 0, 9]
    for collate in (None, collate_windows):
        loader = DataLoader(Subset(dataset, chosen), batch_size=3, collate_fn=collate)
        [(inputs, targets)] = list(loader)
        assert_same_lists(inputs, [dataset.input_ids[i] for i in chosen])
        assert_same_lists(targets, [dataset.target_ids[i] for i in chosen])


def test_a_dataset_survives_pickling():
    dataset = GPTDatasetV1(TEXT, TOKENIZER, 8, 3)
    copy = pickle.loads(pickle.dumps(dataset))
    assert_same_lists(list(copy.input_ids), list(dataset.input_ids))


@pytest.mark.parametrize("largest", [65_535, 65_536])
def test_ids_of_any_vocabulary_fit(largest):
    class Wide:
        def encode(self, text, *, allowed_special=()):
            return [largest, 0, largest, 1, 2]

    dataset = GPTDatasetV1("five words", Wide(), 4, 1)
    assert dataset.tokens.dtype == (np.uint16 if largest < 2**16 else np.uint32)
    assert dataset[0][0].tolist() == [largest, 0, largest, 1]


@pytest.mark.parametrize("wrong", [-1, 2**32, 0.5])
def test_ids_that_no_token_can_have_are_refused_and_not_wrapped(wrong):
    class Odd:
        def encode(self, text, *, allowed_special=()):
            return [0, wrong, 1, 2, 3, 4]

    with pytest.raises(DataError, match=f"from {min(0, wrong)}.* to {max(4, wrong)}"):
        GPTDatasetV1("six words", Odd(), 4, 1)


def test_a_tiktoken_encoding_is_a_tokenizer():
    ours = GPTDatasetV1(TEXT, TOKENIZER, 8, 3)
    assert np.array_equal(GPTDatasetV1(TEXT, TIKTOKEN, 8, 3).tokens, ours.tokens)
    loader = create_dataloader_v1(TEXT, tokenizer=TIKTOKEN, max_length=8)
    assert np.array_equal(loader.dataset.tokens, ours.tokens)


@pytest.fixture
def store(tmp_path):
    """The tokens of TEXT on disk, in several shards."""
    TOKENIZER.encode_to_numpy(TEXT).tofile(tmp_path / "train.bin")
    return gptrs.convert_store(
        tmp_path / "train.bin", tmp_path / "store", to="gptrs", shard_tokens=100
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("as_path", [False, True])
def test_a_store_gives_the_books_batches_of_its_tokens(store, num_workers, as_path):
    def run(create, source, **more):
        torch.manual_seed(123)
        loader = create(source, 4, 8, 3, num_workers=num_workers, **more)
        with warnings.catch_warnings():
            # Forking a process that has threads is what num_workers means.
            warnings.simplefilter("ignore", DeprecationWarning)
            return list(loader), torch.get_rng_state()

    ours, our_state = run(create_dataloader_v1, store.path if as_path else store)
    books, book_state = run(ch02.create_dataloader_v1, TEXT)
    for mine, theirs in zip(ours, books, strict=True):
        assert_same_lists(mine, theirs)
    assert torch.equal(our_state, book_state)


def test_a_dataset_over_a_store_reads_as_one_over_the_text(store):
    dataset = GPTDatasetV1.from_tokens(store, 8, 3)
    expected = GPTDatasetV1(TEXT, TOKENIZER, 8, 3)
    for mine in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert_same_lists(list(mine.input_ids), list(expected.input_ids))
        assert_same_lists(list(mine.target_ids), list(expected.target_ids))
        assert torch.equal(mine[-1][1], expected[-1][1])
    assert repr(dataset) == repr(expected)
    with pytest.raises(WindowError, match=f"window {len(dataset)} is out of range"):
        dataset[len(dataset)]


def test_a_store_that_makes_no_window_or_has_another_tokenizer_is_refused(store, tmp_path):
    with pytest.raises(DataError, match=f"the store has {len(store)} tokens; one window"):
        create_dataloader_v1(store, max_length=len(store))
    with pytest.raises(ConfigError, match="leave tokenizer out"):
        create_dataloader_v1(store, tokenizer=TOKENIZER)
    with pytest.raises(StoreError, match="nowhere"):
        create_dataloader_v1(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="stride is 0"):
        create_dataloader_v1(store, stride=0)


def test_an_id_outside_the_vocabulary_of_a_store_is_refused(tmp_path):
    np.array([1, 2, 3, 4, 60_000, 5], np.uint16).tofile(tmp_path / "bad.bin")
    dataset = GPTDatasetV1.from_tokens(gptrs.TokenStore.open(tmp_path / "bad.bin"), 2, 1)
    assert dataset[0][1].tolist() == [2, 3]
    with pytest.raises(StoreError, match=r"bad\.bin.*60000"):
        dataset[3]


def count_calls(function):
    """Python functions called, and calls into `_core`."""
    python_calls, core_calls = 0, 0

    def profile(frame, event, arg):
        nonlocal python_calls, core_calls
        python_calls += event == "call"
        owner = type(getattr(arg, "__self__", None)).__module__
        core_calls += event == "c_call" and owner == "gptrs._core"

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return python_calls, core_calls


def test_a_batch_is_one_call_into_rust_and_as_many_python_calls_whatever_its_size():
    def calls(batch_size):
        batches = iter(create_dataloader_v1(TEXT, batch_size, 8, 1, shuffle=False))
        next(batches)
        return count_calls(lambda: next(batches))

    python_calls, core_calls = calls(2)
    assert core_calls == 1
    assert calls(64) == (python_calls, core_calls)


def test_a_yielded_batch_is_never_overwritten():
    loader = create_dataloader_v1(TEXT, 2, 8, 8, shuffle=False)
    kept = list(loader)
    for (inputs, _), (again, _) in zip(kept, loader, strict=True):
        assert torch.equal(inputs, again)


def test_bad_input_says_what_was_asked_and_what_was_found(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"has 3 tokens; one window of max_length 4 .* at least 5"):
        GPTDatasetV1("one two three", TOKENIZER, 4, 1)
    with pytest.raises(DataError, match="has 0 tokens"):
        create_dataloader_v1("")
    with pytest.raises(ConfigError, match="stride is 0"):
        GPTDatasetV1(TEXT, TOKENIZER, 4, 0)
    with pytest.raises(ConfigError, match="max_length is -1"):
        GPTDatasetV1(TEXT, TOKENIZER, -1, 1)
    with pytest.raises(TypeError, match=r"found bytes: .* txt.decode\("):
        GPTDatasetV1(TEXT.encode(), TOKENIZER, 4, 1)
    with pytest.raises(TypeError, match=r"found ndarray: .* GPTDatasetV1.from_tokens"):
        GPTDatasetV1(np.arange(9), TOKENIZER, 4, 1)
    dataset = GPTDatasetV1(TEXT, TOKENIZER, 4, 1)
    with pytest.raises(WindowError, match=f"window {len(dataset)} is out of range"):
        dataset[len(dataset)]
    with pytest.raises(WindowError, match="window -1000000 is out of range"):
        dataset.fill([0, -1_000_000])


def test_a_path_in_the_place_of_a_text_is_told_the_expression_for_the_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("the verdict.txt").write_text(TEXT)
    with pytest.raises(StoreError) as of_a_loader:
        create_dataloader_v1(Path("the verdict.txt"))
    with pytest.raises(TypeError, match="found a path: ") as of_a_dataset:
        GPTDatasetV1(Path("the verdict.txt"), TOKENIZER, 4, 1)
    for raised in (of_a_loader, of_a_dataset):
        expression = str(raised.value).partition("give ")[2]
        assert eval(expression) == TEXT


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_a_tokenizers_name_is_told_the_tokenizer(name):
    told = rf"found '{name}': .* the object is gptrs.get_tokenizer\('{name}'\)"
    with pytest.raises(ConfigError, match=told):
        GPTDatasetV1(TEXT, name, 4, 1)
    with pytest.raises(ConfigError, match=told):
        create_dataloader_v1(TEXT, tokenizer=name)
    with pytest.raises(ConfigError, match=r'found None: such are gptrs.get_tokenizer\("gpt2"\)'):
        GPTDatasetV1(TEXT, None, 4, 1)


def test_a_text_that_names_a_file_is_text_and_warns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "the verdict.txt").write_text("something else")
    with pytest.warns(UserWarning, match="taken as the text itself"):
        dataset = GPTDatasetV1("the verdict.txt", TOKENIZER, 2, 1)
    assert TOKENIZER.decode(dataset.tokens) == "the verdict.txt"


@pytest.mark.parametrize(
    "text", ["word " * 400, "one\0two three four five", "one \ud800 two three"]
)
def test_texts_that_no_path_can_be_do_not_warn(text):
    assert len(GPTDatasetV1(text, TOKENIZER, 2, 1)) > 0
