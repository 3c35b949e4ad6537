"""An index that was begun and stopped: by kills, Ctrl-C and errors, and what may go on with it."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from gptrs.config import GPTConfig
from gptrs.embeddings import unfinished_index
from gptrs.embeddings.embedder import Embedder
from gptrs.embeddings.passages import Passage
from gptrs.embeddings.vector_index import VectorIndex
from gptrs.embeddings.vector_index_building import build_index
from gptrs.errors import SourceError, StoreError
from gptrs.model.gpt import GPTModel

PASSAGES = [
    Passage(f"passage {number} \ud800 {'word ' * (number % 4)}", f"{number % 3}.txt", number + 1, 9)
    for number in range(24)
]


def small_embedder(seed=0, **settings):
    torch.manual_seed(seed)
    model = GPTModel(GPTConfig(context_length=16, emb_dim=8, n_heads=2, n_layers=1))
    return Embedder(model, **{"batch_tokens": 4} | settings)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopping(passages, number, error):
    """Passages, and an error in the place of one of them."""
    for each, passage in enumerate(passages):
        if each == number:
            raise error
        yield passage


@pytest.fixture(scope="module")
def embedder():
    return small_embedder()


@pytest.fixture(scope="module")
def whole(embedder, tmp_path_factory):
    """The files of an index that was made at once."""
    return files_of(build_index(tmp_path_factory.mktemp("whole"), PASSAGES, embedder).directory)


@pytest.fixture
def begun(embedder, tmp_path):
    """A folder with an index that lacks its last passages."""
    with pytest.raises(SourceError):
        build_index(tmp_path / "index", stopping(PASSAGES, 20, SourceError("broken")), embedder)
    return tmp_path / "index"


# Each step that changes what is on the disk is the last one of a process once, and the next process
# goes on. Forked from one that has PyTorch, because a hundred imports take minutes.
KILLER = textwrap.dedent("""
    import json, os, shutil, signal, sys
    from pathlib import Path
    sys.path.insert(0, os.path.dirname(sys.argv[1]))
    import torch
    torch.set_num_threads(1)
    from test_unfinished_index import PASSAGES, build_index, files_of, small_embedder
    from gptrs.embeddings import unfinished_index
    unfinished_index.SAVE_EVERY_S = 0
    embedder, out, left = small_embedder(), Path(sys.argv[2]), -1

    def dying(step):
        def call(*args, **options):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **options)
        return call

    for name in ("fsync", "mkdir", "open", "rename", "replace", "rmdir", "truncate", "unlink"):
        setattr(os, name, dying(getattr(os, name)))

    def build(folder, steps):
        global left
        reader, writer = os.pipe()
        if not (child := os.fork()):
            left, done = steps, [0]
            build_index(folder, PASSAGES, embedder, on_resume=done.append)
            os.write(writer, str(done[-1]).encode())
            os._exit(0)
        os.close(writer)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(reader) as done:
            return status, int(done.read() or 0)

    older = build_index(out / "older", PASSAGES[:1], embedder).directory
    found, steps, status = [], 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        steps += 1
        folder = out / str(steps)
        if steps % 2:  # One that is there already is replaced.
            shutil.copytree(older, folder)
        status, _ = build(folder, steps)
        again, resumed = build(folder, -1)
        found.append([status, again, resumed])
    print(json.dumps(found))
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no SIGKILL")
def test_an_index_killed_at_any_step_goes_on_to_the_same_bytes(tmp_path, whole):
    arguments = [sys.executable, "-c", KILLER, __file__, tmp_path]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    assert [status for status, _, _ in found] == [-9] * (len(found) - 1) + [0]
    assert {again for _, again, _ in found} == {0}
    assert len({resumed for _, _, resumed in found}) > 3
    assert max(resumed for _, _, resumed in found) == len(PASSAGES)
    for steps in range(1, len(found) + 1):
        assert files_of(tmp_path / str(steps)) == whole


@pytest.mark.parametrize("number", [0, 1, 10, 23])
def test_what_an_error_or_ctrl_c_stops_goes_on_behind_the_last_block(
    tmp_path, embedder, whole, number
):
    resumed = []
    for error in (SourceError("broken"), KeyboardInterrupt(), SourceError("again")):
        with pytest.raises(type(error)):
            build_index(tmp_path / "index", stopping(PASSAGES, number, error), embedder)
        assert (tmp_path / "index").exists() == (number > 1)
    index = build_index(tmp_path / "index", PASSAGES, embedder, on_resume=resumed.append)
    assert all(0 < done <= number for done in resumed)
    assert len(resumed) == (number > 1)
    assert files_of(index.directory) == whole


def test_what_is_done_is_not_embedded_again(begun, embedder, monkeypatch):
    embedded = []

    def embed(self, texts, **options):
        embedded.extend(texts)
        return np.zeros((len(texts), 8), np.float32)

    monkeypatch.setattr(Embedder, "embed", embed)
    done = json.loads((begun / ".unfinished" / "begun.json").read_bytes())["num_passages"]
    build_index(begun, iter(PASSAGES), embedder)
    assert done > 10
    assert embedded == [passage.text for passage in PASSAGES[done:]]


def test_an_older_index_can_be_searched_until_the_new_one_is_whole(tmp_path, embedder):
    index = build_index(tmp_path / "index", PASSAGES[:3], embedder)
    with pytest.raises(SourceError):
        build_index(index.directory, stopping(PASSAGES, 20, SourceError("broken")), embedder)
    assert VectorIndex.open(index.directory).search(embedder, PASSAGES[2].text)[0].score > 0.99
    assert len(build_index(index.directory, PASSAGES, embedder).vectors) == len(PASSAGES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"the model was vocab_size .*\(\w{16}\), now it is vocab_size .*\(\w{16}\)"),
        ({"pooling": "max"}, "pooling was 'mean', now it is 'max'"),
        ({"layer": 0}, r"the model was .* now it is"),
        ({"stride": 8}, "stride was None, now it is 8"),
        ({"batch_tokens": 5}, "batch_tokens was 4, now it is 5"),
        ({"dtype": "bfloat16"}, "dtype was 'float32', now it is 'bfloat16'"),
        ({"allow_special": True}, "allow_special was False, now it is True"),
    ],
)
def test_other_weights_and_settings_are_refused_with_what_differs(begun, changes, message):
    before, other = files_of(begun / ".unfinished"), small_embedder(**changes)
    with pytest.raises(StoreError, match=f"holds an index that was begun otherwise: {message}"):
        build_index(begun, PASSAGES, other)
    assert files_of(begun / ".unfinished") == before
    index = build_index(begun, PASSAGES, other, overwrite=True)
    np.testing.assert_array_equal(index.search(other, PASSAGES[5].text)[0].passage, PASSAGES[5])
    assert {*files_of(begun)} == {"vectors.npy", "passages.jsonl", "index.json"}


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        (PASSAGES[1:], "passage 1 was 0.txt:1-9, now it is 1.txt:2-9"),
        (PASSAGES[:4], "passages are done, and now there are 4; to start anew, use overwrite=True"),
        (
            [*PASSAGES[:4], PASSAGES[4]._replace(text="changed"), *PASSAGES[5:]],
            "passage 5 was 1.txt:5-9, now it has another text",
        ),
        ([], "and now there are 0"),
    ],
)
def test_other_passages_are_refused_by_the_first_that_differs(begun, embedder, passages, message):
    with pytest.raises(StoreError, match=message):
        build_index(begun, passages, embedder)
    assert len(build_index(begun, passages or PASSAGES, embedder, overwrite=True).vectors) > 3


def cut(path):
    path.write_bytes(path.read_bytes()[:150])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("begun.json", cut, "begun.json is damaged"),
        ("begun.json", lambda path: path.write_text("[]"), "begun.json is damaged"),
        ("begun.json", lambda path: path.write_text("{}"), "begun.json is damaged"),
        ("vectors.npy", cut, "vectors.npy is shorter than it was"),
        ("passages.jsonl", cut, "passages.jsonl is shorter than it was"),
        ("passages.jsonl", lambda path: path.unlink(), "passages.jsonl is shorter than it was"),
        (
            "passages.jsonl",
            lambda path: path.write_text("{}\n" * 999),
            "passage 1 is damaged",
        ),
    ],
)
def test_damage_is_named_and_overwriting_mends_it(begun, embedder, whole, name, damage, message):
    damage(begun / ".unfinished" / name)
    with pytest.raises(StoreError, match=message):
        build_index(begun, PASSAGES, embedder)
    build_index(begun, PASSAGES, embedder, overwrite=True)
    assert files_of(begun) == whole


def test_two_processes_cannot_make_an_index_in_one_folder(tmp_path, embedder, whole):
    def another_begins():
        with pytest.raises(StoreError, match="index: another process makes an index here"):
            build_index(tmp_path / "index", PASSAGES, embedder, overwrite=True)
        yield from PASSAGES

    build_index(tmp_path / "index", another_begins(), embedder)
    assert files_of(tmp_path / "index") == whole


def test_a_full_disk_is_named_and_what_is_done_goes_on(tmp_path, embedder, whole, monkeypatch):
    append, calls = unfinished_index.UnfinishedIndex.append, []

    def disk_full(self, *block):
        calls.append(block)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        append(self, *block)

    monkeypatch.setattr(unfinished_index.UnfinishedIndex, "append", disk_full)
    resumed = []
    with pytest.raises(StoreError, match=r"index: the index cannot be written: .*No space left"):
        build_index(tmp_path / "index", PASSAGES, embedder)
    build_index(tmp_path / "index", PASSAGES, embedder, on_resume=resumed.append)
    assert resumed == [sum(len(passages) for passages, _ in calls[:2])]
    assert files_of(tmp_path / "index") == whole
