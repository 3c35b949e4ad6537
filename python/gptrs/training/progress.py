"""Where a run stands: its steps and its clock, what is due, and what a checkpoint remembers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from gptrs.errors import ConfigError
from gptrs.training.config import TrainingConfig

_MEASURED_SHARE = 0.05
"""After so much of the minutes, the time of a step is known to a schedule that falls at once."""


class Clock:
    """The seconds of a run, over all its sessions; evaluations are counted apart."""

    def __init__(self, elapsed_s: float = 0.0, evaluation_s: float = 0.0) -> None:
        self._before_s, self.evaluation_s = elapsed_s, evaluation_s
        self.start()

    def start(self) -> None:
        """From now on it runs; what it had counted since it was made is forgotten."""
        self._began = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Of the run, the times when it was stopped not included."""
        return self._before_s + time.perf_counter() - self._began

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around what is no training."""
        began = self.elapsed_s
        try:
            yield
        finally:
            self.evaluation_s += self.elapsed_s - began

    def to_dict(self) -> dict[str, float]:
        """For a checkpoint: what the next session's clock is made of."""
        return {"elapsed_s": self.elapsed_s, "evaluation_s": self.evaluation_s}


@dataclass(slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    num_steps: int | None = None
    """None until a run in minutes knows."""
    num_evaluations: int = 0
    shares_passed: int = 0
    """Of the shares of a run after which it is evaluated, those that need no evaluation more."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    val_loss: float | None = None
    """Of the last evaluation."""
    best_step: int | None = None
    """Of the evaluation with the lowest loss, the one before the first step not counted; None if
    none was finite."""
    best_loss: float | None = None
    evaluations_since_best: int = 0
    skipped_in_a_row: int = 0
    num_skipped: int = 0

    def note_evaluation(self, val_loss: float) -> bool:
        """Whether it is the best one."""
        self.num_evaluations += 1
        self.losses.clear()
        self.val_loss = val_loss
        if not self.step:
            return False
        is_best = math.isfinite(val_loss) and (self.best_loss is None or val_loss < self.best_loss)
        if is_best:
            self.best_step, self.best_loss, self.evaluations_since_best = self.step, val_loss, 0
        else:
            self.evaluations_since_best += 1
        return is_best

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Progress:
        """What `to_dict` gave."""
        return cls(**saved)


class Standing:
    """Where a run stands, as its callbacks see it; what follows from that."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self._progress, self._clock = Progress(num_steps=config.steps), Clock()

    def _stand_at(self, saved: Mapping[str, Any]) -> None:
        """Where a checkpoint was; but as long as is asked for now, in steps or in minutes.

        Raises:
            ConfigError: other minutes are asked for, and fewer than were taken.
        """
        self._progress, self._clock = Progress.of(saved["progress"]), Clock(**saved["clock"])
        before, now = saved["config"], self.config
        if (before["steps"], before["minutes"]) != (now.steps, now.minutes):
            self._ask_for_length()
        elif before["num_evaluations"] == now.num_evaluations:
            return
        self._progress.shares_passed = self._shares_done

    def _ask_for_length(self) -> None:
        """Steps that are asked for, or as many as the minutes will turn out to have."""
        if self.config.steps is None and 60 * self.config.minutes < self.elapsed_s:
            raise ConfigError(
                f"minutes is {self.config.minutes:g}, and the run has taken "
                f"{self.elapsed_s / 60:.3g}, which cannot be taken back: ask for more, or begin "
                "another run"
            )
        self._progress.num_steps = self.config.steps

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._progress.step

    @property
    def num_steps(self) -> int | None:
        """How many there will be; None until a run in minutes knows."""
        return self._progress.num_steps

    @property
    def progress(self) -> float:
        """How much of the run is done: of its steps, or of its time until those are known."""
        if self.num_steps is not None:
            return min(1.0, self.step / self.num_steps)
        return min(1.0, self.elapsed_s / (60 * self.config.minutes))

    @property
    def elapsed_s(self) -> float:
        """Seconds of the run, the times when it was stopped not included."""
        return self._clock.elapsed_s

    @property
    def step_s(self) -> float:
        """Mean seconds a step, without evaluations; only after a step."""
        return (self.elapsed_s - self._clock.evaluation_s) / self.step

    @property
    def expected_steps(self) -> int:
        """`num_steps`, or how many, those done included, take `minutes` with all evaluations."""
        if self.num_steps is not None:
            return self.num_steps
        progress = self._progress
        done = max(1, progress.num_evaluations)
        left_s = 60 * self.config.minutes - self.elapsed_s
        evaluation_s = self._clock.evaluation_s / done
        if self.config.evaluate_every is not None:
            step_s = self.step_s + evaluation_s / self.config.evaluate_every
        else:
            step_s = self.step_s
            left_s -= (self.config.num_evaluations - progress.shares_passed) * evaluation_s
        return self.step + max(1, int(left_s / step_s))

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.num_steps is not None and self.step >= self.num_steps

    @property
    def has_stopped_learning(self) -> bool:
        """Whether it is to be stopped early."""
        patience = self.config.early_stopping
        return patience is not None and self._progress.evaluations_since_best >= patience

    def _settles_num_steps(self) -> bool:
        """Fixes their number when the learning rate is about to fall: no busy moment fools it then.

        Whether it did so now.
        """
        is_level = self.config.schedule == "wsd"
        share = 1 - self.config.decay_fraction if is_level else _MEASURED_SHARE
        if self.num_steps is not None or self.progress < share:
            return False
        self._progress.num_steps = self.expected_steps
        return True

    def _evaluation_is_due(self) -> bool:
        if self.is_finished:
            return True
        if (every := self.config.evaluate_every) is not None:
            return self.step % every == 0
        return self._shares_done > self._progress.shares_passed

    def _pass_shares(self) -> None:
        """Leaves out evaluations that came due while the last one was made, or in a slow step."""
        self._progress.shares_passed = max(self._progress.shares_passed, self._shares_done)

    @property
    def _shares_done(self) -> int:
        """How many of the `num_evaluations` shares of the run are done."""
        return int(self.progress * self.config.num_evaluations + 1e-9)
