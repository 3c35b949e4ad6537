"""What a checkpoint costs a run: the time it stands still, and how much slower steps are meanwhile.

step   step   step ■ step~ step~ step   step         ■ stands still: copies the weights
                   └─ written ─┘                     ~ while a thread writes them
"""

import time
from collections.abc import Mapping
from statistics import mean
from typing import Any

from gptrs.training.callbacks import Callback, RunView, StepRecord


class CheckpointCosts(Callback):
    """Seconds that each checkpoint took from the training.

    Attributes:
        blocked: while the run stood still.
        each: those, and what steps took longer than they do when nothing is written.
    """

    def __init__(self) -> None:
        self.blocked: list[float] = []
        self.each: list[float] = []
        self._ends: dict[int, float] = {}
        self._written: list[tuple[int, int]] = []

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """The step ends, and what comes between it and the next begins."""
        self._ends[record.step] = time.perf_counter()

    def on_event(self, run: RunView, event: str, values: Mapping[str, Any]) -> None:
        """A checkpoint is on the disk."""
        if event == "checkpoint" and run.step < run.expected_steps:
            self.blocked.append(values["seconds"])
            self._written.append((values["step"], run.step))

    def on_end(self, run: RunView, reason: str) -> None:
        """Compares the steps while one was written with the others."""
        intervals = {
            step: self._ends[step + 1] - ended
            for step, ended in self._ends.items()
            if step + 1 in self._ends
        }
        # The first steps ask for memory.
        disturbed = [range(saved, told + 1) for saved, told in self._written]
        calm = [
            took
            for step, took in intervals.items()
            if step > 2 and not any(step in steps for steps in disturbed)
        ]
        if not calm:
            self.blocked.clear()
            return
        usual = mean(calm)
        self.each = [
            sum(intervals[step] - usual for step in steps if step in intervals)
            for steps in disturbed
        ]
