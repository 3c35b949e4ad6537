"""What a real run leaves to look at: finished, interrupted, failed, and resumed."""

import signal

import numpy as np
import pytest
import torch

import gptrs
from gptrs.config import GPTConfig
from gptrs.model.gpt import GPTModel
from gptrs.training.callbacks import Callback
from gptrs.training.config import TrainingConfig
from gptrs.training.reports.metrics import read_run
from gptrs.training.reports.reports import RunReports
from gptrs.training.trainer import train

CONFIG = GPTConfig(
    vocab_size=257, context_length=8, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0
)
LEFT = {"samples.md", "loss.png", "report.html"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Bytes, and the end of a text."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("a")
    return gptrs.train_tokenizer(file, 257)


def run(folder, tokenizer, *callbacks, resume=False, **values):
    settings = {"steps": 4, "num_evaluations": 2, "sample_prompts": ("<b>a",), "sample_tokens": 3}
    settings |= {"device": "cpu", "dtype": "float32", "warmup_steps": 1}
    torch.manual_seed(0)
    return train(
        GPTModel(CONFIG),
        np.arange(400, dtype=np.uint16) % 250,
        TrainingConfig(**settings | values),
        run_dir=folder,
        tokenizer=tokenizer,
        callbacks=[*callbacks, RunReports()],
        resume=resume,
    )


class Stop(Callback):
    """Ends the run after a step, as Ctrl-C does, or with an error."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error

    def on_step(self, run, record):
        if record.step == self.step:
            if self.error is not None:
                raise self.error
            signal.raise_signal(signal.SIGINT)


def test_a_finished_run_has_its_curve_its_texts_and_its_report(tmp_path, tokenizer):
    run(tmp_path, tokenizer)
    assert {file.name for file in tmp_path.iterdir()} >= LEFT
    report = (tmp_path / "report.html").read_text()
    assert "finished after step 4 of 4" in report
    assert "&lt;b&gt;a" in report
    assert "<b>a" in (tmp_path / "samples.md").read_text()
    metrics = read_run(tmp_path)
    assert [evaluation["step"] for evaluation in metrics.evaluations] == [0, 2, 4]
    for sample in metrics.samples:
        assert f"## Step {sample['step']}: " in (tmp_path / "samples.md").read_text()
    assert metrics.device["training_flops_per_token"] > 0


def test_an_interrupted_run_has_its_report_and_the_resumed_one_tells_all(tmp_path, tokenizer):
    assert run(tmp_path, tokenizer, Stop(3)).interrupted
    assert "interrupted after step 3 of 4" in (tmp_path / "report.html").read_text()
    run(tmp_path, tokenizer, resume=True)
    report = (tmp_path / "report.html").read_text()
    assert "finished after step 4 of 4 · resumed 1 time" in report
    metrics = read_run(tmp_path)
    assert metrics.steps == [1, 2, 3, 4]
    samples = (tmp_path / "samples.md").read_text()
    assert [samples.count(f"## Step {step}: ") for step in (2, 4)] == [1, 1]


def test_a_run_that_an_error_ends_has_its_report_and_the_error_goes_on(tmp_path, tokenizer):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, tokenizer, Stop(3, ZeroDivisionError()))
    assert "failed after step 3" in (tmp_path / "report.html").read_text()
