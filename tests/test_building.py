"""`build_store`: whatever the input, the store holds each document's ids and an end-of-text."""

import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import gptrs
from gptrs.errors import (
    ConfigError,
    MissingExtraError,
    SourceError,
    StoreError,
    TokenizerError,
)
from gptrs.store.building import parse_bytes
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer import END_OF_TEXT

ENCODING = get_tokenizer("gpt2").as_tiktoken()
"""tiktoken's own code; only the table of ids is ours."""
LARGE = "".join(f"line {i}: it's {i * i}, isn't it?\n" for i in range(45_000))
"""More than the megabyte that is encoded at once."""

few = settings(max_examples=10, deadline=None)
"""A store is brought to the disk, which takes its time."""

documents = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=20)
    | st.sampled_from(["", "a", "Hello, world\n", END_OF_TEXT, "é" * 50, "中文 🙂\r\n", " "]),
    max_size=12,
)


def stream_of(folder):
    """The tokens and the ends of a store, read by NumPy alone."""
    tokens, ends, start = [], [], 0
    shards = zip(sorted(folder.glob("tokens-*")), sorted(folder.glob("ends-*")), strict=True)
    for tokens_file, ends_file in shards:
        ends.append(np.load(ends_file, mmap_mode="r") + np.uint64(start))
        tokens.append(np.load(tokens_file, mmap_mode="r"))
        assert (tokens[-1].dtype, ends[-1].dtype) == ("<u2", "<u8")
        start += len(tokens[-1])
    return np.concatenate([np.empty(0, int), *tokens]), np.concatenate([np.empty(0, int), *ends])


def expected_stream(texts):
    ids = [[*ENCODING.encode_ordinary(text), 50256] for text in texts if text]
    return np.concatenate([np.empty(0, int), *ids]), np.cumsum([len(part) for part in ids])


def assert_holds(folder, texts):
    found, expected = stream_of(folder), expected_stream(texts)
    for part, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, wanted)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["num_tokens"], manifest["num_documents"]) == tuple(map(len, expected))


def dropped(folder):
    return json.loads((folder / "manifest.json").read_text())["dropped"]


def compressed(content, suffix):
    """What a compressor makes of `content` in two parts: a file may have several."""
    half = len(content) // 2
    if suffix == ".gz":
        return gzip.compress(content[:half]) + gzip.compress(content[half:])
    if suffix == ".zst":
        codec = pa.Codec("zstd")
        return codec.compress(content[:half], True) + codec.compress(content[half:], True)
    return content


def json_lines(texts, **more):
    return "".join(
        json.dumps({**more, "text": text, "n": i}) + "\n" for i, text in enumerate(texts)
    )


def write_parquet(file, texts, row_group_size=3):
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), file, row_group_size)


# Every kind of input


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@few
@given(texts=documents)
def test_text_files_are_a_document_each(tmp_path_factory, suffix, texts):
    folder = tmp_path_factory.mktemp("in")
    for number, text in enumerate(texts):
        file = folder / f"{number:03d}.txt{suffix}"
        file.write_bytes(compressed(text.encode(), suffix))
    (folder / "999.md").write_text("the last")
    gptrs.build_store(folder, folder / "out")
    assert_holds(folder / "out", [*texts, "the last"])
    assert dropped(folder / "out")["empty"] == texts.count("")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@few
@given(texts=documents, escaped=st.booleans())
def test_json_lines_are_a_document_each(tmp_path_factory, suffix, texts, escaped):
    file = tmp_path_factory.mktemp("in") / f"a.jsonl{suffix}"
    lines = [json.dumps({"id": {"text": 1}, "text": t}, ensure_ascii=escaped) for t in texts]
    file.write_bytes(compressed("\n".join(lines).encode(), suffix))
    gptrs.build_store(file, file.parent / "out")
    assert_holds(file.parent / "out", texts)


@few
@given(texts=documents, row_group_size=st.integers(1, 5))
def test_rows_of_parquet_are_a_document_each(tmp_path_factory, texts, row_group_size):
    file = tmp_path_factory.mktemp("in") / "a.parquet"
    write_parquet(file, pa.array(texts, pa.string()), row_group_size)
    gptrs.build_store(file, file.parent / "out")
    assert_holds(file.parent / "out", texts)


@few
@given(texts=documents)
def test_strings_of_an_iterable_are_a_document_each(tmp_path_factory, texts):
    out = tmp_path_factory.mktemp("out")
    gptrs.build_store((text for text in texts), out / "generator")
    gptrs.build_store([texts], out / "list")
    gptrs.build_store(({"text": text, "n": 1} for text in texts), out / "mappings")
    for name in ("generator", "list", "mappings"):
        assert_holds(out / name, texts)


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_document_larger_than_a_block_is_whole(tmp_path, kind, suffix):
    texts = ["before", LARGE, "after"]
    if kind == "text":
        for name, text in zip("abc", texts, strict=True):
            (tmp_path / f"{name}.txt{suffix}").write_bytes(compressed(text.encode(), suffix))
    else:
        (tmp_path / f"a.jsonl{suffix}").write_bytes(compressed(json_lines(texts).encode(), suffix))
    gptrs.build_store(tmp_path, tmp_path / "out", shard_tokens=100_000, threads=3)
    assert_holds(tmp_path / "out", texts)


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_has_strings_in_several_ways(tmp_path, kind):
    texts = ["one", "two", "one", LARGE, "é", ""] * 3
    column = pa.array(texts, pa.large_string() if kind == "large_string" else pa.string())
    write_parquet(
        tmp_path / "a.parquet", column.dictionary_encode() if kind == "dictionary" else column, 7
    )
    gptrs.build_store(tmp_path, tmp_path / "out")
    assert_holds(tmp_path / "out", texts)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@few
@given(texts=documents.map(lambda texts: [text.replace("--", "-") for text in texts]))
def test_a_text_file_is_split_where_it_is_asked(tmp_path_factory, name, texts):
    file = tmp_path_factory.mktemp("in") / name
    content = "\n--\n".join(texts)
    file.write_bytes(compressed(content.encode(), file.suffix))
    gptrs.build_store(file, file.parent / "out", split_on="\n--\n")
    assert_holds(file.parent / "out", content.split("\n--\n"))


def test_inputs_come_in_the_order_in_which_they_are_given(tmp_path):
    (tmp_path / "a.txt").write_text("from a")
    (tmp_path / "b.jsonl").write_text(json_lines(["from b", "more"]))
    write_parquet(tmp_path / "c.parquet", ["from c"])
    inputs = [tmp_path / "c.parquet", ["one", "two"], str(tmp_path / "b.jsonl"), tmp_path / "a.txt"]
    gptrs.build_store(inputs, tmp_path / "out")
    assert_holds(tmp_path / "out", ["from c", "one", "two", "from b", "more", "from a"])


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + b'{"text": "two"}'))
    gptrs.build_store(tmp_path, tmp_path / "out")
    assert_holds(tmp_path / "out", ["one", "two"])


# Which files


def test_a_folder_stands_for_its_files_at_any_depth_sorted(tmp_path):
    names = ["a/z.txt", "a.txt", "b.md", "b/c/d.jsonl", "e.parquet", "f.jsonl.zst", "g.txt.gz"]
    for name in names:
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if ".jsonl" in name:
            file.write_bytes(compressed(json_lines([name]).encode(), file.suffix))
        elif file.suffix == ".parquet":
            write_parquet(file, [name])
        else:
            file.write_bytes(compressed(name.encode(), file.suffix))
    for name in ("x.py", "x.json", "README", "x.parquet.gz", "x.gz"):
        (tmp_path / "data" / name).write_text("is not read")
    gptrs.build_store(tmp_path / "data", tmp_path / "out")
    assert_holds(tmp_path / "out", sorted(names, key=lambda name: name.split("/")))


def test_a_pattern_stands_for_the_files_that_match_sorted(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/d.log", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    for pattern, names in {
        "*.txt": ["a.txt", "b.txt", "odd[1].txt"],
        "**/*.txt": ["a.txt", "b.txt", "deep/er/c.txt", "odd[1].txt"],
        "deep/*": ["deep/d.log"],
        "odd[1].txt": ["odd[1].txt"],
    }.items():
        out = tmp_path / "out" / pattern.replace("/", "").replace("*", "s")
        gptrs.build_store(pattern, out)
        assert_holds(out, names)


def test_a_file_that_is_named_is_text_whatever_its_name_unless_told_otherwise(tmp_path):
    content = json_lines(["one", "two"])
    for name in ("a.json.gz", "a", "a.jsonl"):
        (tmp_path / name).write_bytes(compressed(content.encode(), Path(name).suffix))
        for input_format, texts in {
            "auto": ["one", "two"] if name == "a.jsonl" else [content],
            "text": [content],
            "jsonl": ["one", "two"],
        }.items():
            out = tmp_path / "out" / name / input_format
            gptrs.build_store(tmp_path / name, out, input_format=input_format)
            assert_holds(out, texts)


def test_every_input_that_cannot_be_read_is_named_before_anything_is_built(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.txt").symlink_to("nowhere")
    inputs = [tmp_path / name for name in ("a.txt", "no.txt", "empty", "link.txt", "x", "y")]
    with pytest.raises(SourceError, match="5 inputs") as found:
        gptrs.build_store(inputs, tmp_path / "out")
    message = str(found.value)
    assert f"{tmp_path / 'no.txt'}: no such file or folder" in message
    assert f"{tmp_path / 'empty'}: no .txt, .md, .jsonl or .parquet file" in message
    assert message.endswith("; and 2 more")
    assert not (tmp_path / "out").exists()
    for wrong, reason in {
        tmp_path / "no.txt": "no such file",
        tmp_path / "link.txt": "cannot be read: No such file",
        tmp_path / "*.log": "no file matches",
        tmp_path / "e*": "no file matches this pattern; 1 folders do",
        "nul\0": "null",
    }.items():
        with pytest.raises(SourceError, match=reason) as found:
            gptrs.build_store([tmp_path / "a.txt", wrong], tmp_path / "out")
        assert str(wrong).strip("\0") in str(found.value)


def test_a_file_that_may_not_be_read_is_named_before_anything_is_built(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    opened = gptrs.store.inputs.os.open

    def refuse(path, *arguments):
        if str(path).endswith("b.txt"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments)

    # Not by its mode: a test that runs as root may read everything.
    monkeypatch.setattr("gptrs.store.inputs.os.open", refuse)
    with pytest.raises(SourceError, match=r"b\.txt: cannot be read: Permission denied"):
        gptrs.build_store(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_that_lead_round_in_a_circle_are_refused_and_others_followed(tmp_path):
    data = tmp_path / "data" / "deep"
    data.mkdir(parents=True)
    (data / "a.txt").write_text("once")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("linked")
    (data / "also").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere")
    gptrs.build_store(tmp_path / "data", tmp_path / "out")
    assert_holds(tmp_path / "out", ["once", "linked", "linked"])
    (data / "up").symlink_to(tmp_path / "data")
    with pytest.raises(SourceError, match=r"up: a link leads back to .*data, which it is in"):
        gptrs.build_store(tmp_path / "data", tmp_path / "out2")
    (data / "up").unlink()
    (data / "self.txt").symlink_to("self.txt")
    with pytest.raises(SourceError, match=r"self\.txt: cannot be read: Too many levels"):
        gptrs.build_store(tmp_path / "data", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


# Text that is not as it should be


def test_empty_files_and_empty_rows_are_counted_and_left_out(tmp_path):
    for name in ("a.txt", "b.jsonl", "c.txt.gz", "d.txt"):
        (tmp_path / name).write_bytes(compressed(b"", Path(name).suffix))
    (tmp_path / "e.txt.gz").touch()
    (tmp_path / "f.jsonl").write_text('\n{"text": ""}\n   \n{"text": "some"}\n\n')
    write_parquet(tmp_path / "g.parquet", pa.array([], pa.string()))
    write_parquet(tmp_path / "h.parquet", ["", "more", ""])
    gptrs.build_store(tmp_path, tmp_path / "out")
    assert_holds(tmp_path / "out", ["some", "more"])
    # Empty lines of JSON Lines are no documents, and neither are files without a row.
    assert dropped(tmp_path / "out") == {"empty": 7, "short": 0, "duplicate": 0, "invalid": 0}


def test_a_store_may_be_empty(tmp_path):
    (tmp_path / "a.txt").touch()
    store = gptrs.build_store(tmp_path / "a.txt", tmp_path / "out")
    assert len(store) == store.num_documents == 0
    assert_holds(tmp_path / "out", [])


@pytest.mark.parametrize(
    "line",
    [
        '{"text": 5}',
        '{"text": null}',
        '{"txt": "a"}',
        '"text"',
        "{",
        '{"text": "a"} {"text": "b"}',
        r'{"text": "\ud800"}',
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_invalid_line_is_refused_by_its_number_or_counted(tmp_path, suffix, line):
    file = tmp_path / f"a.jsonl{suffix}"
    content = json_lines(["one", "two"]) + "\n" + line + "\n" + json_lines(["three"])
    file.write_bytes(compressed(content.encode(), suffix))
    with pytest.raises(SourceError, match=rf"a\.jsonl{suffix}:4: "):
        gptrs.build_store(file, tmp_path / "refused")
    gptrs.build_store(file, tmp_path / "out", skip_invalid=True)
    assert_holds(tmp_path / "out", ["one", "two", "three"])
    assert dropped(tmp_path / "out")["invalid"] == 1


def test_an_invalid_row_is_refused_by_its_number_or_counted(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["one", None, "three", None], 1)
    for number, (rows, name) in enumerate(
        (
            (tmp_path / "a.parquet", r"a\.parquet"),
            (["one", 5, "three", None], r"texts\[0\]"),
            ([{"text": "one"}, {}, {"text": "three"}, {"text": b"four"}], r"texts\[0\]"),
            (["one", "two\ud800", "three", "\udc00"], r"texts\[0\]"),
        )
    ):
        with pytest.raises(SourceError, match=f"{name}:2: "):
            gptrs.build_store([rows], tmp_path / f"refused{number}")
        out = tmp_path / f"out{number}"
        gptrs.build_store([rows], out, skip_invalid=True)
        assert_holds(out, ["one", "three"])
        assert dropped(out)["invalid"] == 2


def test_what_is_not_utf8_is_refused_or_replaced(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xffcd")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "one"}\n{"text": "t\xc3"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "\\ud800 and \\ud83d\\ude42"}')
    column = pa.array([b"one", b"t\xc3"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "d.parquet")
    for name, place in {
        "a.txt": r"a\.txt: not UTF-8: byte 0xff at offset 2",
        "b.jsonl": r"b\.jsonl:2: ",
        "c.jsonl": r"c\.jsonl:1: ",
        "d.parquet": r"d\.parquet:2: ",
    }.items():
        with pytest.raises(SourceError, match=place):
            gptrs.build_store(tmp_path / name, tmp_path / "refused" / name)
    inputs = [tmp_path, ["a\ud800", "\ud83d\ude42"]]
    gptrs.build_store(inputs, tmp_path / "out", errors="replace")
    replaced = ["ab\ufffdcd", "one", "t\ufffd", "\ufffd and 🙂", "one", "t\ufffd", "a\ufffd", "🙂"]
    assert_holds(tmp_path / "out", replaced)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_damaged_is_named(tmp_path, suffix):
    content = compressed(LARGE.encode(), suffix)
    file = tmp_path / f"a.txt{suffix}"
    damaged = [content[:-3], content[: len(content) // 3], b"no compressor wrote this"]
    if suffix == ".gz":  # Has a checksum, and Zstandard has none unless it was asked for.
        damaged.append(content[:-9] + bytes([content[-9] ^ 0x10]) + content[-8:])
    for wrong in damaged:
        file.write_bytes(wrong)
        with pytest.raises(SourceError, match=rf"a\.txt{suffix}: "):
            gptrs.build_store(file, tmp_path / "out" / str(len(wrong)))


def test_a_parquet_file_that_cannot_be_used_is_named_before_anything_is_built(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["one"])
    content = (tmp_path / "a.parquet").read_bytes()
    pq.write_table(pa.table({"text": [1], "content": ["one"]}), tmp_path / "b.parquet")
    for wrong in (content[:-3], content[:20], b"", b"no Parquet file"):
        (tmp_path / "c.parquet").write_bytes(wrong)
        with pytest.raises(SourceError, match=r"c\.parquet: cannot be read as Parquet: "):
            gptrs.build_store([tmp_path / "a.parquet", tmp_path / "c.parquet"], tmp_path / "out")
    for text_key, message in {
        "body": r"b\.parquet: has no column 'body'; it has 'text', 'content'",
        "text": r"b\.parquet: the column 'text' has int64, and a text is a string",
    }.items():
        with pytest.raises(SourceError, match=message):
            gptrs.build_store(tmp_path / "b.parquet", tmp_path / "out", text_key=text_key)
    assert not (tmp_path / "out").exists()
    gptrs.build_store(tmp_path / "b.parquet", tmp_path / "out", text_key="content")
    assert_holds(tmp_path / "out", ["one"])


def test_without_pyarrow_the_pip_line_is_the_error(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", ["one"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gptrs\[parquet\]"'):
        gptrs.build_store(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is left out, and what goes where


def test_a_file_where_the_store_should_be_is_left_alone(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    built = gptrs.build_store([["a"]], tmp_path / "store")
    for make in (
        lambda: gptrs.build_store([["a"]], file),
        lambda: gptrs.merge_stores([built.path], file),
    ):
        with pytest.raises(StoreError, match="file cannot be written: it is a file"):
            make()
    assert file.read_text() == "mine"


def test_documents_of_too_few_characters_are_left_out(tmp_path):
    texts = ["", "a", "ééé", "abcd", "🙂🙂🙂🙂", "abc"]
    gptrs.build_store([texts], tmp_path / "out", min_chars=4)
    assert_holds(tmp_path / "out", ["abcd", "🙂🙂🙂🙂"])
    assert dropped(tmp_path / "out") == {"empty": 1, "short": 3, "duplicate": 0, "invalid": 0}


@few
@given(choices=st.lists(st.integers(0, 9), max_size=40), threads=st.integers(1, 3))
def test_the_first_of_equal_documents_stays(tmp_path_factory, choices, threads):
    out = tmp_path_factory.mktemp("out")
    texts = [LARGE if choice == 9 else str(choice) * choice for choice in choices]
    gptrs.build_store([texts], out / "store", deduplicate=True, threads=threads)
    assert_holds(out / "store", list(dict.fromkeys(texts)))
    distinct = len(set(texts) - {""})
    empty = texts.count("")
    assert dropped(out / "store")["empty"] == empty
    assert dropped(out / "store")["duplicate"] == len(texts) - empty - distinct


def test_equal_documents_are_found_across_files_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(["two", "one"]).encode()))
    write_parquet(tmp_path / "c.parquet", ["two", "three"])
    gptrs.build_store([tmp_path, ["three", "four"]], tmp_path / "out", deduplicate=True)
    assert_holds(tmp_path / "out", ["one", "two", "three", "four"])


def test_documents_to_validate_on_do_not_depend_on_the_corpus_or_its_order(tmp_path):
    texts = [f"document {i}" for i in range(4000)]
    draw = np.random.default_rng(0)
    sides = {}
    for name, corpus in {
        "all": texts,
        "few": texts[:300],
        "shuffled": draw.permutation(texts).tolist(),
        "large": [*texts[:50], LARGE, *texts[50:100]],
    }.items():
        out = tmp_path / name
        store = gptrs.build_store([corpus], out, val_fraction=0.1)
        assert store.path == out / "train"
        assert not (out / "manifest.json").exists()
        for side in ("train", "val"):
            tokens, ends = stream_of(out / side)
            for document in np.split(tokens, ends[:-1].astype(int)):
                text = ENCODING.decode(document[:-1])
                assert sides.setdefault(text, side) == side
                assert text in corpus
        assert sum(len(stream_of(out / side)[1]) for side in ("train", "val")) == len(corpus)
    # Five standard deviations of a binomial distribution.
    num_val = [sides[text] for text in texts].count("val")
    assert abs(num_val - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5


def test_a_document_never_moves_to_training_when_more_is_validated_on(tmp_path):
    texts = [f"document {i}" for i in range(500)]
    held_out = set()
    for fraction in (0.05, 0.2, 0.9):
        gptrs.build_store([texts], tmp_path / str(fraction), val_fraction=fraction)
        tokens, ends = stream_of(tmp_path / str(fraction) / "val")
        documents = {bytes(part) for part in np.split(tokens, ends[:-1].astype(int))}
        assert documents > held_out
        held_out = documents


def test_equal_documents_are_on_one_side(tmp_path):
    texts = [f"document {i % 50}" for i in range(200)]
    gptrs.build_store([texts], tmp_path / "out", val_fraction=0.5, deduplicate=True)
    counts = [len(stream_of(tmp_path / "out" / side)[1]) for side in ("train", "val")]
    assert sum(counts) == 50
    assert min(counts) > 0


# Tokens


def test_text_cannot_forge_the_end_of_a_document_unless_allowed(tmp_path):
    text = f"one{END_OF_TEXT}two"
    gptrs.build_store([[text]], tmp_path / "out")
    assert_holds(tmp_path / "out", [text])
    gptrs.build_store([[text]], tmp_path / "allowed", allow_special=True)
    tokens, ends = stream_of(tmp_path / "allowed")
    assert tokens.tolist() == [505, 50256, 11545, 50256]
    assert ends.tolist() == [4]


def test_the_tokenizer_may_be_another(tmp_path):
    text = LARGE[:5000]
    (tmp_path / "a.txt").write_text(text)
    trained = gptrs.train_tokenizer(tmp_path / "a.txt", 280)
    trained.save(tmp_path)
    chars = gptrs.train_tokenizer(tmp_path / "a.txt", None, kind="char", special_tokens=[])
    for name, tokenizer, ids in (
        ("trained", trained, [*trained.encode(text), trained.eot_token]),
        ("file", tmp_path / "tokenizer.json", [*trained.encode(text), trained.eot_token]),
        ("tiktoken", ENCODING, [*ENCODING.encode(text), 50256]),
        ("chars", chars, chars.encode(text)),
    ):
        store = gptrs.build_store(tmp_path / "a.txt", tmp_path / name, tokenizer=tokenizer)
        assert stream_of(tmp_path / name)[0].tolist() == ids
        assert store.tokenizer == gptrs.Tokenizer.load(tmp_path / name)
    other = tiktoken.Encoding("x", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={})
    with pytest.raises(ConfigError, match="tiktoken's gpt2, found <Encoding 'x'>"):
        gptrs.build_store(tmp_path / "a.txt", tmp_path / "out", tokenizer=other)
    with pytest.raises(TokenizerError, match="no tokenizer is named 'gpt9'"):
        gptrs.build_store(tmp_path / "a.txt", tmp_path / "out", tokenizer="gpt9")
    (tmp_path / "b.txt").write_text("it's ☃")
    with pytest.raises(SourceError, match=r"b\.txt.*the character '☃' at byte 5"):
        gptrs.build_store(tmp_path / "b.txt", tmp_path / "out", tokenizer=chars)


# The bytes do not depend on how they are made


@few
@given(texts=documents, shard_tokens=st.integers(1, 40), threads=st.integers(1, 4))
def test_shards_are_cut_anywhere(tmp_path_factory, texts, shard_tokens, threads):
    out = tmp_path_factory.mktemp("out") / "store"
    store = gptrs.build_store([texts], out, shard_tokens=shard_tokens, threads=threads)
    assert_holds(out, texts)
    assert len(store) == len(expected_stream(texts)[0])
    sizes = [len(np.load(file)) for file in sorted(out.glob("tokens-*"))]
    assert all(size == shard_tokens for size in sizes[:-1])


def files_of(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_threads_and_memory_do_not_change_a_byte(tmp_path):
    for number in range(30):
        text = LARGE[number * 1000 : number * 1000 + 97_000 * (number % 7)]
        (tmp_path / f"{number:02d}.txt").write_text(text)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(json_lines([LARGE, "a", LARGE]).encode()))
    found = []
    for number, (threads, memory) in enumerate([(1, "1GiB"), (2, "64MB"), (5, "512MB")]):
        out = tmp_path / f"out{number}"
        gptrs.build_store(
            tmp_path, out, threads=threads, memory=memory, deduplicate=True, val_fraction=0.3
        )
        found.append(files_of(out))
    assert found[0] == found[1] == found[2]


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"val_fraction": -0.1}, "val_fraction"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"task": (3, 3)}, "task"),
        ({"task": (0, 0)}, "task"),
        ({"split_on": ""}, "split_on"),
        ({"shard_tokens": 0}, "shard_tokens"),
        ({"threads": 0}, "threads"),
        ({"memory": "lots"}, "memory is a number of bytes"),
        ({"memory": 0}, "memory is a number of bytes"),
        ({"errors": "ignore"}, 'errors is "strict" or "replace", found'),
        ({"input_format": "csv"}, 'the format is "auto", "text" or "jsonl"'),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_built(tmp_path, options, message):
    (tmp_path / "a.txt").write_text("some")
    with pytest.raises(ConfigError, match=message):
        gptrs.build_store(tmp_path / "a.txt", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [5, None, b"a.txt", {"a": 1}, ["a.txt", 5]])
def test_an_input_is_a_path_or_an_iterable_of_texts(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some")
    with pytest.raises(TypeError, match="an input is a path or an iterable of str, found "):
        gptrs.build_store(wrong, "out")
    with pytest.raises(ConfigError, match="no input was given"):
        gptrs.build_store([], "out")
    with pytest.raises(ConfigError, match="read once only"):
        gptrs.build_store(["-", "-"], "out")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (7, 7),
        ("7", 7),
        ("512MB", 512_000_000),
        ("2 GiB", 2 << 30),
        ("1.5k", 1500),
        ("3tb", 3 * 10**12),
    ],
)
def test_memory_is_written_with_a_unit_or_none(written, meant):
    assert parse_bytes(written) == meant


def test_a_folder_that_holds_a_store_is_left_as_it_is(tmp_path):
    gptrs.build_store([["one"]], tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(StoreError, match="out"):
        gptrs.build_store([["two"]], tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_an_error_in_an_iterable_arrives_unchanged(tmp_path):
    def texts():
        yield "one"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gptrs.build_store(texts(), tmp_path / "out")
    gptrs.build_store([["one", "two"]], tmp_path / "out")
    assert_holds(tmp_path / "out", ["one", "two"])


def test_progress_is_told_from_the_start_to_the_end(tmp_path):
    (tmp_path / "a.txt").write_text(LARGE)
    write_parquet(tmp_path / "b.parquet", [LARGE, "a"])
    told = []
    gptrs.build_store(tmp_path, tmp_path / "out", on_progress=told.append)
    assert told[0]["tokens"] == told[0]["text_bytes"] == told[0]["bytes"] == 0
    assert told[-1]["tokens"] == len(stream_of(tmp_path / "out")[0])
    assert told[-1]["bytes"] == told[-1]["bytes_total"]
    assert told[-1]["text_bytes"] == 2 * len(LARGE) + 1
    for before, after in pairwise(told):
        assert all(before[key] <= after[key] for key in ("tokens", "bytes", "text_bytes"))


def test_the_progress_of_a_part_is_that_of_its_own_inputs(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(LARGE[: 1000 * (number + 1)])
    totals = []
    for task in range(3):
        told = []
        out = tmp_path / f"out{task}"
        gptrs.build_store(tmp_path, out, task=(task, 3), on_progress=told.append)
        assert told[0]["bytes"] == 0
        assert told[-1]["bytes"] == told[-1]["bytes_total"]
        totals.append(told[-1]["bytes_total"])
    assert sum(totals) == 21_000
    assert max(totals) < 10_000
