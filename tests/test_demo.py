"""The demo, from its text to its last line, in a few steps."""

import json
import os
import signal

import pytest

from gptrs.commands import demo
from gptrs.config import GPTConfig
from gptrs.generation.generator import Generator
from gptrs.training.callbacks import Callback
from gptrs.training.config import SMALL_GPT, TrainingConfig
from gptrs.weights.checkpoint import load_checkpoint

QUICK = TrainingConfig(steps=2, batch_tokens=16, device="cpu", dtype="float32")


@pytest.fixture
def short_text(monkeypatch):
    """The demo, but on little text and with a tiny model."""
    monkeypatch.setattr(demo, "help_topics", lambda: "The for statement is used to iterate. " * 40)
    tiny = SMALL_GPT.to_dict() | {"context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    monkeypatch.setattr(demo, "SMALL_GPT", GPTConfig.of(tiny))


def test_the_demo_leaves_a_run_and_writes_what_the_saved_model_writes(short_text, tmp_path, capsys):
    result = demo.run_demo(tmp_path / "runs", QUICK)
    run_dir = tmp_path / "runs" / "demo-001"
    for name in (
        "metrics.jsonl",
        "loss.png",
        "checkpoint/config.json",
        "checkpoint/tokenizer.json",
    ):
        assert (run_dir / name).is_file()
    model, tokenizer = load_checkpoint(run_dir / "checkpoint")
    (expected,) = Generator(model, tokenizer)(demo.PROMPT, demo.STREAMED_TOKENS, **demo.SAMPLING)
    assert result.completion == expected.text
    out = capsys.readouterr().out
    assert expected.text in out
    assert out.count(f"    | {demo.PROMPT}") == 3, "a sample before, during and after"
    for part in ("bits per byte", "knowing only how common", f"gptrs generate --model {run_dir}"):
        assert part in out


def test_each_demo_is_a_new_numbered_run(short_text, tmp_path):
    (tmp_path / "demo-001").mkdir()
    for number in (2, 3):
        checkpoint = demo.run_demo(tmp_path, QUICK).training.checkpoint
        assert checkpoint == tmp_path / f"demo-{number:03d}" / "checkpoint"


def test_an_interrupted_demo_keeps_its_checkpoint_and_stops(
    short_text, tmp_path, capsys, monkeypatch
):
    class Interrupt(Callback):
        def on_evaluation(self, run, evaluation):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(demo, "_SampleWriter", Interrupt)
    result = demo.run_demo(tmp_path, QUICK)
    assert result.training.interrupted
    assert result.completion == ""
    assert load_checkpoint(result.training.checkpoint)
    assert "What to try next" not in capsys.readouterr().out


def test_the_first_steps_of_the_real_demo_already_learn(tmp_path):
    config = TrainingConfig(steps=3, num_evaluations=1, device="cpu")
    result = demo.run_demo(tmp_path, config)
    first, last = result.training.evaluations
    assert 10 < first.val_loss < 11.5
    assert last.val_loss < first.val_loss
    assert 4.5 < result.training.unigram_loss < 6
    start = json.loads((tmp_path / "demo-001" / "metrics.jsonl").read_text().splitlines()[0])
    assert start["num_parameters"] == 7_241_088
