"""`gptrs.TokenStore`: tokens on disk, read where they lie."""

import gc
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gptrs
from gptrs import TokenStore, convert_store
from gptrs.errors import GptrsError, PositionError, StoreError

END = 50256
SHARD_TOKENS = 1000


def documents():
    """Many short documents, without their end-of-text."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, END, size, np.uint16) for size in rng.integers(0, 60, 150)]


def stream(docs):
    return np.concatenate([np.append(doc, np.uint16(END)) for doc in docs])


IDS = stream(documents())


@pytest.fixture
def folder(tmp_path):
    """A folder of ours in several shards."""
    IDS.tofile(tmp_path / "train.bin")
    made = convert_store(
        tmp_path / "train.bin", tmp_path / "store", to="gptrs", shard_tokens=SHARD_TOKENS
    )
    return made.path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    IDS.tofile(directory / "train.bin")
    return convert_store(
        directory / "train.bin", directory / "store", to="gptrs", shard_tokens=SHARD_TOKENS
    )


def test_a_store_says_what_it_is(store):
    assert (len(store), store.num_tokens, store.num_documents) == (len(IDS), len(IDS), 150)
    assert (store.dtype, store.n_vocab, store.format) == (np.uint16, 50257, "gptrs-store")
    assert store.tokenizer is gptrs.get_tokenizer("gpt2")
    assert repr(store) == f"<TokenStore '{store.path}': {len(IDS):,} tokens in 150 documents, gpt2>"
    assert len(store.manifest["shards"]) == -(-len(IDS) // SHARD_TOKENS)


@given(
    st.integers(-len(IDS) - 5, len(IDS) + 5) | st.none(),
    st.integers(-len(IDS) - 5, len(IDS) + 5) | st.none(),
    st.integers(-1200, 1200).filter(bool) | st.none(),
)
def test_slices_are_those_of_the_whole_array(store, start, stop, step):
    found = store[start:stop:step]
    np.testing.assert_array_equal(found, IDS[start:stop:step])
    assert found.dtype == np.uint16


def test_single_tokens_count_from_both_ends(store):
    assert [store[0], store[np.int64(7)], store[-1]] == [IDS[0], IDS[7], END]
    assert type(store[0]) is int
    for index in (len(IDS), -len(IDS) - 1):
        with pytest.raises(PositionError, match=f"token {index} was asked for, and there are"):
            store[index]
    with pytest.raises(IndexError):
        store.document(150)
    with pytest.raises(TypeError):
        store[1.0]


def test_what_lies_in_one_shard_is_a_view_that_cannot_be_written_to(store):
    one, same = store[10:20], store[10:20]
    assert np.shares_memory(one, same)
    assert one.ctypes.data == store[:SHARD_TOKENS].ctypes.data + 20
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        one.setflags(write=True)
    across = store[SHARD_TOKENS - 5 : SHARD_TOKENS + 5]
    assert not np.shares_memory(across, store[SHARD_TOKENS : SHARD_TOKENS + 5])


def test_a_view_outlives_the_store_it_came_from(folder):
    view = TokenStore.open(folder)[3:900]
    gc.collect()
    np.testing.assert_array_equal(view, IDS[3:900])


def test_documents_come_whole_and_in_order(store):
    for index, (found, doc) in enumerate(zip(store.documents(), documents(), strict=True)):
        np.testing.assert_array_equal(found, np.append(doc, END))
        np.testing.assert_array_equal(store.document(index), found)
        start, stop = store.document_range(index)
        np.testing.assert_array_equal(store[start:stop], found)
    np.testing.assert_array_equal(store.document(-1), np.append(documents()[-1], END))


def test_shards_are_files_that_numpy_opens_alone(store):
    shards = sorted(store.path.glob("tokens-*.npy"))
    tokens = [np.load(shard, mmap_mode="r") for shard in shards]
    np.testing.assert_array_equal(np.concatenate(tokens), IDS)
    ends = [np.load(store.path / shard.name.replace("tokens", "ends")) for shard in shards]
    starts = np.cumsum([0, *map(len, tokens)])
    absolute = np.concatenate([start + part for start, part in zip(starts, ends, strict=False)])
    np.testing.assert_array_equal(absolute, np.flatnonzero(IDS == END) + 1)
    assert {part.dtype for part in ends} == {np.dtype("uint64")}


def test_a_store_travels_to_other_processes_by_its_path(store, monkeypatch, tmp_path):
    monkeypatch.chdir(store.path.parent)
    content = pickle.dumps(TokenStore.open("store"))
    monkeypatch.chdir(tmp_path)
    assert len(content) < 1000
    there = pickle.loads(content)
    np.testing.assert_array_equal(there[:], IDS)
    assert there.fingerprint == store.fingerprint


def test_threads_share_a_store(folder):
    store = TokenStore.open(folder)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: store[start : start + 700], range(0, len(IDS), 700)))
    np.testing.assert_array_equal(np.concatenate(parts), IDS)


def test_neither_importing_nor_opening_loads_torch(folder):
    code = (
        "import sys, gptrs\n"
        f"store = gptrs.TokenStore.open({str(folder)!r})\n"
        "store.tokenizer, store[:5], repr(store)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"False\n"


@pytest.mark.parametrize("path", ["nowhere", "nowhere.bin", "nowhere/at/all"])
def test_a_path_that_is_not_there_is_refused(tmp_path, path):
    with pytest.raises(StoreError, match="there is no such file or folder"):
        TokenStore.open(tmp_path / path)


def test_a_folder_that_is_no_store_says_why(tmp_path, folder):
    with pytest.raises(StoreError, match=r"is no token store: it has no manifest\.json"):
        TokenStore.open(tmp_path)
    (tmp_path / "both").mkdir()
    folder.rename(tmp_path / "both" / "train")
    with pytest.raises(StoreError, match=r"holds stores and is none itself: open .*both/train$"):
        TokenStore.open(tmp_path / "both")
    (tmp_path / "begun" / ".building").mkdir(parents=True)
    with pytest.raises(StoreError, match="is not finished: the same build, started again"):
        TokenStore.open(tmp_path / "begun")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "its version is 2; this gptrs reads up to 1: a newer gptrs wrote it"),
        ("format", "parquet", 'its format is "parquet", expected "gptrs-store"'),
        ("num_tokens", 1, "is damaged: its checksum is not that of its content"),
    ],
)
def test_a_manifest_of_another_version_or_kind_is_refused(folder, field, value, message):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(StoreError) as raised:
        TokenStore.open(folder)
    assert str(raised.value) == f"{file}: {message}"


def test_another_tokenizer_than_the_stores_is_refused(folder):
    assert TokenStore.open(folder, "gpt2").tokenizer is gptrs.get_tokenizer()
    (folder.parent / "text.txt").write_text("a few words")
    other = gptrs.train_tokenizer([folder.parent / "text.txt"], None, kind="char")
    with pytest.raises(StoreError, match='was made with the tokenizer "gpt2" of 50257 ids, not'):
        TokenStore.open(folder, other)
    other.save(folder)
    with pytest.raises(StoreError, match="is another tokenizer than the one that made the tokens"):
        _ = TokenStore.open(folder).tokenizer
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StoreError, match="is not beside it: open it with tokenizer="):
        _ = TokenStore.open(folder).tokenizer


@pytest.mark.parametrize("name", ["tokens-00001.npy", "ends-00002.npy"])
@pytest.mark.parametrize("change", [-1, 1, -4000])
def test_a_file_that_is_shorter_or_longer_is_refused_when_the_store_opens(folder, name, change):
    size = (folder / name).stat().st_size
    os.truncate(folder / name, max(0, size + change))
    with pytest.raises(StoreError, match=rf"{name}: has {max(0, size + change)} bytes, expected"):
        TokenStore.open(folder)


def test_a_shard_of_another_kind_is_refused_at_first_touch(folder):
    shard = folder / "tokens-00001.npy"
    np.save(shard, np.zeros(SHARD_TOKENS, np.int16))
    store = TokenStore.open(folder)
    np.testing.assert_array_equal(store[:SHARD_TOKENS], IDS[:SHARD_TOKENS])
    with pytest.raises(StoreError, match=r"tokens-00001.npy: its header is not the one of 1000"):
        store[SHARD_TOKENS]


def test_an_id_outside_the_vocabulary_is_refused_and_the_file_named(folder):
    shard = np.load(folder / "tokens-00001.npy", mmap_mode="r+")
    shard[3] = 60000
    shard.flush()
    store = TokenStore.open(folder)
    with pytest.raises(StoreError, match=r"tokens-00001\.npy: has the token id 60000, outside"):
        store[:]
    np.testing.assert_array_equal(store[SHARD_TOKENS + 4 :], IDS[SHARD_TOKENS + 4 :])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(file=st.integers(0), place=st.integers(0), bit=st.integers(0, 7))
def test_verify_finds_a_flipped_bit_in_any_byte_of_any_file(folder, file, place, bit):
    files = sorted(folder.iterdir())
    damaged = files[file % len(files)]
    whole = damaged.read_bytes()
    content = bytearray(whole)
    content[place % len(content)] ^= 1 << bit
    damaged.write_bytes(content)
    try:
        with pytest.raises(StoreError) as raised:
            TokenStore.open(folder).verify()
        assert str(raised.value).startswith(f"{damaged}: ")
    finally:
        damaged.write_bytes(whole)
    TokenStore.open(folder).verify(threads=1)


def test_what_stops_a_long_verification_arrives_unchanged(tmp_path):
    (tmp_path / "long.bin").touch()
    os.truncate(tmp_path / "long.bin", 1 << 30)  # Takes no room on the disk.

    def stop(done):
        raise KeyboardInterrupt(done)

    store = TokenStore.open(tmp_path / "long.bin")
    with pytest.raises(KeyboardInterrupt) as raised:
        store._core.verify(threads=2, on_progress=stop)
    assert 0 < raised.value.args[0] < len(store)


def test_refusals_are_errors_of_gptrs_and_of_the_built_in_kind():
    assert issubclass(StoreError, GptrsError)
    assert issubclass(StoreError, OSError)
    assert issubclass(PositionError, IndexError)


def test_a_store_is_opened_by_its_path_and_nothing_else():
    with pytest.raises(TypeError, match=r"opened by its path; found ndarray; .*from_tokens"):
        TokenStore.open(np.arange(9, dtype=np.uint16))
