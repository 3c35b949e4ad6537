"""What a run leaves to look at: samples.md and loss.png as it goes, report.html when it ends.

    metrics.jsonl ─► loss.png      redrawn at evaluations, as long as that takes little time
                  ─► report.html   at the end, also of a run that was interrupted
    samples       ─► samples.md    each as it comes

All of it is made from metrics.jsonl, which has to be written before: `MetricsLog` stands before
`RunReports` among the callbacks. So nothing is shown that is not kept, and a run that was killed
and goes on shows itself whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gptrs.errors import MissingExtraError
from gptrs.files import write_whole, write_whole_with
from gptrs.plots import loss_figure
from gptrs.training.callbacks import Callback
from gptrs.training.reports.metrics import METRICS_FILE, RunMetrics, read_run
from gptrs.training.reports.page import report_page
from gptrs.training.reports.samples import SAMPLES_FILE, append_sample, write_samples
from gptrs.training.reports.saying import say

if TYPE_CHECKING:
    from gptrs.training.callbacks import Evaluation, RunView, Sample

LOSS_FILE, REPORT_FILE = "loss.png", "report.html"

_DOTS_PER_INCH = 150
_DRAWING_SHARE = 0.02
"""Of a run's time, at most so much is spent on drawing while it goes on."""


class RunReports(Callback):
    """Writes samples.md, loss.png and report.html into the run's folder."""

    def __init__(self) -> None:
        self._can_draw = True
        self._drawn_at, self._drawing_s = 0.0, 0.0

    def on_start(self, run: RunView) -> None:
        """The samples of a run that goes on are those it has kept."""
        file = run.run_dir / SAMPLES_FILE
        if run.is_resumed and file.exists():
            with _told("samples.md was not written"):
                write_samples(file, _name(run), read_run(run.run_dir).samples)

    def on_sample(self, run: RunView, sample: Sample) -> None:
        """Adds the text to samples.md."""
        file = run.run_dir / SAMPLES_FILE
        with _told("samples.md was not written"):
            if not file.exists():
                write_samples(file, _name(run), [])
            append_sample(file, asdict(sample))

    def on_evaluation(self, run: RunView, evaluation: Evaluation) -> None:
        """Redraws loss.png, unless it was drawn a moment ago."""
        waited_s = time.monotonic() - self._drawn_at
        if evaluation.step and waited_s * _DRAWING_SHARE >= self._drawing_s:
            self._draw(run)

    def on_end(self, run: RunView, reason: str) -> None:
        """Draws loss.png a last time, and writes report.html."""
        if not (run.run_dir / METRICS_FILE).exists():
            return  # It failed before it began.
        self._draw(run)
        with _told("report.html was not written"):
            say(f"the report is in {write_report(run.run_dir)}")

    def _draw(self, run: RunView) -> None:
        if not self._can_draw:
            return
        began = time.monotonic()
        try:
            with _told("loss.png was not drawn"):
                draw_losses(read_run(run.run_dir))
        except MissingExtraError as error:
            self._can_draw = False
            say(f"no picture of the loss: {error}")
        self._drawn_at = time.monotonic()
        self._drawing_s = self._drawn_at - began


def write_report(run_dir: str | Path) -> Path:
    """Writes report.html of the run in `run_dir`, as far as it is; its path.

    Raises:
        SourceError: there is no run, or its metrics.jsonl is damaged.
    """
    run = read_run(run_dir)
    file = run.file.parent / REPORT_FILE
    write_whole(file, report_page(run).encode())
    return file


def draw_losses(run: RunMetrics) -> Path | None:
    """Draws loss.png into the run's folder; its path, or None before the first evaluation.

    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    if not run.evaluations:
        return None
    file = run.file.parent / LOSS_FILE
    figure = loss_figure(
        run.curve, title=f"{run.name}: loss", unigram_loss=run.start.get("unigram_loss")
    )
    write_whole_with(
        file, lambda temporary: figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)
    )
    return file


def _name(run: RunView) -> str:
    return run.run_dir.resolve().name.encode(errors="replace").decode()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """A file that cannot be written, for whatever reason, is told, and ends no run."""
    try:
        yield
    except MissingExtraError:
        raise
    except Exception as error:
        say(f"{what}: {error}")
