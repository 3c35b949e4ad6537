"""The live line of a run: a progress bar with its loss, tokens/s, MFU and the time that is left.

    training:  45%|████      | 450/1000 [02:10<02:39, loss 3.412, 12,345 tokens/s, MFU 41 %]

Lines for whoever watches appear above it. Where stderr is a file or a pipe there is no bar, which
would fill it, but now and then a line of its own:

    step   450 of 1,000  loss 3.412, 12,345 tokens/s, MFU 41 %
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from gptrs.training.callbacks import Callback
from gptrs.training.reports.saying import say, unheard
from gptrs.training.reports.speed import RunSpeed

if TYPE_CHECKING:
    from gptrs.training.callbacks import Evaluation, RunView, Sample, StepRecord

SMOOTHED_STEPS = 20
"""The bar's loss is the mean of so many, its tokens/s are those of as many."""
LINE_EVERY_S = 30.0
"""Without a terminal."""
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_BAR_WITHOUT_END = "{desc}: {n_fmt} steps [{elapsed}{postfix}]"


class ProgressBar(Callback):
    """Shows a run on the terminal, as it goes."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._line_at = 0.0
        self._speed: RunSpeed | None = None
        self._losses: deque[float] = deque(maxlen=SMOOTHED_STEPS)
        self._marks: deque[tuple[int, float]] = deque(maxlen=SMOOTHED_STEPS + 1)

    def on_start(self, run: RunView) -> None:
        """Opens the bar, and says what the MFU is measured against."""
        self._speed = speed = RunSpeed.of(run)
        if speed.peak.flops_per_s is None:
            self.on_message(run, f"MFU unknown: {speed.peak.source}")
        else:
            teraflops = speed.peak.flops_per_s / 1e12
            self.on_message(
                run, f"MFU is the share of {teraflops:.3g} TFLOP/s a device: {speed.peak.source}"
            )
        self._line_at = time.monotonic()
        if not _shows_bars():
            return
        self._bar = tqdm(
            desc="training",
            total=run.num_steps,
            initial=run.step,
            mininterval=0.5,
            bar_format=_BAR if run.num_steps else _BAR_WITHOUT_END,
        )

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """Moves the bar on."""
        self._losses.append(record.loss)
        self._marks.append((record.tokens, record.seconds))
        if self._bar is None:
            self._print_now_and_then(run, record)
            return
        self._bar.total = run.expected_steps
        self._bar.bar_format = _BAR
        self._bar.set_postfix_str(self._words(), refresh=False)
        with unheard():
            self._bar.update(record.step - self._bar.n)

    def on_evaluation(self, run: RunView, evaluation: Evaluation) -> None:
        """Prints the evaluation; its time is in no tokens/s."""
        self._marks.clear()
        # The largest float is e to the 709.
        perplexity = math.exp(min(evaluation.val_loss, 700.0))
        self.on_message(run, f"{evaluation}  perplexity {perplexity:,.4g}")

    def on_sample(self, run: RunView, sample: Sample) -> None:
        """Prints the sample, set off from all else."""
        self._marks.clear()
        text = f"{sample.prompt}{sample.text}"
        self.on_message(run, "\n".join(f"    | {line}" for line in text.split("\n")))

    def on_event(self, run: RunView, event: str, values: Mapping[str, Any]) -> None:
        """A skipped step is told; its time is in no tokens/s."""
        if event == "skipped":
            self._marks.clear()

    def on_message(self, run: RunView, text: str) -> None:
        """Prints lines above the bar."""
        say(text)
        if self._bar is None:  # A log is read as it grows.
            with unheard():
                sys.stdout.flush()

    def on_end(self, run: RunView, reason: str) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            with unheard():
                self._bar.close()
            self._bar = None

    def _print_now_and_then(self, run: RunView, record: StepRecord) -> None:
        now = time.monotonic()
        if now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            line = f"step {record.step:>5,} of {run.expected_steps:,}  {self._words()}"
            with unheard():
                print(line, file=sys.stderr, flush=True)

    def _words(self) -> str:
        words = [f"loss {sum(self._losses) / len(self._losses):.3f}"]
        (first, began), (last, now) = self._marks[0], self._marks[-1]
        if now > began and self._speed is not None:
            tokens_per_s = (last - first) / (now - began)
            mfu = self._speed.mfu(tokens_per_s)
            share = "unknown" if mfu is None else f"{100 * mfu:.0f} %"
            words += [f"{tokens_per_s:,.0f} tokens/s", f"MFU {share}"]
        return ", ".join(words)


def _shows_bars() -> bool:
    """Whether a bar can be drawn over: in a notebook, whose stderr is no terminal, too."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return in_notebook or sys.stderr.isatty()
