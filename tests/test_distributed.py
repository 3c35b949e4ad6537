"""`gptrs.distributed`: parts that datatrove's executors build, merged to the store of one build."""

import json
import re
import subprocess
import sys
from pathlib import Path

import datatrove.executor
import dill
import numpy as np
import pytest
from datatrove.executor import LocalPipelineExecutor

import gptrs
from gptrs.distributed import BuildPart, MergeParts, part_folder, part_folders
from gptrs.errors import ConfigError, SourceError, StoreError

PAGE = Path(__file__).parent.parent / "docs" / "many-machines.md"
NUM_TASKS = 5


@pytest.fixture
def corpus(tmp_path):
    """Files of unlike sizes and kinds; a third of the documents is there twice."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    draw = np.random.default_rng(5)
    words = np.array(["sun", " moon", "\n", " Zürich", " 1984", "!", " the", "ing"])
    documents = ["".join(draw.choice(words, size=draw.integers(1, 400))) for _ in range(120)]
    documents += documents[::3]
    for number, group in enumerate(np.array_split(np.array(documents, dtype=object), 12)):
        if number % 2:
            lines = [json.dumps({"text": text}) + "\n" for text in group]
            (folder / f"{number:02}.jsonl").write_text("".join(lines), encoding="utf-8")
        else:
            (folder / f"{number:02}.txt").write_text("\n\n".join(group), encoding="utf-8")
    return folder


def build_parts(inputs, parts, num_parts, **options):
    """Every task's part, one after the other in this process."""
    step = BuildPart(inputs, parts, **options)
    for rank in range(num_parts):
        step.run(None, rank, num_parts)
    return step


def assert_same_stream(store, other):
    assert len(store) == len(other)
    np.testing.assert_array_equal(store[:], other[:])
    assert store.num_documents == other.num_documents
    for index in range(store.num_documents):
        np.testing.assert_array_equal(store.document(index), other.document(index))


def documented_scripts():
    """The blocks of Python in the page about many machines."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_documented_script_merges_what_workers_built_to_the_store_of_one_build(
    corpus, tmp_path
):
    (script,) = (text for text in documented_scripts() if "LocalPipelineExecutor" in text)
    script = script.replace("/data", str(tmp_path))
    few = script.replace("tasks=64", f"tasks={NUM_TASKS}").replace("workers=8", "workers=2")
    (tmp_path / "script.py").write_text(few)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    single = gptrs.build_store(corpus, tmp_path / "single", deduplicate=True)
    merged = gptrs.TokenStore.open(tmp_path / "store")
    assert_same_stream(merged, single)
    merged.verify()
    assert len(part_folders(tmp_path / "parts")) == NUM_TASKS

    stats = json.loads((tmp_path / "logs" / "merge" / "stats.json").read_text())[0]["stats"]
    assert stats["tokens"]["total"] == len(single)
    assert stats["documents"]["total"] == single.num_documents
    stats = json.loads((tmp_path / "logs" / "build" / "stats.json").read_text())[0]["stats"]
    assert stats["documents"]["n"] == NUM_TASKS


@pytest.mark.parametrize("executor", ["Slurm", "Ray"])
def test_the_documented_scripts_ask_executors_for_what_they_have(executor, tmp_path, monkeypatch):
    (script,) = (text for text in documented_scripts() if f"{executor}Pipeline" in text)
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    sys.modules["ray"].init = lambda address: None
    launched = []
    kind = getattr(datatrove.executor, f"{executor}PipelineExecutor")
    monkeypatch.setattr(kind, "run", lambda executor: launched.append(executor))
    exec(script.replace("/data", str(tmp_path)), {})
    (merge,) = launched
    assert isinstance(merge.pipeline[0], MergeParts)
    assert isinstance(merge.depends.pipeline[0], BuildPart)
    assert merge.pipeline[0].parts == merge.depends.pipeline[0].parts


@pytest.mark.parametrize("num_parts", [1, 2, 7, 15])
def test_parts_in_any_number_merge_to_the_same_stream(corpus, tmp_path, num_parts):
    build_parts(corpus, tmp_path / "parts", num_parts, split_on="\n\n")
    MergeParts(tmp_path / "parts", tmp_path / "store").run(None)
    single = gptrs.build_store(corpus, tmp_path / "single", split_on="\n\n")
    assert_same_stream(gptrs.TokenStore.open(tmp_path / "store"), single)


def test_validation_documents_are_merged_apart(corpus, tmp_path):
    options = {"split_on": "\n\n", "val_fraction": 0.3}
    build_parts(corpus, tmp_path / "parts", 3, **options)
    MergeParts(tmp_path / "parts", tmp_path / "store").run(None)
    gptrs.build_store(corpus, tmp_path / "single", **options)
    for side in ("train", "val"):
        stores = [gptrs.TokenStore.open(tmp_path / name / side) for name in ("store", "single")]
        assert_same_stream(*stores)


def test_a_pickled_step_builds_the_same_part_in_another_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = dill.dumps(BuildPart("corpus", "parts"))
    build_parts(corpus, tmp_path / "again", 2)
    monkeypatch.chdir("/")
    dill.loads(pickled).run(None, 1, 2)
    built, again = (part_folder(tmp_path / name, 1, 2) for name in ("parts", "again"))
    assert_same_stream(gptrs.TokenStore.open(built), gptrs.TokenStore.open(again))


def test_a_part_that_is_whole_is_left_as_it_is(corpus, tmp_path):
    step = build_parts(corpus, tmp_path / "parts", 2)
    part = part_folder(tmp_path / "parts", 0, 2)
    before = {path: path.stat().st_mtime_ns for path in part.iterdir()}
    step.run(None, 0, 2)
    assert {path: path.stat().st_mtime_ns for path in part.iterdir()} == before


def test_a_part_is_not_continued_with_other_options(corpus, tmp_path):
    build_parts(corpus, tmp_path / "parts", 2)
    with pytest.raises(StoreError, match=r"part-00000-of-00002: was begun with other options"):
        build_parts(corpus, tmp_path / "parts", 2, min_chars=7)


def test_parts_built_with_other_threads_and_memory_fit_together(corpus, tmp_path):
    parts = tmp_path / "parts"
    BuildPart(corpus, parts, threads=1, memory="64MB").run(None, 0, 2)
    BuildPart(corpus, parts, threads=2, memory="99MB").run(None, 1, 2)
    assert len(part_folders(parts)) == 2


def test_parts_of_inputs_that_changed_meanwhile_are_not_merged(corpus, tmp_path):
    step = BuildPart(corpus, tmp_path / "parts")
    step.run(None, 0, 2)
    (corpus / "new.txt").write_text("came later")
    step.run(None, 1, 2)
    with pytest.raises(StoreError, match=r"other input files: 12 of \d+ bytes and 13 of \d+ bytes"):
        MergeParts(tmp_path / "parts", tmp_path / "store").run(None)
    assert not (tmp_path / "store").exists()


def test_a_missing_part_is_named(corpus, tmp_path):
    BuildPart(corpus, tmp_path / "parts").run(None, 0, 2)
    with pytest.raises(StoreError, match=r"1 of 2 parts are missing: part-00001-of-00002"):
        MergeParts(tmp_path / "parts", tmp_path / "store").run(None)


def test_parts_of_two_builds_are_not_mixed(corpus, tmp_path):
    build_parts(corpus, tmp_path / "parts", 2)
    build_parts(corpus, tmp_path / "parts", 3)
    with pytest.raises(StoreError, match=r"builds in 2 and in 3 parts"):
        part_folders(tmp_path / "parts")


def test_a_folder_without_parts_has_none(tmp_path):
    with pytest.raises(StoreError, match=r"has no folder part-"):
        part_folders(tmp_path)
    with pytest.raises(StoreError, match=r"nowhere: cannot be read"):
        part_folders(tmp_path / "nowhere")


@pytest.mark.parametrize("inputs", ["-", ["texts.txt", "-"], [["some", "texts"]], 5])
def test_an_input_that_other_machines_cannot_read_is_refused_before_anything_starts(inputs):
    with pytest.raises(ConfigError, match="a path that every task can read"):
        BuildPart(inputs, "parts")


@pytest.mark.parametrize("option", ["task", "progress", "minchars"])
def test_options_that_are_not_the_callers_are_refused(option):
    with pytest.raises(ConfigError, match=f"has no option '{option}'"):
        BuildPart("corpus", "parts", **{option: 1})


def test_documents_of_an_earlier_step_are_not_lost_in_silence(corpus, tmp_path):
    with pytest.raises(ConfigError, match="an earlier step gives documents"):
        BuildPart(corpus, tmp_path / "parts").run(iter([]), 0, 1)


def test_a_task_that_fails_is_not_marked_as_done(tmp_path):
    executor = LocalPipelineExecutor(
        [BuildPart(tmp_path / "nowhere", tmp_path / "parts")],
        workers=1,
        logging_dir=str(tmp_path / "logs"),
    )
    with pytest.raises(SourceError, match="nowhere"):
        executor.run()
    assert executor.get_incomplete_ranks() == [0]


def test_without_datatrove_the_error_has_the_pip_line():
    code = "import sys; sys.modules['datatrove'] = None; import gptrs.distributed"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        'MissingExtraError: gptrs.distributed needs datatrove: pip install "gptrs[distributed]"'
        in (done.stderr)
    )


def test_building_on_many_machines_needs_no_torch():
    code = "import gptrs.distributed, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
