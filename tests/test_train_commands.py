"""`gptrs train`, as a terminal sees it."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import gptrs
from gptrs.errors import TrainingError
from gptrs.tables import size
from gptrs.text.reading import help_topics
from gptrs.training import parts as training_parts
from gptrs.training.callbacks import Callback
from gptrs.training.checkpoint import checkpoints, step_of
from gptrs.training.reports.speed import training_flops
from gptrs.weights.checkpoint import load_metadata

SHAPE = ["--context-length", "8", "--emb-dim", "8", "--n-heads", "2", "--n-layers", "1"]
QUICK = ["--steps", "3", "--device", "cpu", "--dtype", "float32", "--set", "num_evaluations=1"]
TINY = [*SHAPE, *QUICK]
TEXT = "the quick brown fox jumps over the lazy dog. " * 30


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def trained(run, text, tmp_path):
    """A run of characters."""
    code, _, err = run("train", text, *TINY, "--tokenizer", "char", "--out", tmp_path / "run")
    assert code == 0, err
    return tmp_path / "run"


def start(run_dir):
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])


def losses(run_dir):
    """Of every step so far; a line that is just being written does not count."""
    whole, _, _ = (run_dir / "metrics.jsonl").read_text().rpartition("\n")
    lines = map(json.loads, whole.splitlines())
    return [line["loss"] for line in lines if line["event"] == "step"]


def test_a_run_goes_where_it_was_told_and_not_over_another(run, text, trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "checkpoint", "checkpoints", "metrics.jsonl", "run.json", "tokenizer.json", "report.html",
    }  # fmt: skip
    model, tokenizer = gptrs.load_checkpoint(trained)
    assert model.cfg.vocab_size == tokenizer.n_vocab == len(set(TEXT)) + 1
    code, _, err = run("train", text, *TINY, "--out", trained)
    assert code == 2
    assert f"{trained}: has a run already: resume it (gptrs train --resume {trained})" in err


def test_settings_come_from_a_file_then_from_set_then_from_options(run, text, tmp_path):
    (tmp_path / "run.toml").write_text("steps = 9\nwarmup_steps = 2\nn_layers = 3\nemb_dim = 16\n")
    arguments = ["--config", tmp_path / "run.toml", "--set", "emb_dim=12", "--set", "steps=5"]
    code, _, err = run("train", text, *arguments, *TINY, "--out", tmp_path / "run")
    assert code == 0, err
    found = start(tmp_path / "run")
    assert (found["config"]["steps"], found["config"]["warmup_steps"]) == (3, 2)
    assert (found["model"]["emb_dim"], found["model"]["n_layers"]) == (8, 1)


def test_a_model_is_a_preset_or_a_file(run, text, tmp_path):
    shape = {"emb_dim": 12, "n_heads": 3, "n_layers": 1, "context_length": 8, "drop_rate": 0.0}
    (tmp_path / "model.json").write_text(json.dumps(shape))
    lines = [f"{key} = {value}" for key, value in shape.items()]
    (tmp_path / "model.toml").write_text("\n".join(lines))
    for name in ("model.json", "model.toml"):
        out = tmp_path / f"run-{name}"
        code, _, err = run(
            "train", text, "--tokenizer", "char", "--model", tmp_path / name, *QUICK, "--out", out
        )
        assert code == 0, err
        assert start(out)["model"]["n_heads"] == 3
    for name, message in (("gpt2-123m", "did you mean gpt2-124m"), ("x.json", "cannot be read")):
        code, _, err = run("train", text, "--model", name, *QUICK)
        assert code == 2
        assert message in err


def test_nanogpts_files_are_read_in_place(run, tmp_path):
    ids = np.array(gptrs.get_tokenizer("gpt2").encode_ordinary(TEXT), dtype=np.uint16)
    ids[:250].tofile(tmp_path / "train.bin")
    ids[250:].tofile(tmp_path / "val.bin")
    arguments = ["train", tmp_path / "train.bin", "--val", tmp_path / "val.bin", *TINY]
    code, _, err = run(*arguments, "--out", tmp_path / "run")
    assert code == 0, err
    found = start(tmp_path / "run")
    assert found["num_train_tokens"] == 250
    assert found["num_validation_tokens"] == (len(ids) - 250 - 1) // 8 * 8
    assert gptrs.load_checkpoint(tmp_path / "run")[1] == gptrs.get_tokenizer("gpt2")


def test_a_store_with_both_parts_is_trained_and_validated_on(run, tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"number {number} of the documents " * 5)
    store = gptrs.build_store(tmp_path, tmp_path / "store", val_fraction=0.3)
    held_out = gptrs.TokenStore.open(tmp_path / "store" / "val")
    code, _, err = run("train", tmp_path / "store", *TINY, "--out", tmp_path / "run")
    assert code == 0, err
    assert start(tmp_path / "run")["num_train_tokens"] == len(store)
    assert start(tmp_path / "run")["num_validation_tokens"] == (len(held_out) - 1) // 8 * 8


def test_training_goes_on_from_weights_and_with_their_tokenizer(run, text, trained, tmp_path):
    before = load_metadata(trained)["val_loss"]
    arguments = ["train", text, "--init", trained, *QUICK, "--out", tmp_path / "more"]
    code, _, err = run(*arguments)
    assert code == 0, err
    lines = (tmp_path / "more" / "metrics.jsonl").read_text().splitlines()
    first = next(json.loads(line) for line in lines if json.loads(line)["event"] == "evaluation")
    assert first["val_loss"] == pytest.approx(before, rel=1e-5)
    assert gptrs.load_checkpoint(tmp_path / "more")[1] == gptrs.load_checkpoint(trained)[1]


OTHER_TEXT = TEXT.translate(str.maketrans("abcdefgh", "ABCDEFGH"))
"""As many characters as the text, and other ones."""


@pytest.fixture
def others(text, tmp_path):
    """The text in as many other characters: itself, a tokenizer of it, and a store."""
    other = tmp_path / "other.txt"
    other.write_text(OTHER_TEXT)
    tokenizer = gptrs.train_tokenizer(other, kind="char")
    assert tokenizer.n_vocab == gptrs.train_tokenizer(text, kind="char").n_vocab
    tokenizer.save(tmp_path / "other.json")
    gptrs.build_store(other, tmp_path / "other", tokenizer=tokenizer)
    return other, tmp_path / "other.json", tmp_path / "other"


@pytest.mark.parametrize("lora", [[], ["--lora", "2"]])
def test_weights_are_not_trained_on_ids_of_another_tokenizer(run, trained, others, tmp_path, lora):
    other, tokenizer, store = others
    learned, found = (
        gptrs.get_tokenizer(path)._core.fingerprint()[:8] for path in (trained, tokenizer)
    )
    for arguments, way in (
        ([other, "--tokenizer", "char"], "leave --tokenizer out to take that of the weights"),
        ([other, "--tokenizer", tokenizer], "leave --tokenizer out to take that of the weights"),
        ([store], "build a store with the tokenizer of the weights"),
    ):
        options = ["--init", trained, *lora, *QUICK, "--out", tmp_path / "more"]
        code, _, err = run("train", *arguments, *options)
        assert code == 2
        assert (
            f"{trained} has learned the ids of the tokenizer beside it, char-29 ({learned})" in err
        )
        assert f"{arguments[0]} is in those of char-29 ({found}): {way}" in err
        assert not (tmp_path / "more").exists()


def test_ids_that_cannot_be_compared_with_the_weights_or_are_theirs_are_taken(
    run, text, trained, others, tmp_path
):
    _, tokenizer, store = others
    own = gptrs.build_store(text, tmp_path / "own", tokenizer=trained)
    gptrs.convert_store(own, tmp_path / "own.bin", to="nanogpt")
    bare = tmp_path / "bare"
    gptrs.save_checkpoint(gptrs.load_checkpoint(trained)[0], bare)
    for number, (data, weights, *lora) in enumerate(
        [
            (tmp_path / "own", trained, "--lora", 2),
            (tmp_path / "own.bin", trained),
            (store, bare),
        ]
    ):
        out = tmp_path / f"more-{number}"
        code, said, err = run("train", data, "--init", weights, *lora, *QUICK, "--out", out)
        assert code == 0, err
        names_none = "own.bin names no tokenizer: taken for char-29's, with 29 ids\n"
        assert (names_none in said) is (data.suffix == ".bin")
        made_by = gptrs.TokenStore.open(data, trained if data.suffix else None).tokenizer
        assert gptrs.load_checkpoint(out)[1] == made_by
    # Of a run that goes on, the checkpoint says what its ids are.
    shutil.copy(tokenizer, trained / "checkpoint" / "tokenizer.json")
    code, _, err = run("train", "--resume", tmp_path / "more-0", "--steps", 4)
    assert code == 0, err


def rates(run_dir):
    found = start(run_dir)
    return found["learning_rate"], found["final_learning_rate"]


def test_weights_that_have_learned_are_moved_with_a_tenth_of_the_learning_rate(
    run, text, trained, tmp_path, monkeypatch
):
    assert rates(trained) == (2.5e-3, 2.5e-4)
    begun = {"init": [], "lora": ["--lora", "2"], "told": ["--learning-rate", "1e-3"]}
    said = {}
    for name, options in begun.items():
        out = ["--out", tmp_path / name]
        code, said[name], err = run("train", text, "--init", trained, *QUICK, *options, *out)
        assert code == 0, err
    assert rates(tmp_path / "init") == pytest.approx((2.5e-4, 2.5e-5))
    assert "learning rate up to 0.00025: 0.1 of that from nothing" in said["init"]
    assert rates(tmp_path / "lora") == (2.5e-3, 2.5e-4)
    assert rates(tmp_path / "told") == (1e-3, 1e-4)
    # Another rule would not move a run that goes on.
    monkeypatch.setattr("gptrs.training.config.FINE_TUNING_SHARE", 0.5)
    code, out, err = run("train", "--resume", tmp_path / "init", "--steps", 5)
    assert code == 0, err
    assert "learning rate up to 0.00025" in out
    assert "learning_rate was" not in out
    lines = map(json.loads, (tmp_path / "init" / "metrics.jsonl").read_text().splitlines())
    warming_up = [line["learning_rate"] for line in lines if line["event"] == "step"]
    assert warming_up == pytest.approx([2.5e-4 * step / 20 for step in (1, 2, 3, 4, 5)])


def test_adapters_are_trained_and_the_merged_model_is_what_is_used(run, text, trained, tmp_path):
    arguments = ["train", text, "--init", trained, "--lora", "2", *QUICK]
    code, _, err = run(*arguments, "--out", tmp_path / "tuned")
    assert code == 0, err
    found = start(tmp_path / "tuned")
    assert found["num_trained_parameters"] < found["num_parameters"] / 5
    base, tuned = (
        gptrs.load_checkpoint(path)[0].state_dict() for path in (trained, tmp_path / "tuned")
    )
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed
    assert all(name.endswith(("W_query.weight", "W_value.weight")) for name in changed)
    (newest,) = checkpoints(tmp_path / "tuned")[-1:]
    assert not (newest / "config.json").exists()


def test_instructions_are_learned(run, tmp_path):
    entries = [
        {"instruction": "Add.", "input": f"{a} {b}", "output": str(a + b)}
        for a in range(6)
        for b in range(6)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    (tmp_path / "text.txt").write_text(
        "Below is an instruction that describes a task. 0123456789 " * 9
    )
    tokenizer = gptrs.train_tokenizer(tmp_path / "text.txt", 300).save(tmp_path)
    options = ["--tokenizer", tokenizer, *SHAPE, *QUICK, "--context-length", 128]
    code, out, err = run("train", tmp_path / "data.jsonl", *options, "--out", tmp_path / "run")
    assert code == 0, err
    assert "instructions" in out
    assert start(tmp_path / "run")["data"]["kind"] == "instructions"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora", "2"], "it needs --init"),
        (["--init", "x", "--model", "gpt2-124m"], "leave --model out"),
        (["--init", "nowhere"], "nowhere"),
        (["--set", "n_embd=4"], "here it is emb_dim"),
        (["--set", "batch_tokens=9"], "not a multiple of context_length 8"),
        (["--config", "nowhere.toml"], "cannot be read"),
        (["--val", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--tokenizer", "gpt9"], "no tokenizer is named 'gpt9'"),
    ],
)
def test_what_is_impossible_is_one_line_and_leaves_nothing(
    run, text, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", text, *TINY, *arguments, "--out", tmp_path / "run")
    assert code in (1, 2)
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "A story."}', "its first entry has no 'instruction'; its keys are 'text'"),
        ('["A story.", "Another."]', 'begins with \'["A story.", "Another."]\''),
        ("Once upon a time", "begins with 'Once upon a time'"),
        ("{'instruction': 1}", "line 1 is not JSON"),
        ("", "is empty: there are no instructions"),
    ],
)
def test_json_that_is_no_instructions_is_not_trained_on_as_text(run, text, content, message):
    data = text.with_name("data.jsonl")
    data.write_text(content)
    for arguments in ([data], [data, "--val", text.with_name("data.jsonl")]):
        code, _, err = run("train", *arguments, *TINY)
        assert code == 2
        assert f"{data}: " in err
        assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.json", "text.txt"], "found text.txt beside data.json"),
        (["data.json", "--val", "text.txt"], "found text.txt beside data.json"),
        (["text.txt", "--val", "data.json"], "data.json is JSON: tokens and texts are validated"),
        (["train.bin", "--val", "data.json"], "data.json is JSON: tokens and texts are validated"),
    ],
)
def test_instructions_and_texts_do_not_mix(run, text, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text('[{"instruction": "a", "output": "b"}]')
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "train.bin")
    code, _, err = run("train", *arguments, *TINY)
    assert code == 2
    assert message in err.replace(f"{tmp_path}{os.sep}", "")


@pytest.mark.parametrize("given", [["text.txt"], ["--model", "gpt2-124m"], ["--set", "emb_dim=4"],
                                   ["--dry-run"]])  # fmt: skip
def test_what_a_run_has_is_not_told_again_when_it_goes_on(run, trained, given):
    code, _, err = run("train", "--resume", trained, *given)
    assert code == 2
    assert "out" in err


def test_a_folder_that_is_no_run_cannot_go_on(run, tmp_path, trained):
    code, _, err = run("train", "--resume", tmp_path)
    assert (code, "there is no run to resume" in err) == (2, True)
    code, _, err = run("train", "--resume", tmp_path / "rnu")
    assert (code, f"no such file or folder; did you mean {trained}?" in err) == (2, True)
    (trained / "run.json").unlink()
    code, _, err = run("train", "--resume", trained)
    assert "gptrs.train(..., resume=True)" in err


def test_a_run_that_goes_on_longer_is_as_if_it_had_been_asked_for(run, text, trained, tmp_path):
    (tmp_path / "text.txt").rename(tmp_path / "other.txt")
    code, _, err = run("train", "--resume", trained, "--steps", 5)
    assert code == 2
    assert "text.txt: no such file" in err
    (tmp_path / "other.txt").rename(tmp_path / "text.txt")
    code, _, err = run("train", "--resume", trained, "--steps", 5)
    assert code == 0, err
    assert len(losses(trained)) == 5
    assert run("train", "--resume", trained)[0] == 0
    assert len(losses(trained)) == 5
    text.write_text(TEXT.replace("fox", "cat"))
    code, _, err = run("train", "--resume", trained, "--steps", 7)
    assert code == 2
    assert "its data's tokens was" in err


def test_steps_that_are_done_cannot_be_taken_back(run, trained):
    before = (trained / "run.json").read_text()
    code, _, err = run("train", "--resume", trained, "--set", "steps=2")
    assert code == 2
    assert "steps is 2, and the run has done 3, which cannot be taken back" in err
    assert (trained / "run.json").read_text() == before
    assert run("train", "--resume", trained, "--set", "steps=3")[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--steps", "20", "--set", "optimizer=adamw"], "another optimizer"),
        (["--steps", "20", "--set", "validation_fraction=0.00001"], "validation has"),
        (["--steps", "20", "--set", "batch_tokens=9"], "not a multiple of context_length"),
    ],
)
def test_settings_that_a_run_cannot_go_on_with_are_not_kept(run, text, tmp_path, changes, message):
    run_dir = tmp_path / "run"
    options = [*TINY, "--tokenizer", "char", "--set", "optimizer=muon"]
    code, _, err = run("train", text, *options, "--out", run_dir)
    assert code == 0, err
    files = run_dir / "run.json", run_dir / "metrics.jsonl"
    before = [file.read_bytes() for file in files]
    code, _, err = run("train", "--resume", run_dir, *changes)
    assert code in (1, 2)
    assert message in err
    assert [file.read_bytes() for file in files] == before
    assert run("train", "--resume", run_dir)[0] == 0
    # Those that it went on with are, also where it then failed.
    code, _, err = run("train", "--resume", run_dir, "--steps", 5)
    assert code == 0, err
    assert json.loads(files[0].read_text())["training"]["steps"] == 5


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_over_what_is_left(run, trained):
    def left():
        files = [path for path in trained.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files}

    shutil.rmtree(trained / "checkpoints")
    before = left()
    code, _, err = run("train", "--resume", trained)
    assert code == 1
    assert f"{trained}: there is nothing in checkpoints/ to go on from" in err
    assert "the model in checkpoint/ and metrics.jsonl, which has the checkpoint of step 3" in err
    assert f"--init {trained}" in err
    assert left() == before
    shutil.rmtree(trained / "checkpoint")
    code, _, err = run("train", "--resume", trained)
    assert code == 1
    assert "metrics.jsonl, which has the checkpoint of step 3: begin anew in another folder" in err
    assert "--init" not in err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew_and_says_so(run, trained):
    expected = losses(trained)
    for name in ("checkpoints", "checkpoint"):
        shutil.rmtree(trained / name)
    metrics = trained / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if '"checkpoint"' not in line]
    metrics.write_text("\n".join(lines[:4]) + "\n")
    code, out, err = run("train", "--resume", trained)
    assert code == 0, err
    assert f"{trained}: no checkpoint yet: it begins anew" in out
    assert losses(trained) == expected


@pytest.mark.parametrize("arguments", [[], ["--tokenizer", "char"], ["--tokenizer", "auto"]])
def test_files_without_text_are_named(run, text, tmp_path, arguments):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for inputs in ([empty], [text, "--val", empty]):
        code, _, err = run("train", *inputs, *TINY, *arguments, "--out", tmp_path / "run")
        assert code == 2
        assert f"{empty}: is empty: there is no text to read" in err
        assert not (tmp_path / "run").exists()


def test_compressed_text_is_not_trained_on_as_noise(run, tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    code, _, err = run("train", tmp_path / "a.txt.gz", *TINY, "--out", tmp_path / "run")
    assert code == 2
    assert "a.txt.gz: is compressed with gzip; unpack it: gunzip -k " in err
    assert "`gptrs build` reads it" in err
    code, _, err = run("build", tmp_path / "a.txt.gz", "--out", tmp_path / "store")
    assert code == 0, err
    code, _, err = run("train", tmp_path / "store", *TINY, "--out", tmp_path / "run")
    assert code == 0, err


def test_a_store_is_not_trained_on_under_the_name_of_another_tokenizer(run, others, tmp_path):
    _, tokenizer, store = others
    options = [*TINY, "--out", tmp_path / "run"]
    for spec, told in {
        "gpt2": f"{store} has ids of its own tokenizer, char-29 (",
        "nowhere.json": "no tokenizer is named 'nowhere.json', and no such path exists",
    }.items():
        code, _, err = run("train", store, "--tokenizer", spec, *options)
        assert code == 2
        assert told in err
        assert not (tmp_path / "run").exists()
    code, _, err = run("train", store, "--tokenizer", tokenizer, *options)
    assert code == 0, err
    (store / "tokenizer.json").unlink()
    code, _, err = run("train", "--resume", tmp_path / "run", "--steps", 4)
    assert code == 0, err


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "is not beside it"), ("{", "cannot be used"), ("another", "is another tokenizer")],
)
def test_a_store_whose_tokenizer_is_not_there_says_so_when_training_begins(
    run, text, trained, others, tmp_path, content, told
):
    _, tokenizer, store = others
    file = store / "tokenizer.json"
    file.unlink()
    if content is not None:
        file.write_text(
            (trained / "tokenizer.json").read_text() if content == "another" else content
        )
    code, out, err = run("train", store, *TINY, "--out", tmp_path / "none")
    assert code == 0, err
    first = out.splitlines()[0]
    assert first.startswith("the model will take no text unless --tokenizer names its tokenizer: ")
    assert told in first
    options = ["--tokenizer", tokenizer, *TINY, "--out", tmp_path / "named"]
    code, out, err = run("train", store, *options)
    assert code == 0, err
    assert "will take no text" not in out
    assert gptrs.load_checkpoint(tmp_path / "named")[1] == gptrs.get_tokenizer(tokenizer)
    # Weights that have learned its ids have it too.
    again = ["--init", tmp_path / "named", *QUICK, "--out", tmp_path / "again"]
    code, out, err = run("train", store, *again)
    assert code == 0, err
    assert gptrs.load_checkpoint(tmp_path / "again")[1] == gptrs.get_tokenizer(tokenizer)


def written_to(pipe, content):
    """A thread that waits until somebody reads the pipe."""
    thread = threading.Thread(target=pipe.write_text, args=[content], daemon=True)
    thread.start()
    return thread


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="here there are no pipes with a name")
def test_text_from_a_pipe_is_read_once_or_refused(run, text, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for spec, inputs in (("char", [text, pipe]), ("auto", [pipe]), ("char", [text, "--val", pipe])):
        code, _, err = run("train", *inputs, *TINY, "--tokenizer", spec, "--out", tmp_path / "run")
        assert code == 2
        assert f"{pipe}: can be read once only, as a pipe, and --tokenizer {spec} reads" in err
    options = [*SHAPE, *QUICK, "--out", tmp_path / "run"]
    tokenizer = gptrs.train_tokenizer(text, kind="char").save(tmp_path)
    writer = written_to(pipe, TEXT)
    code, _, err = run("train", text, pipe, "--tokenizer", tokenizer, *options)
    writer.join()
    assert code == 0, err
    begun = start(tmp_path / "run")
    held_out = begun["num_validation_tokens"]
    assert abs(begun["num_train_tokens"] + held_out - 2 * (len(TEXT) + 1)) <= 8
    for content in ("", TEXT[:600]):
        writer = written_to(pipe, content)
        code, _, err = run("train", "--resume", tmp_path / "run", "--steps", 5)
        writer.join()
        assert code == 2
        assert "its data's tokens was" in err
    writer = written_to(pipe, TEXT)
    code, _, err = run("train", "--resume", tmp_path / "run", "--steps", 5)
    writer.join()
    assert code == 0, err


def test_parquet_is_not_trained_on_as_text(run, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1\x84PAR1")
    code, _, err = run("train", tmp_path / "a.parquet", *TINY)
    assert code == 2
    assert "a.parquet: is Parquet, not text; `gptrs build` reads it" in err


def test_a_dry_run_tells_and_writes_nothing(run, text, tmp_path):
    code, out, err = run("train", text, *TINY, "--dry-run", "--out", tmp_path / "run")
    assert code == 0, err
    assert "parameters" in out
    assert "memory" in out
    assert not (tmp_path / "run").exists()


def test_a_model_larger_than_memory_is_refused_before_it_is_made(run, text, tmp_path, monkeypatch):
    def made(*args):
        raise AssertionError("memory is taken for it")

    monkeypatch.setattr("gptrs.training.job.new_model", made)
    huge = ["train", text, "--model", "gpt3-175b", "--steps", 10, "--device", "cpu"]
    # Of machines that have room for it there are few, but some.
    monkeypatch.setattr("gptrs.training.job.available_bytes", lambda device: 20 * 10**9)
    code, _, err = run(*huge, "--dtype", "float32", "--out", tmp_path / "run")
    assert code == 2
    assert "174,604,259,328 parameters take 698.4 GB, and training them about four times" in err
    assert "20.0 GB are free: take a smaller model, or lower n_layers, emb_dim or vocab" in err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_model_larger_than_memory_tells_without_trying_it(run, text, monkeypatch):
    monkeypatch.setattr("gptrs.training.estimate.available_bytes", lambda device: 20 * 10**9)
    options = ["--model", "gpt3-175b", "--steps", 10, "--device", "cpu", "--dtype", "float32"]
    code, out, err = run("train", text, *options, "--dry-run")
    assert code == 0, err
    assert "174,604,259,328" in out
    assert "that are free" in out
    assert "too large to be tried out" in out


def test_a_dry_run_on_weights_that_have_learned_counts_their_adapters(run, text, trained):
    options = ["--init", trained, "--lora", 2, *QUICK]
    code, out, err = run("train", text, *options, "--dry-run")
    assert code == 0, err
    begun = start(trained)["num_parameters"]
    parameters = next(line.split()[1] for line in out.splitlines() if "parameters" in line)
    assert int(parameters.replace(",", "")) == begun + 2 * 2 * (8 + 8)


def test_under_torchrun_one_process_estimates_for_all(run, text, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        code, said[rank], err = run("train", text, *TINY, "--dry-run")
        assert code == 0, err
    assert "2 times that of one process" in said["0"]
    assert said["1"] == ""


def test_help_lists_every_key_with_its_default(run):
    out = " ".join(run("train", "--help")[1].split())
    for key in ("keep_last = 2:", "optimizer = adamw:", "checkpoint_minutes = 5.0:"):
        assert key in out


def gptrs_process(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "gptrs", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_run_that_is_stopped_says_how_to_go_on_and_goes_on_to_the_bit(
    run, text, tmp_path, number, code
):
    torch.set_num_threads(1)
    longer = [
        *SHAPE,
        "--tokenizer",
        "char",
        "--steps",
        "150",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    process = gptrs_process("train", text, *longer, "--out", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and len(losses(tmp_path / "run")) > 20):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    out, err = process.communicate()
    assert process.returncode == code, err
    assert f"gptrs train --resume {tmp_path / 'run'}" in out
    stopped_at = int(re.search(r"after step (\d+)", out)[1])
    assert step_of(checkpoints(tmp_path / "run")[-1]) == stopped_at < 150
    assert run("train", "--resume", tmp_path / "run")[0] == 0
    assert run("train", text, *longer, "--out", tmp_path / "unbroken")[0] == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_run_is_trained_by_one_process_at_a_time_also_after_one_was_killed(run, text, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["train", text, *SHAPE, "--tokenizer", "char", "--steps", "60", "--device", "cpu",
                 "--dtype", "float32", "--set", "checkpoint_minutes=1e-9"]  # fmt: skip
    with gptrs_process(*arguments, "--out", run_dir) as process:
        try:
            while not checkpoints(run_dir):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(signal.SIGSTOP)  # It holds the run, whatever it does.
            refused = f"{run_dir}: process {process.pid} on "
            files = run_dir / "run.json", run_dir / "metrics.jsonl"
            written = [file.read_bytes() for file in files]
            away = text.rename(tmp_path / "away.txt")  # What is refused has read nothing.
            code, _, err = run("train", "--resume", run_dir, "--steps", 70)
            assert (code, err.count("\n")) == (1, 1)
            assert refused in err
            assert "trains this run: wait for its end, or stop it" in err
            with pytest.raises(TrainingError, match=refused):
                gptrs.train(None, None, run_dir=run_dir, resume=True)
            assert [file.read_bytes() for file in files] == written
        finally:
            process.kill()
    away.rename(text)
    code, _, err = run("train", "--resume", run_dir, "--set", "checkpoint_minutes=5")
    assert code == 0, err
    assert len(losses(run_dir)) == 60
    assert not (run_dir / ".lock").exists()


def test_a_vocabulary_of_its_own_is_as_large_as_the_text_is_worth(run, tmp_path):
    text = tmp_path / "topics.txt"
    text.write_text(help_topics()[:300_000], "utf-8")
    code, out, err = run("train", text, *TINY, "--tokenizer", "auto", "--out", tmp_path / "run")
    assert code == 0, err
    assert f"1,024 tokens for {text.stat().st_size:,} bytes of text" in out
    model, tokenizer = gptrs.load_checkpoint(tmp_path / "run")
    assert model.cfg.vocab_size == tokenizer.n_vocab == 1024
    learned = gptrs.train_tokenizer(text, 1024)
    assert tokenizer.encode("If the object") == learned.encode("If the object")


def test_a_text_too_short_for_a_vocabulary_takes_gpt2s(run, text, tmp_path):
    code, out, err = run("train", text, *TINY, "--tokenizer", "auto", "--out", tmp_path / "run")
    assert code == 0, err
    assert "GPT-2's tokens" in out
    assert gptrs.load_checkpoint(tmp_path / "run")[1].n_vocab == 50257


def test_a_model_is_chosen_for_tokens_that_were_chosen(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gptrs.training.trial.measured_flops_per_s", lambda *args: 1e9)
    text = tmp_path / "topics.txt"
    text.write_text(help_topics()[:50_000], "utf-8")
    auto = ("--model", "auto", "--tokenizer", "auto", "--minutes", 0.01)
    code, out, err = run("train", text, *QUICK, *auto, "--out", tmp_path / "run")
    assert code == 0, err
    assert "512 tokens for" in out
    assert "layers" in out
    assert gptrs.load_checkpoint(tmp_path / "run")[1].n_vocab == 512


def test_a_model_that_was_chosen_for_minutes_that_nobody_gave_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gptrs.training.trial.measured_flops_per_s", lambda *args: 1e9)
    text = tmp_path / "topics.txt"
    text.write_text(help_topics()[:50_000], "utf-8")
    auto = ("train", text, *QUICK, "--model", "auto", "--tokenizer", "char")
    code, out, err = run(*auto, "--out", tmp_path / "steps")
    assert code == 0, err
    assert "In 2.5 minutes" in out
    assert "for the 2.5 minutes that are the default, whatever 3 steps take: --minutes" in out
    code, out, err = run(*auto, "--minutes", 0.01, "--out", tmp_path / "minutes")
    assert code == 0, err
    assert "In 0.01 minutes" in out
    assert "default" not in out


def test_minutes_do_not_change_a_run_of_so_many_steps(run, trained):
    before = (trained / "run.json").read_bytes()
    code, _, err = run("train", "--resume", trained, "--minutes", 9)
    assert code == 2
    assert f"the length of {trained} is 3 steps, which minutes do not change" in err
    assert "--steps asks for more" in err
    assert (trained / "run.json").read_bytes() == before


def test_what_was_chosen_by_measuring_stays_when_a_run_goes_on(run, tmp_path, monkeypatch):
    def measured_again(*args, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr("gptrs.training.trial.measured_flops_per_s", lambda *args: 1e9)
    text, run_dir = tmp_path / "topics.txt", tmp_path / "run"
    text.write_text(help_topics()[:50_000], "utf-8")
    auto = ["--model", "auto", "--tokenizer", "auto"]
    options = ["--steps", "3", "--device", "cpu", "--set", "num_evaluations=1"]
    code, _, err = run("train", text, *auto, *options, "--out", run_dir)
    assert code == 0, err
    begun = start(run_dir)
    monkeypatch.setattr("gptrs.training.trial.measured_flops_per_s", measured_again)
    monkeypatch.setattr("gptrs.training.inputs.choose_vocab_size", measured_again)
    monkeypatch.setattr(training_parts, "training_precision", measured_again)
    monkeypatch.setattr(training_parts, "choose_micro_batch", measured_again)
    code, out, err = run("train", "--resume", run_dir, "--steps", 5)
    assert code == 0, err
    assert "steps was 3, from here on it is 5" in out
    assert len(losses(run_dir)) == 5
    state = json.loads((checkpoints(run_dir)[-1] / "state.json").read_text())
    assert state["model"] == begun["model"]
    assert state["vocabulary"] == begun["vocabulary"]
    for name in ("dtype", "dtype_reason", "micro_batch", "micro_batch_reason", "compile"):
        assert state["chosen"][name] == begun[name], name


def test_a_run_goes_on_without_the_file_that_its_model_came_from(run, text, tmp_path):
    file, run_dir = tmp_path / "model.json", tmp_path / "run"
    file.write_text(json.dumps({"emb_dim": 12, "n_heads": 3, "n_layers": 1, "context_length": 8}))
    options = ["--model", file, "--tokenizer", "char", *QUICK]
    code, _, err = run("train", text, *options, "--out", run_dir)
    assert code == 0, err
    file.unlink()
    code, _, err = run("train", "--resume", run_dir, "--steps", 4)
    assert code == 0, err
    assert len(losses(run_dir)) == 4


@pytest.mark.parametrize("spec", ["char", "auto"])
def test_tokens_that_are_ready_get_no_new_vocabulary(run, tmp_path, spec):
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "train.bin")
    code, _, err = run("train", tmp_path / "train.bin", *TINY, "--tokenizer", spec)
    assert code == 2
    assert f"--tokenizer {spec} is for text" in err


def test_callbacks_have_every_method_that_the_loop_calls():
    methods = {name for name in vars(Callback) if name.startswith("on_")}
    assert methods == {
        "on_start", "on_step", "on_evaluation", "on_sample", "on_event", "on_message", "on_end",
    }  # fmt: skip


def test_options_of_nanogpt_are_answered_with_ours(run, text):
    code, _, err = run("train", text, "--block_size=4", "--max_iters=4")
    assert code == 2
    assert "No such option '--block_size': here it is --context-length" in err
    code, _, err = run("train", text, "--steps=4", "--weight-decay=0.1")
    assert "here it is --set weight_decay=VALUE" in err
    code, _, err = run("train", text, "--stepz=4")
    assert "Did you mean" in err
    assert "'--steps'" in err


def test_a_file_may_have_the_data_and_all_options_and_the_command_line_counts_before_it(
    run, text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(
        'steps = 2\nnum_evaluations = 1\n[run]\ndata = ["text.txt"]\ntokenizer = "char"\n'
        'out = "there"\n[model]\ncontext_length = 8\nemb_dim = 8\nn_heads = 2\nn_layers = 1\n'
    )
    code, _, err = run("train", "--config", "run.toml")
    assert code == 0, err
    assert start(tmp_path / "there")["model"]["vocab_size"] == len(set(TEXT)) + 1
    code, _, err = run("train", "--out", "here", "--config", "run.toml", "--steps", 1)
    assert code == 0, err
    assert losses(tmp_path / "here") == losses(tmp_path / "there")[:1]
    code, _, err = run("train", "--resume", "here", "--config", "run.toml")
    assert code == 2
    assert "leave DATA of the file's [run] out" in err


def test_adapters_are_told_apart_from_what_is_frozen(run, text, trained, tmp_path):
    arguments = ["train", text, *QUICK, "--init", trained, "--lora", 2]
    code, out, err = run(*arguments, "--out", tmp_path / "adapted")
    assert code == 0, err
    begun = start(tmp_path / "adapted")
    num_trained = begun["num_trained_parameters"]
    assert 0 < num_trained < begun["num_parameters"]
    assert f"{begun['num_parameters']:,} parameters, {num_trained:,} of them trained, on" in out
    code, out, err = run(*arguments, "--dry-run")
    assert code == 0, err
    assert f"{begun['num_parameters']:,}  {num_trained:,} of them trained" in out
    memory = {line.split()[0]: line.split()[1:] for line in out.splitlines() if "  " in line}
    assert memory["gradients"] == size(4 * num_trained).split()
    device = json.loads((tmp_path / "adapted" / "metrics.jsonl").read_text().splitlines()[1])
    expected = training_flops(gptrs.load_checkpoint(trained)[0].cfg, num_trained)
    assert device["training_flops_per_token"] == expected


@pytest.mark.filterwarnings("default")
def test_a_step_with_more_tokens_than_there_are_is_told(run, text, tmp_path):
    arguments = ["train", text, *TINY, "--tokenizer", "char", "--out", tmp_path / "run"]
    code, _, err = run(*arguments, "--batch-tokens", 2432)
    assert code == 0, err
    assert "a step has 2,432 tokens, more than the 1,215 to train on: it sees each 2 times" in err


@pytest.mark.parametrize("is_gpt2s", [False, True])
def test_a_file_that_names_no_tokenizer_says_what_it_is_taken_for(run, tmp_path, is_gpt2s):
    ids = np.arange(20_000) % (50_000 if is_gpt2s else 65)
    (ids if not is_gpt2s else ids * 2 + 1).astype(np.uint16).tofile(tmp_path / "train.bin")
    arguments = ["train", tmp_path / "train.bin", *TINY, "--set", "max_validation_tokens=64"]
    code, out, err = run(*arguments, "--out", tmp_path / "run")
    assert code == 0, err
    first = out.splitlines()[0]
    assert first.startswith("train.bin names no tokenizer: taken for GPT-2's, with 50,257 ids")
    hint = "; but of its first 20,000 the largest is 64: if another one made them, name it with"
    assert (hint in first) is not is_gpt2s
    code, out, err = run(*arguments, "--tokenizer", "gpt2", "--dry-run")
    assert code == 0, err
    assert "names no tokenizer" not in out
