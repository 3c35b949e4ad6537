"""The files of nanoGPT, llm.c and Megatron: read in place, converted, and read by other readers."""

import struct
import warnings
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptrs
from gptrs import TokenStore, convert_store
from gptrs.errors import ConfigError, StoreError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # It warns of kernels that reading files does not need.
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

END = 50256
HEADER = 256

Documents = st.lists(st.lists(st.sampled_from([0, 7, 50255]), max_size=6), min_size=1, max_size=12)


# Writers and readers from the formats' descriptions, with NumPy alone.


def write_nanogpt(path, docs):
    np.array([token for doc in docs for token in [*doc, END]], np.uint16).tofile(path)


def read_nanogpt(path):
    tokens = np.memmap(path, np.uint16, "r")
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == END) + 1)[:-1]]


def write_llmc(path, docs, *, magic=20240520, version=1, dtype=np.uint16, end=END, count=None):
    tokens = np.array([token for doc in docs for token in [end, *doc]], dtype)
    header = np.zeros(HEADER, np.int32)
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + tokens.tobytes())


def read_llmc(path, *, end=END):
    content = path.read_bytes()
    header = np.frombuffer(content, np.int32, HEADER)
    dtype = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}[tuple(header[:2].tolist())]
    tokens = np.frombuffer(content, dtype, offset=1024)
    assert header[2] == len(tokens)
    assert not header[3:].any()
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == end))[1:]]


def write_megatron(prefix, docs, *, code=8, offsets=None, bounds=None, modes=b"", version=1):
    dtype = {8: np.uint16, 4: np.int32}.get(code, np.uint16)
    lengths = np.array([len(doc) for doc in docs], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * np.dtype(dtype).itemsize
    starts = np.asarray(starts if offsets is None else offsets, np.int64)
    bounds = np.asarray(range(len(docs) + 1) if bounds is None else bounds, np.int64)
    prefix.with_suffix(".bin").write_bytes(np.array([*chain(*docs)], dtype).tobytes())
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", version, code, len(docs), len(bounds))
        + lengths.tobytes() + starts.tobytes() + bounds.tobytes() + modes
    )  # fmt: skip


def lists(store):
    return [doc.tolist() for doc in store.documents()]


def with_end(docs):
    return [[*doc, END] for doc in docs]


# Read in place.


@given(Documents)
@settings(deadline=None)
def test_the_three_programs_files_are_read_in_place(tmp_path_factory, docs):
    folder = tmp_path_factory.mktemp("formats")
    write_nanogpt(folder / "nano.bin", docs)
    write_llmc(folder / "llmc.bin", docs)
    write_megatron(folder / "mega", with_end(docs), code=8)
    write_megatron(folder / "wide", with_end(docs), code=4, modes=b"\0" * len(docs))
    for name, form, expected in [
        ("nano.bin", "nanogpt", with_end(docs)),
        ("llmc.bin", "llm.c", [[END, *doc] for doc in docs]),
        ("mega.bin", "megatron", with_end(docs)),
        ("mega.idx", "megatron", with_end(docs)),
        ("mega", "megatron", with_end(docs)),
        ("wide.idx", "megatron", with_end(docs)),
    ]:
        store = TokenStore.open(folder / name)
        assert (store.format, store.num_documents) == (form, len(docs))
        assert lists(store) == expected
        assert store[:].tolist() == [*chain(*expected)]
        assert store.dtype == (np.uint32 if "wide" in name else np.uint16)
        assert store.tokenizer is gptrs.get_tokenizer()
        store.verify()


def test_what_follows_the_last_end_of_text_is_a_document_too(tmp_path):
    np.array([1, END, 2, 3], np.uint16).tofile(tmp_path / "cut.bin")
    assert lists(TokenStore.open(tmp_path / "cut.bin")) == [[1, END], [2, 3]]
    np.array([1, 2, 3], np.uint16).tofile(tmp_path / "none.bin")
    assert lists(TokenStore.open(tmp_path / "none.bin")) == [[1, 2, 3]]
    (tmp_path / "empty.bin").write_bytes(b"")
    empty = TokenStore.open(tmp_path / "empty.bin")
    assert (len(empty), empty.num_documents, empty[:].tolist()) == (0, 0, [])


def test_a_document_of_several_megatron_sequences_is_one(tmp_path):
    write_megatron(tmp_path / "m", [[1, 2], [3], [4, 5, 6], []], bounds=[0, 2, 2, 4])
    store = TokenStore.open(tmp_path / "m")
    assert lists(store) == [[1, 2, 3], [], [4, 5, 6]]
    store.verify()
    made = convert_store(store, tmp_path / "store", to="gptrs")
    assert lists(made) == [[1, 2, 3], [4, 5, 6]]
    assert made.manifest["dropped"]["empty"] == 1


def test_a_large_file_is_searched_for_documents_across_all_its_blocks(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50257, 300_000, np.uint16)
    tokens[[0, 32_767, 32_768, 65_535, 65_536, 131_071, -1]] = END
    tokens.tofile(tmp_path / "large.bin")
    store = TokenStore.open(tmp_path / "large.bin")
    ends = np.flatnonzero(tokens == END) + 1
    assert store.num_documents == len(ends)
    found = [store.document_range(index) for index in range(len(ends))]
    assert found == list(zip([0, *ends[:-1]], ends, strict=True))


def test_llama_3_files_of_llmc_are_read_with_its_vocabulary(tmp_path):
    docs = [[5, 100_000], [7]]
    write_llmc(tmp_path / "l.bin", docs, magic=20240801, version=7, dtype=np.uint32, end=128_000)
    store = TokenStore.open(tmp_path / "l.bin")
    assert (store.dtype, store.n_vocab) == (np.uint32, 128_256)
    assert lists(store) == [[128_000, 5, 100_000], [128_000, 7]]
    with pytest.raises(StoreError, match="its tokenizer, 'llama3', is not beside it"):
        _ = store.tokenizer
    folder = convert_store(store, tmp_path / "store", to="gptrs", shard_tokens=2)
    assert (folder.dtype, folder[:].tolist()) == (np.uint32, [5, 100_000, 128_000, 7, 128_000])
    folder.verify()
    convert_store(folder, tmp_path / "back.bin", to="llmc")
    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "l.bin").read_bytes()
    convert_store(folder, tmp_path / "wide", to="megatron")
    theirs = IndexedDataset(str(tmp_path / "wide"))  # Its arrays are gone when it is.
    assert theirs[0].tolist() == [5, 100_000, 128_000]
    with pytest.raises(StoreError, match=r"100000 does not fit into the 16 bits that the format"):
        convert_store(folder, tmp_path / "no.bin", to="nanogpt")
    assert not (tmp_path / "no.bin").exists()


def test_a_foreign_file_is_known_again_under_another_name_and_not_with_other_tokens(tmp_path):
    write_nanogpt(tmp_path / "a.bin", [[1, 2, 3]])
    one = TokenStore.open(tmp_path / "a.bin").fingerprint
    (tmp_path / "a.bin").rename(tmp_path / "b.bin")
    assert TokenStore.open(tmp_path / "b.bin").fingerprint == one
    write_nanogpt(tmp_path / "b.bin", [[1, 2, 4]])
    assert TokenStore.open(tmp_path / "b.bin").fingerprint != one


def test_another_tokenizer_gives_a_foreign_file_its_vocabulary_and_its_documents(tmp_path):
    (tmp_path / "text.txt").write_text("abc")
    tokenizer = gptrs.train_tokenizer([tmp_path / "text.txt"], None, kind="char")
    ids = [*tokenizer.encode("ab"), tokenizer.eot_token, *tokenizer.encode("c")]
    np.array(ids, np.uint16).tofile(tmp_path / "chars.bin")
    store = TokenStore.open(tmp_path / "chars.bin", tokenizer)
    assert [tokenizer.decode(doc) for doc in store.documents()] == ["ab<|endoftext|>", "c"]
    with pytest.raises(StoreError, match=r"has the token id 3, outside the vocabulary's 0\.\.2"):
        TokenStore.open(tmp_path / "chars.bin", tokenizer_of(3))[:]


def tokenizer_of(n_vocab):
    """Something like a `tiktoken.Encoding` of so many ids."""
    import tiktoken

    ranks = {bytes([byte]): byte for byte in range(n_vocab)}
    return tiktoken.Encoding("small", pat_str=".", mergeable_ranks=ranks, special_tokens={})


# Converted, and read by others.


@given(Documents)
@settings(deadline=None, max_examples=20)
def test_what_is_converted_is_read_by_independent_readers(tmp_path_factory, docs):
    folder = tmp_path_factory.mktemp("converted")
    write_nanogpt(folder / "source.bin", docs)
    store = convert_store(folder / "source.bin", folder / "store", to="gptrs", shard_tokens=5)
    assert lists(store) == with_end(docs)
    convert_store(store, folder / "nano.bin", to="nanogpt")
    assert read_nanogpt(folder / "nano.bin") == with_end(docs)
    convert_store(store, folder / "llmc.bin", to="llmc")
    assert read_llmc(folder / "llmc.bin") == [[END, *doc] for doc in docs]
    convert_store(store, folder / "mega", to="megatron")
    theirs = IndexedDataset(str(folder / "mega"))
    assert [theirs[index].tolist() for index in range(len(theirs))] == with_end(docs)
    assert theirs.document_indices.tolist() == list(range(len(docs) + 1))
    assert theirs[0].dtype == np.uint16


@given(Documents)
@settings(deadline=None, max_examples=8)
def test_conversions_round_trip_byte_for_byte(tmp_path_factory, docs):
    folder = tmp_path_factory.mktemp("round")
    write_nanogpt(folder / "nano.bin", docs)
    write_llmc(folder / "llmc.bin", docs)
    write_megatron(folder / "mega", with_end(docs))
    for name, to in [("nano.bin", "nanogpt"), ("llmc.bin", "llmc"), ("mega.bin", "megatron")]:
        for through in ("gptrs", "nanogpt", "llmc", "megatron"):
            between = folder / f"{to}-{through}{'' if through == 'gptrs' else '.bin'}"
            convert_store(folder / name, between, to=through)
            back = folder / f"{to}-{through}-back.bin"
            convert_store(between, back, to=to)
            assert back.read_bytes() == (folder / name).read_bytes()
    for index in folder.glob("megatron-*-back.idx"):
        assert index.read_bytes() == (folder / "mega.idx").read_bytes()


def test_megatrons_own_files_are_read(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    docs = [[1, 2, END], [3, END], [4, 5, 6, END]]
    for doc in docs:
        builder.add_document(np.array(doc), [len(doc)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    store = TokenStore.open(tmp_path / "theirs")
    assert lists(store) == docs
    store.verify()


def test_documents_that_nothing_separates_get_an_end_of_text_between_them(tmp_path):
    write_megatron(tmp_path / "m", [[1, 2], [3, END], [4]])
    assert convert_store(tmp_path / "m.bin", tmp_path / "n.bin", to="nanogpt")[:].tolist() == [
        1, 2, END, 3, END, 4,
    ]  # fmt: skip
    assert convert_store(tmp_path / "m.bin", tmp_path / "l.bin", to="llmc")[:].tolist() == [
        1, 2, END, 3, END, 4,
    ]  # fmt: skip


def test_a_folder_converted_to_a_folder_keeps_its_documents_in_new_shards(tmp_path):
    write_nanogpt(tmp_path / "n.bin", [[1, 2, 3], [4], [5, 6]])
    one = convert_store(tmp_path / "n.bin", tmp_path / "one", to="gptrs", shard_tokens=4)
    two = convert_store(one, tmp_path / "two", to="gptrs", shard_tokens=3)
    assert lists(one) == lists(two)
    assert [shard["num_tokens"] for shard in two.manifest["shards"]] == [3, 3, 3]
    assert two.manifest["settings"] == one.manifest["settings"] == {"converted_from": "nanogpt"}


# Refused.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\1\2\3", "has 3 bytes: a nanoGPT file has two for each token"),
        (np.arange(1, 40, dtype=np.int32).tobytes(), "looks like a file that llm.c wrote before"),
        (np.array([20240520, 2, 0] + [0] * 253, np.int32).tobytes(), "version 2 of it is unknown"),
        (np.array([20240326, 3, 0] + [0] * 253, np.int32).tobytes(), "but none of tokens: its num"),
        (np.array([20240520, 1, 5] + [0] * 253, np.int32).tobytes(), "1024 bytes, expected 1034"),
        (np.array([20240801, 7, 1] + [0] * 253, np.int32).tobytes(), "1024 bytes, expected 1028"),
        (np.array([20240520, 1, -1] + [0] * 253, np.int32).tobytes(), "its header says -1 tokens"),
    ],
)  # fmt: skip
def test_a_bin_that_is_not_what_it_seems_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(StoreError, match=message) as raised:
        TokenStore.open(tmp_path / "x.bin")
    assert str(raised.value).startswith(f"{tmp_path / 'x.bin'}: ")


def test_a_file_of_any_other_kind_is_no_store(tmp_path):
    (tmp_path / "text.txt").write_text("some text")
    with pytest.raises(StoreError, match=r"text\.txt: is no file of tokens: expected a folder"):
        TokenStore.open(tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 2}, "its version is 2, expected 1"),
        ({"code": 5}, "its dtype has the code 5, expected 8, uint16, or 4, int32"),
        ({"bounds": [0, 1]}, "its documents do not run from 0 to its 3 sequences"),
        ({"bounds": []}, "its documents do not run from 0 to its 3 sequences"),
        ({"modes": b"\0"}, "bytes, expected 102 for 3 sequences and 4 bounds"),
        ({"offsets": [0, 4, 5]}, "sequence 2 starts at byte 5, where no token does"),
        ({"offsets": [0, 4, 800]}, "expected 802 for the 401 tokens of its index"),
    ],
)
def test_a_megatron_index_that_does_not_fit_is_refused_when_it_opens(tmp_path, options, message):
    write_megatron(tmp_path / "m", [[1, 2], [3], [4]], **options)
    with pytest.raises(StoreError, match=message):
        TokenStore.open(tmp_path / "m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offsets": [2, 0, 6]}, r"m\.idx: sequence 0 starts at token 1, expected 0"),
        ({"offsets": [0, 2, 6]}, r"m\.idx: sequence 1 starts at token 1, expected 2"),
        ({"bounds": [0, 2, 1, 3]}, r"m\.idx: document 1 ends with sequence 1, after 2"),
        ({"bounds": [0, 9, 1, 3]}, r"m\.idx: document 0 ends with sequence 9, after 0"),
    ],
)
def test_verify_finds_what_is_wrong_within_a_megatron_index(tmp_path, options, message):
    write_megatron(tmp_path / "m", [[1, 2], [3], [4]], **options)
    with pytest.raises(StoreError, match=message):
        TokenStore.open(tmp_path / "m").verify()


def test_half_a_megatron_pair_is_refused(tmp_path):
    write_megatron(tmp_path / "m", [[1]])
    (tmp_path / "m.bin").unlink()
    with pytest.raises(StoreError, match=r"m\.bin: cannot be read"):
        TokenStore.open(tmp_path / "m.idx")
    (tmp_path / "m.idx").write_bytes(b"something else")
    with pytest.raises(StoreError, match=r"m\.idx: is no index of Megatron"):
        TokenStore.open(tmp_path / "m.idx")
    # A .bin beside a foreign .idx is what it is without it.
    write_nanogpt(tmp_path / "m.bin", [[1]])
    assert TokenStore.open(tmp_path / "m.bin").format == "nanogpt"


def test_ids_outside_the_vocabulary_are_refused_whatever_the_sign(tmp_path):
    for code, tokens in ((8, [1, 50257]), (4, [1, -1])):
        write_megatron(tmp_path / "m", [tokens], code=code)
        store = TokenStore.open(tmp_path / "m")
        with pytest.raises(StoreError, match=r"m\.bin: has the token id"):
            store[:]
        with pytest.raises(StoreError, match=r"m\.bin: has the token id"):
            store.verify()
        with pytest.raises(StoreError, match=r"m\.bin: has the token id"):
            list(store.documents())


def test_nothing_is_written_over_and_nothing_half_written_stays(tmp_path):
    write_nanogpt(tmp_path / "n.bin", [[1, 2], [3]])
    before = (tmp_path / "n.bin").read_bytes()
    for to, out in [("nanogpt", "n.bin"), ("llmc", "n.bin"), ("megatron", "n"), ("gptrs", ".")]:
        with pytest.raises(StoreError, match="is there already, and nothing is written over"):
            convert_store(tmp_path / "n.bin", tmp_path / out, to=to)
    for to in ("nanogpt", "llmc"):
        with pytest.raises(ConfigError, match=r"the file's name has to end in \.bin"):
            convert_store(tmp_path / "n.bin", tmp_path / "out.tokens", to=to)
    with pytest.raises(ConfigError, match="to is one of gptrs, nanogpt, llmc, megatron; found 'x'"):
        convert_store(tmp_path / "n.bin", tmp_path / "out", to="x")
    np.array([1, 50257], np.uint16).tofile(tmp_path / "bad.bin")
    for to, out in [("nanogpt", "o.bin"), ("llmc", "o.bin"), ("megatron", "o"), ("gptrs", "o")]:
        with pytest.raises(StoreError, match=r"bad\.bin: has the token id 50257"):
            convert_store(tmp_path / "bad.bin", tmp_path / out, to=to)
    assert (tmp_path / "n.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.bin", "n.bin"]


def test_a_conversion_that_is_interrupted_leaves_nothing(tmp_path):
    with (tmp_path / "n.bin").open("wb") as file:
        file.truncate(1 << 30)  # So much that it is never done before it is asked to stop.

    def stop(done):
        raise KeyboardInterrupt

    store = TokenStore.open(tmp_path / "n.bin")
    for to, out in [("nanogpt", "o.bin"), ("llmc", "o.bin"), ("megatron", "o"), ("gptrs", "o")]:
        with pytest.raises(KeyboardInterrupt):
            gptrs._core.convert_store(
                store._core, str(tmp_path / out), to,
                tokenizer_json=None, shard_tokens=1 << 28, on_progress=stop,
            )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["n.bin"]
