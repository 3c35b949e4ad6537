"""metrics.jsonl, the live line and samples.md: what a run writes as it goes, and after a resume."""

import io
import json
import math
import os
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from gptrs.config import GPTConfig
from gptrs.errors import TrainingError
from gptrs.training.callbacks import Evaluation, Sample, StepRecord
from gptrs.training.reports import progress as run_progress
from gptrs.training.reports.log import MetricsLog
from gptrs.training.reports.metrics import read_run
from gptrs.training.reports.reports import RunReports
from gptrs.training.reports.speed import training_flops

CONFIG = GPTConfig(vocab_size=50, context_length=8, emb_dim=8, n_heads=2, n_layers=1)
START = {"config": {"steps": 4}, "model": CONFIG.to_dict(), "device": "cpu", "dtype": "float32"}


def run_in(folder, step=0, **values):
    """A run as callbacks see it."""
    facts = {
        "run_dir": folder,
        "model": SimpleNamespace(cfg=CONFIG),
        "step": step,
        "num_steps": 4,
        "expected_steps": 4,
        "tokens_per_step": 16,
        "start": START,
        "is_resumed": False,
    }
    return SimpleNamespace(**facts | values)


def step(number, seconds=None):
    return StepRecord(
        step=number,
        loss=5.0 - number,
        grad_norm=1.0,
        learning_rate=0.1,
        tokens=16 * number,
        seconds=0.5 * number if seconds is None else seconds,
    )


def evaluation(number, val_loss=4.0):
    return Evaluation(
        step=number,
        progress=number / 4,
        tokens_seen=16 * number,
        train_loss=None,
        val_loss=val_loss,
        bits_per_byte=1.5,
        seconds=0.5 * number,
        tokens_per_s=32.0 if number else None,
    )


def go(callback, run, first, last, *, end="finished"):
    """Steps `first` to `last`, each followed by an evaluation and a sample."""
    callback.on_start(run)
    for number in range(first, last + 1):
        run.step = number
        callback.on_step(run, step(number))
        callback.on_evaluation(run, evaluation(number))
        callback.on_sample(run, Sample(step=number, prompt="A", text=f" text {number}"))
        callback.on_event(run, "checkpoint", {"step": number, "path": "x"})
    if end is not None:
        callback.on_end(run, end)
    elif isinstance(callback, MetricsLog):
        callback._stream.close()  # As the kernel does for a process that was killed.


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- metrics.jsonl ---


def test_every_event_is_a_line_with_all_that_is_known_of_it(tmp_path):
    go(MetricsLog(), run_in(tmp_path), 1, 2)
    start, device, *events, end = records(tmp_path)
    assert start == {"event": "start", **START}
    assert device["training_flops_per_token"] == training_flops(CONFIG)
    assert device["peak_flops_per_s"] > 0
    assert [event["event"] for event in events] == [
        "step",
        "evaluation",
        "sample",
        "checkpoint",
    ] * 2
    assert events[0] == {"event": "step", **asdict(step(1))}
    assert events[5] == {"event": "evaluation", **asdict(evaluation(2))}
    assert end == {"event": "end", "step": 2, "reason": "finished"}


@pytest.mark.parametrize("checkpoint", [0, 1, 2, 3])
@pytest.mark.parametrize("torn", ["", '{"event": "st'])
def test_a_resumed_runs_file_is_that_of_one_never_stopped_but_for_its_resumes(
    tmp_path, checkpoint, torn
):
    go(MetricsLog(), run_in(tmp_path / "whole"), 1, 4)
    for end in (None, "interrupted"):  # Killed, or stopped by Ctrl-C.
        folder = tmp_path / f"resumed {end}"
        go(MetricsLog(), run_in(folder), 1, 3, end=end)
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(torn)
        log, run = MetricsLog(), run_in(folder, step=checkpoint, is_resumed=True)
        go(log, run, checkpoint + 1, 4)
        assert records(folder) == records(tmp_path / "whole")


def test_what_was_resumed_is_kept(tmp_path):
    go(MetricsLog(), run_in(tmp_path), 1, 2, end=None)
    for _ in range(2):
        log, run = MetricsLog(), run_in(tmp_path, step=2, is_resumed=True)
        log.on_start(run)
        log.on_event(run, "resumed", {"step": 2})
        log.on_end(run, "interrupted")
    metrics = read_run(tmp_path)
    assert (metrics.num_resumed, metrics.end, metrics.last_step) == (2, "interrupted", 2)


def test_what_a_resumed_run_was_told_otherwise_counts_from_then_on(tmp_path):
    log, run = MetricsLog(), run_in(tmp_path)
    log.on_start(run)
    log.on_event(run, "resumed", {"step": 0, "changed": {"steps": [4, 9], "micro_batch": [1, 2]}})
    log.on_end(run, "finished")
    metrics = read_run(tmp_path)
    assert (metrics.num_steps, metrics.start["config"]) == (9, {"steps": 9})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_disk_that_is_full_ends_the_run_and_says_how_it_goes_on(tmp_path):
    log, run = MetricsLog(), run_in(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(TrainingError) as info:
        log.on_start(run)
    assert str(info.value) == (
        f"{tmp_path / 'metrics.jsonl'} cannot be written: No space left on device; once it can, "
        f"`gptrs train --resume {tmp_path}` goes on from the newest checkpoint"
    )
    log.on_end(run, "failed")  # Nor does it try again.


def test_a_run_that_never_began_writes_nothing(tmp_path):
    MetricsLog().on_end(run_in(tmp_path), "failed")
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_until_it_says_that_it_ended(tmp_path):
    go(MetricsLog(), run_in(tmp_path), 1, 2, end=None)
    assert read_run(tmp_path).end is None


# --- The live line ---


@pytest.fixture
def terminal(monkeypatch):
    """What the bar shows; its lines above go to stdout."""
    shown = io.StringIO()

    class Bar(run_progress.tqdm):
        def __init__(self, **settings):
            super().__init__(file=shown, ncols=120, **settings | {"mininterval": 0})

    monkeypatch.setattr(run_progress, "_shows_bars", lambda: True)

    monkeypatch.setattr(run_progress, "tqdm", Bar)
    return shown


def test_the_bar_shows_loss_speed_mfu_and_the_steps_that_are_left(tmp_path, terminal, capsys):
    bar, run = run_progress.ProgressBar(), run_in(tmp_path)
    bar.on_start(run)
    for number in range(1, 4):
        run.step = number
        bar.on_step(run, step(number))
    bar.on_end(run, "finished")
    shown = terminal.getvalue().rpartition("\r")[2]
    assert "3/4" in shown
    assert "loss 3.000, 32 tokens/s, MFU 0 %" in shown
    assert "MFU is the share of" in capsys.readouterr().out


def test_an_evaluations_time_is_in_no_tokens_per_second(tmp_path, terminal, capsys):
    bar, run = run_progress.ProgressBar(), run_in(tmp_path)
    bar.on_start(run)
    bar.on_step(run, step(1, seconds=1.0))
    bar.on_step(run, step(2, seconds=2.0))
    bar.on_evaluation(run, evaluation(2))
    bar.on_step(run, step(3, seconds=100.0))
    bar.on_step(run, step(4, seconds=101.0))
    bar.on_end(run, "finished")
    assert "16 tokens/s" in terminal.getvalue().rpartition("\r")[2]
    assert "validation loss 4.000" in capsys.readouterr().out


def test_where_the_peak_is_unknown_the_line_says_so(tmp_path, terminal, capsys):
    run = run_in(tmp_path, start=START | {"device": "mps"})
    go(run_progress.ProgressBar(), run, 1, 2)
    assert "MFU unknown" in capsys.readouterr().out


def test_a_resumed_runs_bar_begins_where_the_run_does(tmp_path, terminal):
    bar, run = run_progress.ProgressBar(), run_in(tmp_path, step=3, is_resumed=True)
    bar.on_start(run)
    run.step = 4
    bar.on_step(run, step(4))
    bar.on_end(run, "finished")
    assert "4/4" in terminal.getvalue().rpartition("\r")[2]


def test_an_evaluation_is_told_with_its_perplexity(tmp_path, terminal, capsys):
    bar, run = run_progress.ProgressBar(), run_in(tmp_path)
    bar.on_evaluation(run, evaluation(2, val_loss=math.log(25)))
    bar.on_evaluation(run, evaluation(4, val_loss=1e6))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("validation loss 3.219  1.500 bits per byte  perplexity 25")
    assert "perplexity 1.014e+304" in second


def test_without_a_terminal_there_is_a_line_now_and_then_and_no_bar(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bar, run = run_progress.ProgressBar(), run_in(tmp_path)
    bar.on_start(run)
    for number in range(1, 5):
        now[0] += 20.0
        bar.on_step(run, step(number))
    bar.on_end(run, "finished")
    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert [line.split("  loss")[0] for line in shown.splitlines()] == [
        "step     2 of 4",
        "step     4 of 4",
    ]
    assert "loss 3.500, 32 tokens/s, MFU 0 %" in shown


# --- samples.md ---


def test_samples_are_appended_and_a_resumed_run_has_only_those_it_kept(tmp_path, capsys):
    log, reports, run = MetricsLog(), RunReports(), run_in(tmp_path)
    for callback in (log, reports):
        go(callback, run, 1, 3, end=None)
    text = (tmp_path / "samples.md").read_text()
    assert [f"## Step {n}: A\n\n```text\nA text {n}\n```\n" in text for n in (1, 2, 3)] == [
        True
    ] * 3
    resumed = run_in(tmp_path, step=1, is_resumed=True)
    for callback in (MetricsLog(), RunReports()):
        go(callback, resumed, 1, 0, end=None)
    text = (tmp_path / "samples.md").read_text()
    assert "Step 1" in text
    assert "Step 2" not in text
