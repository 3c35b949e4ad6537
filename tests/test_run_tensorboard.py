"""TensorBoard's files, read with its own reader."""

import builtins
import sys
from types import SimpleNamespace

import pytest

from gptrs.config import GPTConfig
from gptrs.errors import MissingExtraError
from gptrs.training.callbacks import Evaluation, Sample, StepRecord
from gptrs.training.reports.tensorboard_log import TensorBoard

CONFIG = GPTConfig(vocab_size=50, context_length=8, emb_dim=8, n_heads=2, n_layers=1)


def go(folder, first, last, *, is_resumed=False):
    """A run from step `first` to `last`, each evaluated."""
    run = SimpleNamespace(
        run_dir=folder,
        model=SimpleNamespace(cfg=CONFIG),
        step=first - 1,
        tokens_per_step=16,
        start={"device": "cpu", "dtype": "float32"},
        is_resumed=is_resumed,
    )
    board = TensorBoard()
    board.on_start(run)
    for step in range(first, last + 1):
        tokens, loss = 16 * step, float(10 * is_resumed + step)
        board.on_step(
            run,
            StepRecord(
                step=step, loss=loss, grad_norm=0.5, learning_rate=0.1, tokens=tokens, seconds=1.0
            ),
        )
        board.on_evaluation(
            run,
            Evaluation(
                step=step,
                progress=0.5,
                tokens_seen=tokens,
                train_loss=None,
                val_loss=2 * loss,
                bits_per_byte=None,
                seconds=1.0,
                tokens_per_s=64.0,
            ),
        )
    board.on_sample(run, Sample(step=last, prompt="A", text="```\n# not a heading"))
    board.on_end(run, "finished")


def scalars(folder):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}, events


@pytest.fixture
def with_tensorboard():
    pytest.importorskip("tensorboard")


@pytest.mark.usefixtures("with_tensorboard")
def test_losses_and_speed_stand_over_tokens(tmp_path):
    go(tmp_path, 1, 3)
    found, events = scalars(tmp_path)
    assert found["loss/training"] == [(16, 1.0), (32, 2.0), (48, 3.0)]
    assert found["loss/validation"] == [(16, 2.0), (32, 4.0), (48, 6.0)]
    assert found["speed/tokens_per_s"] == [(16, 64.0), (32, 64.0), (48, 64.0)]
    assert [step for step, _ in found["speed/mfu"]] == [16, 32, 48]
    assert "loss/bits_per_byte" not in found
    (text,) = events.Tensors("A/text_summary")
    assert text.step == 48
    assert b"````\nA```\n# not a heading\n````" in text.tensor_proto.string_val[0]


@pytest.mark.usefixtures("with_tensorboard")
def test_what_lies_behind_the_checkpoint_is_taken_back_by_a_resume(tmp_path):
    go(tmp_path, 1, 3)
    go(tmp_path, 2, 2, is_resumed=True)
    found, _ = scalars(tmp_path)
    assert found["loss/training"] == [(16, 1.0), (32, 12.0)]


def test_without_tensorboard_the_error_has_the_pip_line(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            monkeypatch.delitem(sys.modules, name)
    really_import = builtins.__import__

    def import_without_tensorboard(name, *args, **kwargs):
        if name.partition(".")[0] == "tensorboard":
            raise ModuleNotFoundError(f"No module named {name!r}", name="tensorboard")
        return really_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_tensorboard)
    with pytest.raises(MissingExtraError, match=r'pip install "gptrs\[train\]"'):
        TensorBoard()
