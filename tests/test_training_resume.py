"""A run that was stopped, whatever stopped it, goes on to the bit as if nothing had been."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import gptrs
from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError, TrainingError
from gptrs.file_lock import take
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import add_lora, lora_state_dict
from gptrs.training import checkpoint as training_checkpoint
from gptrs.training import snapshot as training_snapshot
from gptrs.training import step as training_step
from gptrs.training.callbacks import Callback
from gptrs.training.checkpoint import checkpoints, newest_run, step_of
from gptrs.training.config import TrainingConfig
from gptrs.training.reports.metrics import read_run
from gptrs.training.run_lock import locked
from gptrs.training.step import World
from gptrs.training.trainer import train
from gptrs.weights.checkpoint import load_checkpoint, load_metadata

V, T, STEPS = 32, 8, 24
TOKENS = (np.arange(3000) * 7 % 29 + np.arange(3000) // 1000).astype(np.uint16)
# A checkpoint after every step.
EACH_STEP = {"checkpoint_minutes": 1e-9}

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def new_model(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": V, "context_length": T, "emb_dim": 16, "n_heads": 2, "n_layers": 1}
    return GPTModel(GPTConfig(**shape | {"drop_rate": 0.2} | changes))


def settings(**changes):
    quick = {"steps": STEPS, "batch_tokens": 4 * T, "warmup_steps": 4, "num_evaluations": 3}
    return TrainingConfig(**quick | {"device": "cpu", "dtype": "float32"} | changes)


class StopAt(Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step, number=signal.SIGINT):
        self.step, self.number = step, number

    def on_step(self, run, record):
        if record.step == self.step:
            signal.raise_signal(self.number)


def weights(path):
    return {name: tensor.clone() for name, tensor in load_checkpoint(path)[0].state_dict().items()}


def told(run_dir):
    """What a run wrote down, without times and what depends on them."""
    kept = {
        "step": ("step", "loss", "grad_norm", "learning_rate", "tokens"),
        "evaluation": ("step", "progress", "tokens_seen", "train_loss", "val_loss"),
        "sample": ("step", "prompt", "text"),
        "skipped": ("step", "why"),
    }
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [
        {key: line[key] for key in ("event", *kept[line["event"]])}
        for line in lines
        if line["event"] in kept
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    result = train(new_model(), TOKENS, settings(), run_dir=run_dir)
    return result, weights(run_dir / "checkpoints" / f"step-{STEPS:08d}"), told(run_dir)


def assert_same(run_dir, result, unbroken):
    expected, expected_weights, expected_lines = unbroken
    assert result.step_losses == expected.step_losses
    found = weights(run_dir / "checkpoints" / f"step-{STEPS:08d}")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected_weights.items())
    assert told(run_dir) == expected_lines
    assert load_metadata(result.checkpoint)["step"] == load_metadata(expected.checkpoint)["step"]


CHILD = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training_resume as t
run_dir, step, number = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
stop = t.StopAt(step, getattr(signal, number)) if number != "none" else t.Callback()
config = t.settings(**t.EACH_STEP)
resume = any(run_dir.iterdir()) if run_dir.exists() else False
result = t.train(
    t.new_model(), t.TOKENS, config, run_dir=run_dir, callbacks=[stop], resume=resume
)
print(result.reason)
"""


def child(run_dir, step=0, number="none", **options):
    code = CHILD.format(tests=os.path.dirname(__file__))
    arguments = [sys.executable, "-c", code, str(run_dir), str(step), number]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@needs_signals
def test_a_process_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path, unbroken):
    run_dir = tmp_path / "run"
    steps = sorted(np.random.default_rng().choice(np.arange(2, STEPS), 2, replace=False).tolist())
    for step in steps:
        process = child(run_dir, step, "SIGKILL")
        process.communicate()
        assert process.returncode == -signal.SIGKILL, step
    # And once at any moment at all, from outside.
    process = child(run_dir)
    while process.poll() is None and "resumed" not in (run_dir / "metrics.jsonl").read_text():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    result = train(new_model(), TOKENS, settings(), run_dir=run_dir, resume=True)
    assert result.reason == "finished", steps
    assert_same(run_dir, result, unbroken)
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))


@needs_signals
@pytest.mark.parametrize("changes", [{}, {"dtype": "pure-bfloat16"}, {"optimizer": "muon"}])
def test_a_run_stopped_by_ctrl_c_several_times_goes_on_to_the_bit(tmp_path, changes):
    config = settings(**changes)
    expected = train(new_model(), TOKENS, config, run_dir=tmp_path / "unbroken")
    steps = sorted(np.random.default_rng().choice(np.arange(1, STEPS), 3, replace=False).tolist())
    for number, step in enumerate([*steps, None]):
        model = new_model()
        watching = [] if step is None else [StopAt(step)]
        result = train(
            model, TOKENS, config, run_dir=tmp_path / "run", callbacks=watching, resume=number > 0
        )
        assert result.reason == ("finished" if step is None else "interrupted")
    assert result.step_losses == expected.step_losses, steps
    assert told(tmp_path / "run") == told(tmp_path / "unbroken")
    ours, theirs = (
        weights(tmp_path / name / "checkpoints" / f"step-{STEPS:08d}")
        for name in ("run", "unbroken")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@needs_signals
def test_random_numbers_of_callbacks_go_on_too_and_the_callers_are_left_alone(tmp_path):
    def random_numbers():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    def losses(folder, *stops):
        drawn = {}

        class Draws(Callback):
            def on_step(self, run, record):
                drawn[record.step] = random_numbers()

        for number, stop in enumerate([*stops, None]):
            watching = [Draws()] if stop is None else [Draws(), StopAt(stop)]
            train(
                new_model(), TOKENS, settings(), run_dir=tmp_path / folder, callbacks=watching,
                resume=number > 0,
            )  # fmt: skip
        return drawn

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = random_numbers()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert losses("a") == losses("b", 5, 11)
    assert random_numbers()[:2] == expected[:2]


@needs_signals
def test_adapters_alone_are_saved_and_go_on_beside_their_model(tmp_path):
    def adapted(seed=0):
        model = new_model(drop_rate=0.0)
        torch.manual_seed(seed)
        add_lora(model, 2, 4)
        return model

    expected = adapted()
    train(expected, TOKENS, settings(), run_dir=tmp_path / "a")
    train(adapted(), TOKENS, settings(), run_dir=tmp_path / "b", callbacks=[StopAt(9)])
    files = {path.name for path in checkpoints(tmp_path / "b")[-1].iterdir()}
    assert {name.partition("-")[0] for name in files} == {
        "lora.json", "lora", "state.json", "training.safetensors",
    }  # fmt: skip
    model = adapted(seed=1)
    train(model, TOKENS, settings(), run_dir=tmp_path / "b", resume=True)
    for name, tensor in lora_state_dict(expected).items():
        assert torch.equal(lora_state_dict(model)[name], tensor), name
    ids = torch.arange(T)[None]
    merged = load_checkpoint(tmp_path / "b")[0](ids)
    torch.testing.assert_close(merged, expected(ids), rtol=1e-4, atol=1e-5)
    other = new_model(drop_rate=0.0)
    with torch.no_grad():
        other.trf_blocks[0].att.W_key.weight += 1e-3
    add_lora(other, 2, 4)
    with pytest.raises(
        CheckpointError, match=r"the weights have SHA-256 .* and those that the adapters"
    ):
        train(other, TOKENS, settings(steps=40), run_dir=tmp_path / "b", resume=True)


def stopped_run(run_dir, step=9, **changes):
    config = settings(**EACH_STEP | {"keep_last": 3} | changes)
    train(new_model(), TOKENS, config, run_dir=run_dir, callbacks=[StopAt(step)])
    return config


@needs_signals
@pytest.mark.parametrize(
    "name", ["state.json", "training.safetensors", "model", "config.json", "missing"]
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, unbroken, name):
    stopped_run(tmp_path)
    newest = checkpoints(tmp_path)[-1]
    file = next((file for file in newest.iterdir() if file.name.startswith(name)), None)
    if file is None:
        (newest / "training.safetensors").unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    result = train(new_model(), TOKENS, settings(), run_dir=tmp_path, resume=True)
    out = capsys.readouterr().out
    assert "step-00000009" in out
    assert "damaged" in out
    assert "going back to step 8" in out
    assert_same(tmp_path, result, unbroken)


@needs_signals
def test_if_all_checkpoints_are_damaged_nothing_is_made_of_them(tmp_path):
    stopped_run(tmp_path)
    for path in checkpoints(tmp_path):
        (path / "state.json").write_text("{}")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        train(new_model(), TOKENS, settings(), run_dir=tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_a_newer_gptrs_is_told_apart_from_damage(tmp_path):
    train(new_model(), TOKENS, settings(steps=2), run_dir=tmp_path)
    (path,) = checkpoints(tmp_path)[-1:]
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99; this gptrs reads version 2"):
        train(new_model(), TOKENS, settings(), run_dir=tmp_path, resume=True)


@needs_signals
def test_another_model_data_or_vocabulary_is_refused_with_what_differs(tmp_path):
    (tmp_path / "text.txt").write_text("".join(map(chr, range(97, 97 + V - 1))))
    chars = gptrs.train_tokenizer(tmp_path / "text.txt", None, kind="char")
    run_dir = tmp_path / "run"
    stopped_run(run_dir)
    go_on = {"config": settings(), "run_dir": run_dir, "resume": True}
    with pytest.raises(ConfigError, match=r"its model's n_layers was 1, here it is 2"):
        train(new_model(n_layers=2), TOKENS, **go_on)
    with pytest.raises(ConfigError, match=r"its data's num_tokens was 2700, here it is 2250"):
        train(new_model(), TOKENS[:2500], **go_on)
    with pytest.raises(ConfigError, match=r"its data's tokens was "):
        train(new_model(), TOKENS[::-1].copy(), **go_on)
    with pytest.raises(ConfigError, match=r"its data's windows_per_step was 4, here it is 8"):
        train(new_model(), TOKENS, **go_on | {"config": settings(batch_tokens=64)})
    with pytest.raises(ConfigError, match=r"its vocabulary was None, here it is '"):
        train(new_model(), TOKENS, tokenizer=chars, **go_on)
    assert step_of(checkpoints(run_dir)[-1]) == 9


def test_what_a_run_is_validated_on_cannot_change_but_may_be_cut_otherwise(tmp_path):
    other = TOKENS[500:900].copy()
    train(new_model(), TOKENS, settings(steps=2), run_dir=tmp_path, validation=other)
    go_on = {"run_dir": tmp_path, "resume": True}
    changed = other.copy()
    changed[7] ^= 1
    with pytest.raises(ConfigError, match=r"its validation's tokens was '\w+-\w+', here it is '"):
        train(new_model(), TOKENS, settings(steps=3), validation=changed, **go_on)
    with pytest.raises(ConfigError, match=r"its validation's num_tokens was 392, here it is 296"):
        train(new_model(), TOKENS, settings(steps=3), validation=other[:300], **go_on)
    config = settings(steps=3, micro_batch=1)
    train(new_model(), TOKENS, config, validation=other, **go_on)
    assert step_of(checkpoints(tmp_path)[-1]) == 3


def test_a_checkpoint_that_does_not_know_what_it_was_validated_on_goes_on(tmp_path, monkeypatch):
    without = tuple(name for name in training_snapshot._IDENTITY if name != "validation")
    with monkeypatch.context() as older:
        older.setattr(training_snapshot, "_IDENTITY", without)
        train(new_model(), TOKENS, settings(steps=2), run_dir=tmp_path, validation=TOKENS[:90])
    go_on = {"run_dir": tmp_path, "resume": True}
    train(new_model(), TOKENS, settings(steps=3), validation=TOKENS[:100], **go_on)
    with pytest.raises(ConfigError, match="its validation's"):
        train(new_model(), TOKENS, settings(steps=4), validation=TOKENS[:90], **go_on)


@needs_signals
def test_a_run_keeps_its_settings_and_tells_those_that_are_changed(tmp_path, capsys):
    stopped_run(tmp_path, learning_rate=2e-3, micro_batch=3)
    result = train(new_model(), TOKENS, run_dir=tmp_path, resume=True, callbacks=[StopAt(12)])
    assert len(result.step_losses) == 12
    assert "learning_rate was" not in capsys.readouterr().out
    config = settings(learning_rate=1e-3, micro_batch=3)
    train(new_model(), TOKENS, config, run_dir=tmp_path, resume=True)
    assert "learning_rate was 0.002, from here on it is 0.001" in capsys.readouterr().out
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    resumed = [line for line in lines if line["event"] == "resumed"]
    assert resumed[-1]["from"] == "checkpoints/step-00000012"
    assert resumed[-1]["changed"]["learning_rate"] == [0.002, 0.001]


def test_a_folder_in_which_another_run_begins_or_goes_on_is_refused(tmp_path):
    run_dir = tmp_path / "new" / "run"
    with locked(run_dir, World()), pytest.raises(TrainingError, match=f"process {os.getpid()} on "):
        train(new_model(), TOKENS, settings(), run_dir=run_dir)
    assert not (tmp_path / "new").exists()  # Nothing came of either.
    train(new_model(), TOKENS, settings(steps=2), run_dir=run_dir)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    with locked(run_dir, World()), pytest.raises(TrainingError, match="trains this run"):
        train(new_model(), TOKENS, settings(), run_dir=run_dir, resume=True)
    del before[run_dir / "checkpoints"], before[run_dir / "checkpoint"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    train(new_model(), TOKENS, settings(steps=3), run_dir=run_dir, resume=True)


def test_a_lock_that_its_holder_removed_is_nobodys(tmp_path):
    file = tmp_path / "lock"
    with file.open("w") as mine:
        with file.open("w") as theirs:
            assert take(theirs, file)
            assert not take(mine, file)
            if os.name != "nt":
                file.unlink()
        assert take(mine, file) is (os.name == "nt")


def test_where_there_are_no_locks_a_run_says_so_and_trains(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("gptrs.training.run_lock.take", refuse)
    train(new_model(), TOKENS, settings(steps=2), run_dir=tmp_path / "run")
    assert "cannot be locked (No locks available)" in capsys.readouterr().out


def test_a_finished_run_can_be_made_longer(tmp_path):
    train(new_model(), TOKENS, settings(), run_dir=tmp_path)
    same = train(new_model(), TOKENS, settings(), run_dir=tmp_path, resume=True)
    assert len(same.step_losses) == STEPS
    longer = train(new_model(), TOKENS, settings(steps=STEPS + 6), run_dir=tmp_path, resume=True)
    assert len(longer.step_losses) == STEPS + 6
    assert longer.last.step == STEPS + 6
    with pytest.raises(ConfigError, match=f"steps is {STEPS}, and the run has done {STEPS + 6}"):
        train(new_model(), TOKENS, settings(), run_dir=tmp_path, resume=True)


@needs_signals
def test_the_number_of_steps_of_a_run_in_minutes_stays_when_it_goes_on(tmp_path):
    class StopOnSchedule(Callback):
        def on_event(self, run, event, values):
            if event == "schedule":
                signal.raise_signal(signal.SIGINT)

    config = settings(steps=None, minutes=0.01, decay_fraction=0.9)
    stopped = train(new_model(), TOKENS, config, run_dir=tmp_path, callbacks=[StopOnSchedule()])
    assert stopped.interrupted
    saved = newest_run(tmp_path, print)
    assert saved.state["progress"]["num_steps"] > saved.step
    result = train(new_model(), TOKENS, config, run_dir=tmp_path, resume=True)
    assert len(result.step_losses) == saved.state["progress"]["num_steps"]
    (schedule,) = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["event"] == "schedule"
    ]
    assert schedule["num_steps"] == len(result.step_losses)


def test_the_last_checkpoints_and_the_best_stay(tmp_path):
    config = settings(
        steps=12, evaluate_every=3, learning_rate=0.3, warmup_steps=0, keep_last=2, **EACH_STEP
    )
    result = train(new_model(), TOKENS, config, run_dir=tmp_path)
    best = min(result.evaluations[1:], key=lambda evaluation: evaluation.val_loss)
    kept = {step_of(path) for path in checkpoints(tmp_path)}
    assert kept == {11, 12, best.step}
    assert load_metadata(tmp_path / "checkpoint")["step"] == best.step
    for path in checkpoints(tmp_path):
        model = GPTModel.from_pretrained(path)
        assert model.cfg == new_model().cfg
    assert not list(tmp_path.rglob(".tmp-*"))


def test_without_the_best_the_newest_is_what_is_used(tmp_path):
    config = settings(steps=12, evaluate_every=3, learning_rate=0.3, warmup_steps=0)
    config = dataclasses.replace(config, keep_last=1, keep_best=False, **EACH_STEP)
    train(new_model(), TOKENS, config, run_dir=tmp_path)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [12]
    assert load_metadata(tmp_path / "checkpoint")["step"] == 12


@pytest.mark.parametrize("broken", [range(3, 9), range(3, 99)])
def test_a_full_disk_costs_checkpoints_and_not_the_run(tmp_path, monkeypatch, capsys, broken):
    real_save = training_checkpoint.save_tensors
    calls = []

    def save(tensors, path):
        calls.append(1)
        if len(calls) in broken:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real_save(tensors, path)

    monkeypatch.setattr(training_checkpoint, "save_tensors", save)
    config = settings(**EACH_STEP)
    if 24 in broken:
        with pytest.raises(CheckpointError, match=r"step 24 cannot be written: .*No space"):
            train(new_model(), TOKENS, config, run_dir=tmp_path)
        assert [step_of(path) for path in checkpoints(tmp_path)] == [1, 2]
    else:
        assert train(new_model(), TOKENS, config, run_dir=tmp_path).reason == "finished"
    assert "training goes on" in capsys.readouterr().out
    monkeypatch.setattr(training_checkpoint, "save_tensors", real_save)
    result = train(new_model(), TOKENS, config, run_dir=tmp_path, resume=True)
    assert len(result.step_losses) == STEPS


SPOILS = {"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 1e30}
"""The first step's loss is finite, and makes weights of which no loss is."""


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("changes", [EACH_STEP, {"evaluate_every": 1}, EACH_STEP | {"steps": 3}])
def test_weights_that_became_nan_are_never_saved_nor_called_good(tmp_path, changes):
    message = "no checkpoint was saved yet; try a lower learning rate"
    with pytest.raises(TrainingError, match=message):
        train(new_model(), TOKENS, settings(**SPOILS | changes), run_dir=tmp_path)
    assert not checkpoints(tmp_path)
    assert not (tmp_path / "checkpoint").exists()
    result = train(new_model(), TOKENS, settings(), run_dir=tmp_path, resume=True)
    assert np.isfinite(result.last.val_loss)


def test_a_run_whose_weights_became_nan_goes_on_from_the_last_good_checkpoint(tmp_path, capsys):
    train(new_model(), TOKENS, settings(steps=6), run_dir=tmp_path)
    best = weights(tmp_path / "checkpoint")
    spoilt = settings(**SPOILS | EACH_STEP | {"evaluate_every": 2})
    with pytest.raises(TrainingError, match="step-00000006 is the last good checkpoint"):
        train(new_model(), TOKENS, spoilt, run_dir=tmp_path, resume=True)
    stopped = dataclasses.replace(spoilt, early_stopping=2, steps=20)
    result = train(new_model(), TOKENS, stopped, run_dir=tmp_path, resume=True)
    assert result.reason == "early stopping"
    assert [np.isnan(each.val_loss) for each in result.evaluations[-3:]] == [False, True, True]
    assert "the model of step 10 is not saved" in capsys.readouterr().out
    assert step_of(checkpoints(tmp_path)[-1]) == load_metadata(result.checkpoint)["step"] == 6
    assert all(torch.equal(best[name], now) for name, now in weights(result.checkpoint).items())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line, parse_constant=no_constant) for line in lines]
    assert [line["val_loss"] for line in told if line["event"] == "evaluation"][-1] is None
    assert len(read_run(tmp_path).evaluations) == len(result.evaluations)
    result = train(new_model(), TOKENS, settings(), run_dir=tmp_path, resume=True)
    assert (result.reason, len(result.step_losses)) == ("finished", STEPS)
    assert np.isfinite(result.step_losses).all()
    assert load_metadata(result.checkpoint)["step"] == STEPS


@needs_signals
def test_a_run_stopped_after_a_skipped_step_keeps_what_it_learned(tmp_path, monkeypatch):
    real_norm = training_step.total_norm
    calls = []

    def norm(gradients):
        calls.append(1)
        return real_norm(gradients) * (np.inf if len(calls) == 5 else 1)

    class StopWhenSkipped(Callback):
        def on_event(self, run, event, values):
            if event == "skipped":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training_step, "total_norm", norm)
    result = train(new_model(), TOKENS, settings(), run_dir=tmp_path, callbacks=[StopWhenSkipped()])
    assert (result.reason, step_of(checkpoints(tmp_path)[-1])) == ("interrupted", 5)


def test_a_checkpoint_has_no_pickle(tmp_path):
    train(new_model(), TOKENS, settings(steps=2), run_dir=tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors"}
