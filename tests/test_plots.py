"""`gptrs.plots`: pictures, or the pip line that makes them possible."""

import builtins
import struct
import sys

import pytest

from gptrs import plots
from gptrs.errors import MissingExtraError

RUN = {
    "step_losses": [10 / (step + 1) for step in range(200)],
    "val_steps": [0, 100, 200],
    "val_losses": [10.0, 5.0, 4.0],
    "tokens_per_step": 2048,
    "unigram_loss": 6.0,
    "title": "a run",
}


def test_a_runs_losses_become_a_png_of_readable_size(tmp_path):
    plots.save_loss_figure(tmp_path / "loss.png", **RUN)
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1000
    assert height >= 600


def test_a_run_of_one_step_can_be_drawn(tmp_path):
    one_step = {"step_losses": [10.0], "val_steps": [0, 1], "val_losses": [10.0, 9.0]}
    plots.save_loss_figure(tmp_path / "loss.svg", **RUN | one_step)
    assert b"validation" in (tmp_path / "loss.svg").read_bytes()


def test_without_matplotlib_the_error_has_the_pip_line(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    really_import = builtins.__import__

    def import_without_matplotlib(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return really_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_matplotlib)
    with pytest.raises(MissingExtraError, match=r'pip install "gptrs\[plots\]"'):
        plots.save_loss_figure(tmp_path / "loss.png", **RUN)
    assert not (tmp_path / "loss.png").exists()
