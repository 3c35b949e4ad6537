"""What is told before a run begins and when it has ended: its folder, and which model is there."""

import json
import os
from pathlib import Path

import pytest

from gptrs.commands.report import check_runs_dir, next_run_dir, print_summary
from gptrs.errors import CheckpointError
from gptrs.training.callbacks import Evaluation
from gptrs.training.config import TrainingConfig
from gptrs.training.trainer import TrainingResult
from gptrs.weights.checkpoint import load_metadata


def evaluation(step, loss):
    return Evaluation(
        step=step,
        progress=0.1,
        tokens_seen=64 * step,
        train_loss=None,
        val_loss=loss,
        bits_per_byte=loss / 2,
        seconds=1.0,
        tokens_per_s=10.0 if step else None,
    )


def result(losses, reason="finished"):
    """A run that was evaluated every 5 steps."""
    return TrainingResult(
        evaluations=[evaluation(5 * number, loss) for number, loss in enumerate(losses)],
        step_losses=[],
        tokens_per_step=64,
        unigram_loss=3.0,
        unigram_bits_per_byte=1.5,
        reason=reason,
        checkpoint=Path("run/checkpoint"),
    )


def told(capsys, losses, reason="finished", **settings):
    print_summary(result(losses, reason), TrainingConfig(**settings))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line]


def test_a_run_whose_last_model_is_the_best_has_one_row_for_it(capsys):
    lines = told(capsys, [5.0, 4.0, 3.5])
    assert "this model 3.500 1.750" in lines
    assert not any("best" in line or "stopped" in line for line in lines)


def test_the_model_that_is_kept_is_told_beside_the_last_one(capsys):
    lines = told(capsys, [2.0, 4.0, 3.5, 4.5])  # The loss before the first step does not count.
    assert "this model, the best: step 10 3.500 1.750" in lines
    assert "after the last step, not kept 4.500 2.250" in lines


def test_where_the_best_is_not_kept_the_last_model_is_the_runs(capsys):
    lines = told(capsys, [5.0, 3.0, 4.0], keep_best=False)
    assert "this model 4.000 2.000" in lines


@pytest.mark.parametrize(
    ("losses", "settings", "line"),
    [
        ([5.0, 4.0, 4.5], {"steps": 400},
         "stopped early after step 10 of 400: no new lowest loss in 1 evaluation"),
        ([5.0, 4.0, 4.0, 4.5], {},
         "stopped early after step 15: no new lowest loss in 2 evaluations"),
    ],
)  # fmt: skip
def test_a_run_that_was_stopped_early_says_so(capsys, losses, settings, line):
    assert told(capsys, losses, "early stopping", **settings)[0] == line


def test_what_is_told_of_the_kept_model_is_so(run, tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    options = "--context-length 8 --emb-dim 8 --n-heads 2 --n-layers 1 --steps 90 --device cpu"
    options += " --dtype float32 --learning-rate 0.9 --tokenizer char"
    settings = ["--set", "evaluate_every=3", "--set", "early_stopping=1", "--set", "warmup_steps=0"]
    arguments = [*options.split(), *settings, "--out", tmp_path / "run"]
    code, out, err = run("train", tmp_path / "text.txt", *arguments)
    assert code == 0, err
    kept = load_metadata(tmp_path / "run" / "checkpoint")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["reason"], kept["step"]) == ("early stopping", last["step"] - 3)
    words = " ".join(out.split())
    assert f"stopped early after step {last['step']} of 90: no new lowest" in words
    assert f"this model, the best: step {kept['step']} {kept['val_loss']:.3f}" in words


# --- The folder for numbered runs ---


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_takes_time(
    run, tmp_path, monkeypatch
):
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr("gptrs.training.job.prepare_job", None)  # It would fail with another error.
    (tmp_path / "text.txt").write_text("text")
    code, _, err = run("train", tmp_path / "text.txt", "--runs", tmp_path / "runs")
    assert code == 1
    wanted = f"--runs {tmp_path}/runs: cannot be written: {tmp_path} is no folder to write to"
    assert wanted in err
    assert not (tmp_path / "runs").exists()
    monkeypatch.undo()
    check_runs_dir(tmp_path / "runs")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is no folder to write to"):
        check_runs_dir(tmp_path / "file" / "runs")


def test_a_run_that_cannot_be_made_says_what_was_asked(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"--runs .*file: .*file/train-001 cannot be made: Not"
    ):
        next_run_dir(tmp_path / "file", "train")
