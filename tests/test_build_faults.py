"""What goes wrong while a store is built: nothing valid is lost, and the error says what it is."""

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gptrs
from gptrs.errors import SourceError, StoreError

SHARD_TOKENS = 300_000
LARGE = "".join(f"line {i}: it's {i * i}, isn't it?\n" for i in range(45_000))
"""More than the megabyte that is encoded at once."""


def files_of(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def some_texts(seed, number, longest=3000):
    draw = random.Random(seed)
    for i in range(number):
        start = draw.randrange(len(LARGE) - longest)
        yield f"{seed} {i % (number // 2)} " + LARGE[start : start + draw.randrange(longest)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Some 15 MB of every kind, with documents larger than a block and equal ones."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        texts = list(some_texts(number % 17, 200))
        if number in (3, 6, 9):
            texts[7] = LARGE
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        name = folder / f"{number:02d}"
        match number % 4:
            case 0:
                text = LARGE if number in (4, 16) else LARGE[: 10_000 * number]
                name.with_suffix(".txt").write_text(text)
            case 1:
                content = pa.Codec("zstd").compress(lines.encode(), True)
                name.with_suffix(".jsonl.zst").write_bytes(content)
            case 2:
                pq.write_table(pa.table({"text": texts}), name.with_suffix(".parquet"), 100)
            case 3:
                name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines.encode(), 1))
    return folder


# Kills


KILLER = textwrap.dedent("""
    import json, os, random, signal, sys, time

    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # No thread but this one is there when it forks.
    import gptrs, gptrs.store.building, gptrs.store.token_store, pyarrow.parquet

    inputs, out, options, wanted_kills, seed = json.loads(sys.argv[1])
    draw = random.Random(seed)

    def texts():
        for number in range(3_000):
            yield f"{number} " + "it's a text " * (number % 97)

    def build(threads, told):
        def tell(counts):
            if not told.closed:
                told.write(b"%d" % counts["text_bytes"])
                told.close()

        all_inputs = [item or texts() for item in inputs]
        gptrs.build_store(all_inputs, out, threads=threads, on_progress=tell, **options)

    def wait_for(child, seconds):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.001)

    kills = resumed = whole = seconds = 0
    while kills < wanted_kills or os.path.exists(out):
        start = time.perf_counter()
        threads = draw.randrange(1, 4)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                build(threads, os.fdopen(writer, "wb"))
            except KeyboardInterrupt:
                os._exit(130)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(writer)
        if seconds and kills < wanted_kills:  # The first build is left alone, and so is the last.
            time.sleep(draw.uniform(0, 1.1 * seconds))
            # It may be killed while it saves what is done, too, or have saved it all.
            saving = draw.choice([None, draw.uniform(0, 0.03), 99])
            if saving:
                os.kill(child, signal.SIGINT)
                wait_for(child, saving)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        resumed += int(os.read(reader, 99) or 0) > 0
        os.close(reader)
        kills += status == -signal.SIGKILL
        is_whole = any(
            os.path.exists(f"{out}/{folder}/manifest.json") for folder in (".", "train")
        ) and not os.path.exists(f"{out}/.building")
        if is_whole:  # A kill may come when all is done.
            seconds = seconds or time.perf_counter() - start
            os.rename(out, f"{out}-{whole}")
            whole += 1
        elif status not in (130, -signal.SIGKILL):
            sys.exit(f"a build failed with {status}")
    print(json.dumps([kills, resumed, whole]))
""")


def build_with_kills(inputs, out, *, kills, seed=0, **options):
    """Builds unbroken, then on with `kill -9` at random moments; returns the files of all builds.

    An input that is None is texts.
    """
    arguments = json.dumps(
        [[item and str(item) for item in inputs], str(out), options, kills, seed]
    )
    done = subprocess.run(
        [sys.executable, "-c", KILLER, arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    killed, resumed, whole = json.loads(done.stdout)
    assert killed == kills
    return resumed, [files_of(out.with_name(f"{out.name}-{number}")) for number in range(whole)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("options", [{}, {"deduplicate": True, "val_fraction": 0.2}])
def test_a_build_killed_at_any_instant_goes_on_to_the_same_bytes(tmp_path, corpus, options):
    inputs = [*sorted(corpus.iterdir())]
    inputs.insert(11, None)
    resumed, builds = build_with_kills(
        inputs, tmp_path / "out", kills=12, shard_tokens=SHARD_TOKENS, **options
    )
    assert resumed > 0
    for files in builds[1:]:
        assert files.keys() == builds[0].keys()
        assert files == builds[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("pattern", ["*.txt", "*.jsonl.gz", "*.jsonl.zst", "*.parquet", None])
def test_a_build_of_any_kind_survives_kills(tmp_path, corpus, pattern):
    inputs = [corpus / pattern] if pattern else [None]
    _, builds = build_with_kills(inputs, tmp_path / "out", kills=3, deduplicate=True)
    for files in builds[1:]:
        assert files.keys() == builds[0].keys()
        assert files == builds[0]


@pytest.fixture(scope="module")
def many_texts():
    """Some 24 MB: rows are encoded some megabytes at a time, so that a build stops among them."""
    return list(some_texts(5, 1200, longest=40_000))


@pytest.mark.parametrize("row", [0, 1, 1000, 1199, 1200])
def test_texts_go_on_after_those_that_were_built(tmp_path, many_texts, row):
    def broken():
        yield from many_texts[:row]
        raise KeyError("broken off")

    options = {"shard_tokens": SHARD_TOKENS, "deduplicate": True, "threads": 1}
    for _ in range(2):
        with pytest.raises(KeyError, match="broken off"):
            gptrs.build_store(broken(), tmp_path / "out", **options)
    told = []
    gptrs.build_store(iter(many_texts), tmp_path / "out", on_progress=told.append, **options)
    assert (row >= 1000) == (told[0]["text_bytes"] > 0)
    assert told[0]["text_bytes"] <= sum(map(len, many_texts[:row]))
    gptrs.build_store([many_texts], tmp_path / "once", **options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")


@pytest.mark.parametrize("row_group_size", [7, 100, 700])
@pytest.mark.parametrize("row", [700, 1200])
def test_parquet_goes_on_without_reading_the_row_groups_that_are_done(
    tmp_path, monkeypatch, many_texts, row_group_size, row
):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": many_texts}), file, row_group_size)
    gptrs.build_store(file, tmp_path / "once")
    read = []
    breaks_off = True
    group_batches = gptrs.store.rows._group_batches

    def reading(file, number, *arguments):
        read.append(number)
        for batch in group_batches(file, number, *arguments):
            yield batch
            if batch.first + len(batch.texts) >= row and breaks_off:
                raise KeyError("broken off")

    monkeypatch.setattr("gptrs.store.rows._group_batches", reading)
    with pytest.raises(KeyError):
        gptrs.build_store(file, tmp_path / "out", threads=1)
    read.clear()
    breaks_off = False
    gptrs.build_store(file, tmp_path / "out", threads=1)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")
    num_groups = -(-1200 // row_group_size)
    assert read == list(range(num_groups))[-len(read) :]
    assert len(read) < num_groups or row_group_size == 700


def test_parquet_of_which_all_rows_are_built_goes_on(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [LARGE] * 5}), file, 2)

    def unfinished(*arguments, **options):
        yield from row_batches(*arguments, **options)
        raise KeyError("broken off")

    row_batches = gptrs.store.building.row_batches
    monkeypatch.setattr("gptrs.store.building.row_batches", unfinished)
    with pytest.raises(KeyError):
        gptrs.build_store(file, tmp_path / "out", threads=1)
    monkeypatch.undo()
    gptrs.build_store(file, tmp_path / "out", threads=1)
    gptrs.build_store(file, tmp_path / "once", threads=1)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")


# Ctrl-C


def test_ctrl_c_leaves_a_build_that_goes_on(tmp_path, corpus):
    options = {"shard_tokens": SHARD_TOKENS, "threads": 2}
    gptrs.build_store(corpus, tmp_path / "once", **options)
    begun = []
    for number in range(4):
        told = []

        def interrupt(counts, told=told, number=number):
            told.append(counts["text_bytes"])
            if len(told) == 1:
                begun.append(told[0])
            if counts["text_bytes"] > 2_000_000 * number:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            gptrs.build_store(corpus, tmp_path / "out", on_progress=interrupt, **options)
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert begun == sorted(begun)
    assert begun[-1] > 2_000_000
    gptrs.build_store(corpus, tmp_path / "out", **options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many bytes; called again, resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options):
        nonlocal mounted
        remount = "remount," if mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", remount + options, "none", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted = True
        return folder

    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("no disk can be mounted here")
    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_build_on_a_full_disk_goes_on_when_there_is_room(tmp_path, corpus, small_disk, share):
    options = {"shard_tokens": SHARD_TOKENS, "deduplicate": True}
    gptrs.build_store(corpus, tmp_path / "once", **options)
    once = files_of(tmp_path / "once")
    out = small_disk(f"size={int(share * sum(map(len, once.values())))}") / "out"
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{out}.*no space is left on its disk"):
            gptrs.build_store(corpus, out, **options)
        assert not (out / "manifest.json").exists()
    small_disk("size=100m")
    gptrs.build_store(corpus, out, **options)
    assert files_of(out) == once


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_file_that_cannot_grow_is_named_and_the_build_goes_on_later(tmp_path, corpus):
    gptrs.build_store(corpus, tmp_path / "once")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        with pytest.raises(StoreError, match=r"tokens-00000\.npy.*File too large"):
            gptrs.build_store(corpus, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gptrs.build_store(corpus, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, small_disk):
    folder = small_disk("size=1m")
    small_disk("ro")
    for out in (folder, folder / "out"):
        with pytest.raises(StoreError, match=f"{folder}.*Read-only file system"):
            gptrs.build_store([["text"]], out)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=f"{tmp_path}.*Permission denied"):
        gptrs.build_store([["text"]], tmp_path / "out")


def test_where_a_file_is_there_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(StoreError, match="file"):
            gptrs.build_store([["text"]], out)
    assert (tmp_path / "file").read_text() == "kept"


# Two builds, other inputs, other settings


def test_a_second_build_in_a_folder_is_refused_and_does_no_harm(tmp_path):
    def texts():
        yield "one"
        with pytest.raises(StoreError, match=f"{tmp_path / 'out'}.*another build"):
            gptrs.build_store([["two"]], tmp_path / "out")
        program = "import gptrs, sys; gptrs.build_store([['two']], sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "out"], capture_output=True, check=False
        )
        assert b"StoreError" in done.stderr
        yield "three"

    gptrs.build_store(texts(), tmp_path / "out")
    gptrs.build_store([["one", "three"]], tmp_path / "once")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")


def broken_off(inputs, out, **options):
    """A build that stops after `inputs`."""

    def stop():
        raise KeyError("broken off")
        yield

    with pytest.raises(KeyError):
        gptrs.build_store([*inputs, stop()], out, **options)


def test_an_input_that_changes_before_a_build_goes_on_is_named(tmp_path):
    file = tmp_path / "a.txt"
    for change in (
        lambda: file.write_text("another text"),
        lambda: file.write_text("one text less"[:8]),
        lambda: os.utime(file, ns=(1, 1)),
    ):
        file.write_text("one text")
        broken_off([file, ["row"]], tmp_path / "out")
        change()
        with pytest.raises(StoreError, match=r"a\.txt.*changed.*\.building") as found:
            gptrs.build_store([file, ["row"], ["more"]], tmp_path / "out")
        shutil.rmtree(tmp_path / "out" / ".building")
    assert "mtime" not in str(found.value)
    gptrs.build_store([file, ["row"], ["more"]], tmp_path / "out")


def test_texts_that_change_before_a_build_goes_on_are_noticed(tmp_path, many_texts):
    def broken():
        yield from many_texts
        raise KeyError("broken off")

    with pytest.raises(KeyError):
        gptrs.build_store(broken(), tmp_path / "out", threads=1)
    for changed in (
        ["other", *many_texts[1:]],
        many_texts[1:],
        many_texts[:2],
        [*many_texts[:2], "new", *many_texts[2:]],
    ):
        with pytest.raises(
            StoreError, match=r"texts\[0\]\W+has changed: .*\.building to start anew"
        ):
            gptrs.build_store([changed], tmp_path / "out")
    gptrs.build_store([many_texts], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"min_chars": 3}, "min_chars"),
        ({"deduplicate": True}, "deduplicate"),
        ({"val_fraction": 0.5}, "val_fraction"),
        ({"tokenizer": "other"}, "tokenizer"),
        ({"split_on": "x"}, "split_on"),
        ({"shard_tokens": 5}, "shard_tokens"),
        ({"allow_special": True}, "allow_special"),
        ({"task": (0, 1)}, "task"),
    ],
)
def test_a_build_goes_on_with_the_settings_it_began_with_or_not_at_all(tmp_path, options, what):
    (tmp_path / "a.txt").write_text("some text")
    if what == "tokenizer":
        options = {"tokenizer": gptrs.train_tokenizer(tmp_path / "a.txt", 260)}
    broken_off([tmp_path / "a.txt"], tmp_path / "out")
    with pytest.raises(StoreError, match=what):
        gptrs.build_store([tmp_path / "a.txt", []], tmp_path / "out", **options)
    # How many threads, and how much memory, has nothing to do with the result.
    gptrs.build_store([tmp_path / "a.txt", []], tmp_path / "out", threads=1, memory="100MB")


def test_a_build_goes_on_with_the_inputs_it_began_with_or_not_at_all(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    broken_off([tmp_path / "a.txt"], tmp_path / "out")
    for inputs in ([tmp_path / "b.txt", []], [tmp_path / "a.txt"], [tmp_path / "a.txt", [], []]):
        with pytest.raises(StoreError, match="input"):
            gptrs.build_store(inputs, tmp_path / "out")


def test_a_file_that_vanishes_is_named_and_the_build_goes_on_when_it_is_back(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)

    def hide():
        (tmp_path / "b.txt").rename(tmp_path / "hidden")
        yield "row"

    with pytest.raises(SourceError, match=r"b\.txt: "):
        gptrs.build_store([tmp_path / "a.txt", hide(), tmp_path / "b.txt"], tmp_path / "out")
    (tmp_path / "hidden").rename(tmp_path / "b.txt")
    inputs = [tmp_path / "a.txt", ["row"], tmp_path / "b.txt"]
    gptrs.build_store(inputs, tmp_path / "out")
    gptrs.build_store(inputs, tmp_path / "once")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")


def test_a_store_of_a_newer_version_is_named_and_left_as_it_is(tmp_path):
    gptrs.build_store([["one"]], tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"version": 999, "shards": "unknown"}))
    before = files_of(tmp_path / "out")
    with pytest.raises(StoreError, match=r"manifest\.json: its version is 999"):
        gptrs.TokenStore.open(tmp_path / "out")
    with pytest.raises(StoreError, match="out: holds a token store already"):
        gptrs.build_store([["two"]], tmp_path / "out")
    assert files_of(tmp_path / "out") == before


# Sizes


def test_a_word_of_two_gigabytes_is_refused_by_its_offset(tmp_path):
    file = tmp_path / "large.txt"
    file.write_bytes(b"some words, ")
    os.truncate(file, 2 << 30)  # Zeros, of which the disk has nothing.
    with pytest.raises(SourceError, match=r"large\.txt.*at byte 11 has more than 67108864 bytes"):
        gptrs.build_store(file, tmp_path / "out")
    (tmp_path / "large.jsonl").write_bytes(b'{"text": "a"}\n{"text": "')
    os.truncate(tmp_path / "large.jsonl", 2 << 30)
    with pytest.raises(SourceError, match=r"large\.jsonl:2: .*67108864 bytes"):
        gptrs.build_store(tmp_path / "large.jsonl", tmp_path / "out2")


PROSE = textwrap.dedent("""
    import sys

    sentence = " The sea, at 7 o'clock, was calm; it's café-blue ☕ and doesn't mind. And".encode()
    block = sentence * ((1 << 20) // len(sentence))
    for _ in range(int(sys.argv[1]) // len(block)):
        sys.stdout.buffer.write(block)
""")


def build_from_a_pipe(num_bytes, out, *options):
    """Builds that much prose without a line end; the most memory that it took, in bytes."""
    writer = subprocess.Popen([sys.executable, "-c", PROSE, str(num_bytes)], stdout=subprocess.PIPE)
    program = (
        "import sys; from gptrs.cli import main; code = main(sys.argv[1:]);"
        "most = [line for line in open('/proc/self/status') if line.startswith('VmHWM')];"
        "print(most[0].split()[1]); sys.exit(code)"
    )
    builder = subprocess.run(
        [sys.executable, "-c", program, "build", "-", "--out", str(out), *options],
        stdin=writer.stdout,
        stdout=subprocess.PIPE,
        check=True,
    )
    writer.stdout.close()
    assert writer.wait() == 0
    print(builder.stdout.decode())
    return int(builder.stdout.split()[-1]) * 1024


def assert_is_prose(out, num_bytes):
    """Text may be cut before a space, so that the ids repeat as the text does."""
    sentence = " The sea, at 7 o'clock, was calm; it's café-blue ☕ and doesn't mind. And"
    ids = np.array(gptrs.get_tokenizer("gpt2").as_tiktoken().encode(sentence), np.uint16)
    repeats = (1 << 20) // len(sentence.encode())
    repeats *= num_bytes // (repeats * len(sentence.encode()))
    start = 0
    for file in sorted(out.glob("tokens-*")):
        tokens = np.load(file, mmap_mode="r")
        for first in range(0, len(tokens), 1 << 24):
            part = tokens[first : first + (1 << 24)]
            expected = np.resize(np.roll(ids, -(start % len(ids))), len(part))
            assert (part != expected).sum() == (start + len(part) > repeats * len(ids))
            start += len(part)
    assert start == repeats * len(ids) + 1


def test_a_line_of_prose_of_many_blocks_is_one_document(tmp_path):
    build_from_a_pipe(40 << 20, tmp_path / "out")
    assert_is_prose(tmp_path / "out", 40 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [2, 10])
def test_memory_is_bounded_whatever_the_size_of_the_input(tmp_path, gigabytes):
    most = build_from_a_pipe(gigabytes << 30, tmp_path / "out", "--memory", "512MB")
    assert_is_prose(tmp_path / "out", gigabytes << 30)
    assert most < 512_000_000


def test_an_invalid_line_costs_nothing_that_was_built(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"text": 5}\n')
    with pytest.raises(SourceError, match=r"b\.jsonl:2"):
        gptrs.build_store(tmp_path, tmp_path / "out")
    told = []
    # Nothing was skipped so far, so that skipping from here on is the same build.
    gptrs.build_store(tmp_path, tmp_path / "out", skip_invalid=True, on_progress=told.append)
    assert told[0]["text_bytes"] > 0
    gptrs.build_store(tmp_path, tmp_path / "once", skip_invalid=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "once")
