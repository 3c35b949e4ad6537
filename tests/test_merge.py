"""`merge_stores`: parts joined are what one build of all their inputs is."""

import gzip
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptrs
from gptrs.errors import StoreError

LARGE = "".join(f"line {i}: it's {i * i}, isn't it?\n" for i in range(45_000))
few = settings(max_examples=15, deadline=None)
"""A store is brought to the disk, which takes its time."""

documents = st.lists(st.sampled_from(["", "one", "two", "a longer text", "é" * 40]), max_size=6)


def stream_of(folder):
    """The tokens and the ends of a store, read by NumPy alone."""
    tokens, ends, start = [np.empty(0, int)], [np.empty(0, int)], 0
    shards = zip(sorted(folder.glob("tokens-*")), sorted(folder.glob("ends-*")), strict=True)
    for tokens_file, ends_file in shards:
        tokens.append(np.load(tokens_file))
        ends.append(np.load(ends_file).astype(int) + start)
        start += len(tokens[-1])
    return np.concatenate(tokens), np.concatenate(ends)


def assert_same(found, expected):
    """Whether two stores have the same stream and say the same of it, however it is cut."""
    for one, other in zip(stream_of(found), stream_of(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    one, other = (
        json.loads((folder / "manifest.json").read_text()) for folder in (found, expected)
    )
    for key in ("tokenizer", "dtype", "num_tokens", "num_documents", "text_bytes", "dropped"):
        assert one[key] == other[key], key
    gptrs.TokenStore.open(found).verify()


def files_of(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def corpus(tmp_path):
    """Files of every kind, with equal documents among them; one is larger than the others."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(9):
        texts = [f"text {i % 37} of {i % 5}" for i in range(number, 300, 3)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in [*texts, LARGE[:5000]])
        name = folder / str(number)
        match number % 3:
            case 0:
                name.with_suffix(".txt").write_text(LARGE if number == 3 else texts[0])
            case 1:
                name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines.encode()))
            case 2:
                pq.write_table(pa.table({"text": [*texts, LARGE]}), name.with_suffix(".parquet"))
    return folder


def build_parts(corpus, folder, number, **options):
    parts = [folder / f"part-{i}" for i in range(number)]
    for i, part in enumerate(parts):
        gptrs.build_store(corpus, part, task=(i, number), **options)
    return parts


@pytest.mark.parametrize("number", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("deduplicate", [False, True])
def test_the_parts_of_a_build_joined_are_the_build(tmp_path, corpus, number, deduplicate):
    options = {"deduplicate": deduplicate, "shard_tokens": 20_000}
    parts = build_parts(corpus, tmp_path, number, **options)
    store = gptrs.merge_stores(parts, tmp_path / "out", deduplicate=deduplicate)
    gptrs.build_store(corpus, tmp_path / "once", **options)
    assert_same(tmp_path / "out", tmp_path / "once")
    assert len(store) == len(stream_of(tmp_path / "once")[0])


def test_parts_with_documents_to_validate_on_are_joined_on_both_sides(tmp_path, corpus):
    options = {"deduplicate": True, "val_fraction": 0.3}
    parts = build_parts(corpus, tmp_path, 3, **options)
    gptrs.merge_stores(parts, tmp_path / "out", deduplicate=True)
    gptrs.build_store(corpus, tmp_path / "once", **options)
    for side in ("train", "val"):
        tokens, ends = stream_of(tmp_path / "out" / side)
        expected = stream_of(tmp_path / "once" / side)
        np.testing.assert_array_equal(tokens, expected[0])
        np.testing.assert_array_equal(ends, expected[1])
        assert len(ends) > 5


@few
@given(parts=st.lists(documents, min_size=1, max_size=5), shard_tokens=st.integers(1, 30))
def test_stores_joined_have_all_documents_in_order(tmp_path_factory, parts, shard_tokens):
    out = tmp_path_factory.mktemp("out")
    folders = [out / str(number) for number in range(len(parts))]
    for folder, texts in zip(folders, parts, strict=True):
        gptrs.build_store([texts], folder, shard_tokens=shard_tokens)
    gptrs.merge_stores(folders, out / "merged")
    gptrs.build_store(parts, out / "once")
    assert_same(out / "merged", out / "once")


def test_a_shard_that_loses_no_document_is_the_same_file(tmp_path):
    texts = [[f"part {part} text {number}" for number in range(100)] for part in range(3)]
    texts[2][50] = texts[0][7]
    for deduplicate, shared in ((False, 3), (True, 2)):
        parts = [tmp_path / f"{part}-{deduplicate}" for part in range(3)]
        for number, part in enumerate(parts):
            inputs = [[], [], []]
            inputs[number] = texts[number]
            gptrs.build_store(texts, part, task=(number, 3), deduplicate=deduplicate)
        out = tmp_path / f"out-{deduplicate}"
        gptrs.merge_stores(parts, out, deduplicate=deduplicate)
        inodes = {file.stat().st_ino for part in parts for file in part.glob("tokens-*")}
        assert sum(file.stat().st_ino in inodes for file in out.glob("tokens-*")) == shared


def test_parts_of_other_settings_or_tokenizers_are_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_text(LARGE[:5000])
    other = gptrs.train_tokenizer(tmp_path / "a.txt", 270)
    gptrs.build_store([["one"]], tmp_path / "a")
    gptrs.build_store([["two"]], tmp_path / "tokenizer", tokenizer=other)
    gptrs.build_store([["two"]], tmp_path / "min_chars", min_chars=2)
    gptrs.build_store([["two"]], tmp_path / "both", val_fraction=0.5)
    for name in ("tokenizer", "min_chars", "both", "missing"):
        with pytest.raises(StoreError, match=str(tmp_path / name)):
            gptrs.merge_stores([tmp_path / "a", tmp_path / name], tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_parts_that_are_missing_or_in_another_order_are_refused(tmp_path, corpus):
    parts = build_parts(corpus, tmp_path, 3)
    for wrong in (parts[:2], parts[1:], parts[::-1], [parts[0], parts[0], parts[2]], parts + parts):
        with pytest.raises(StoreError, match=r"part|task"):
            gptrs.merge_stores(wrong, tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_parts_of_inputs_that_changed_in_between_are_refused(tmp_path, corpus):
    gptrs.build_store(corpus, tmp_path / "a", task=(0, 2))
    (corpus / "another.txt").write_text("which moves the border between the parts")
    gptrs.build_store(corpus, tmp_path / "b", task=(1, 2))
    with pytest.raises(StoreError, match="all_inputs"):
        gptrs.merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_parts_may_differ_in_whether_they_skip_invalid_rows(tmp_path, corpus):
    for number, skip_invalid in enumerate([False, True]):
        part = tmp_path / str(number)
        gptrs.build_store(corpus, part, task=(number, 2), skip_invalid=skip_invalid)
    store = gptrs.merge_stores([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    assert store.manifest["settings"]["skip_invalid"] is True
    assert "task" not in store.manifest["settings"]


def test_parts_without_hashes_cannot_lose_equal_documents(tmp_path):
    for name in "ab":
        gptrs.build_store([["one"]], tmp_path / name)
    with pytest.raises(StoreError, match=str(tmp_path / "a")):
        gptrs.merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out", deduplicate=True)


def test_an_unfinished_part_is_refused(tmp_path):
    gptrs.build_store([["one"]], tmp_path / "a")

    def broken():
        yield "two"
        raise KeyError

    with pytest.raises(KeyError):
        gptrs.build_store(broken(), tmp_path / "b")
    with pytest.raises(StoreError, match=str(tmp_path / "b")):
        gptrs.merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_a_folder_that_holds_a_store_is_left_as_it_is(tmp_path):
    for name in ("a", "b", "out"):
        gptrs.build_store([[name]], tmp_path / name)
    before = files_of(tmp_path / "out")
    with pytest.raises(StoreError, match=str(tmp_path / "out")):
        gptrs.merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_parts_is_a_list_of_folders(tmp_path):
    with pytest.raises(TypeError, match="parts must be a list of folders"):
        gptrs.merge_stores(tmp_path, tmp_path / "out")


KILLER = textwrap.dedent("""
    import json, os, random, shutil, signal, sys, time

    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # No thread but this one is there when it forks.
    import gptrs, gptrs.store.building, gptrs.store.token_store

    parts, out, kills = json.loads(sys.argv[1])
    draw = random.Random(0)
    seconds = 0
    while kills:
        start = time.perf_counter()
        child = os.fork()
        if not child:
            try:
                gptrs.merge_stores(parts, out, deduplicate=True)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if seconds:
            time.sleep(draw.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, -signal.SIGKILL):
            sys.exit("a merge failed")
        kills -= status != 0
        seconds = seconds or time.perf_counter() - start
        if os.path.exists(f"{out}/manifest.json") and not os.path.exists(f"{out}/.building"):
            shutil.rmtree(out)
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no SIGKILL")
def test_a_merge_killed_at_any_instant_starts_again_to_the_same_bytes(tmp_path, corpus):
    parts = build_parts(corpus, tmp_path, 3, deduplicate=True, shard_tokens=20_000)
    gptrs.merge_stores(parts, tmp_path / "once", deduplicate=True)
    arguments = json.dumps([[str(part) for part in parts], str(tmp_path / "out"), 12])
    subprocess.run([sys.executable, "-c", KILLER, arguments], check=True)
    if not (tmp_path / "out").exists() or (tmp_path / "out" / ".building").exists():
        gptrs.merge_stores(parts, tmp_path / "out", deduplicate=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")
