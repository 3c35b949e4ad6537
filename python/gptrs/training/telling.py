"""What a run says, to all of its callbacks at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gptrs.training.callbacks import Callback, Evaluation, RunView, Sample, StepRecord
from gptrs.training.parts import Parts
from gptrs.training.plan import FILE as PLAN_FILE
from gptrs.training.resume import changed_settings
from gptrs.training.writer import Written

if TYPE_CHECKING:
    from gptrs.training.checkpoint import SavedRun


class Telling:
    """Calls the callbacks of a run, in their order."""

    def __init__(self, run: RunView, callbacks: Sequence[Callback]) -> None:
        self._run, self._callbacks = run, callbacks

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def start(self) -> None:
        """The run begins, or goes on."""
        for callback in self._callbacks:
            callback.on_start(self._run)

    def step(self, record: StepRecord) -> None:
        """A step was taken."""
        for callback in self._callbacks:
            callback.on_step(self._run, record)

    def evaluation(self, evaluation: Evaluation) -> None:
        """The run was evaluated."""
        for callback in self._callbacks:
            callback.on_evaluation(self._run, evaluation)

    def sample(self, sample: Sample) -> None:
        """The model wrote something."""
        for callback in self._callbacks:
            callback.on_sample(self._run, sample)

    def event(self, event: str, **values: Any) -> None:
        """Something else happened, at the present step unless `values` have another."""
        for callback in self._callbacks:
            callback.on_event(self._run, event, {"step": self._run.step, **values})

    def message(self, text: str) -> None:
        """Something to read."""
        for callback in self._callbacks:
            callback.on_message(self._run, text)

    def end(self, reason: str) -> None:
        """The run ends."""
        for callback in self._callbacks:
            callback.on_end(self._run, reason)

    def parts(self, parts: Parts) -> None:
        """What the run consists of, and why it was chosen so."""
        start = self._run.start
        train_tokens, num_threads = start["num_train_tokens"], torch.get_num_threads()
        num_trained = start["num_trained_parameters"]
        is_all = num_trained == start["num_parameters"]
        trained = "" if is_all else f", {num_trained:,} of them trained,"
        tokens = "" if train_tokens is None else f"{train_tokens:,} tokens to train on, "
        lines = [
            f"{tokens}{start['num_validation_tokens']:,} held out",
            f"{start['num_parameters']:,} parameters{trained} on {parts.device}, "
            f"{num_threads} thread{'s' * (num_threads > 1)}, matmuls in {parts.precision.name}: "
            f"{parts.precision.reason}",
        ]
        if parts.micro_batch is not None:
            size, reason = parts.micro_batch
            lines.append(
                f"{self._run.tokens_per_step:,} tokens a step, {size:,} windows at once: {reason}"
            )
        if parts.learning_rate_reason is not None:
            peak = parts.peak_learning_rate
            lines.append(f"learning rate up to {peak:.2g}: {parts.learning_rate_reason}")
        self.message("\n".join(lines))

    def resumed(self, saved: SavedRun, parts: Parts) -> None:
        """From where the run goes on, and what is not as it was."""
        changed = changed_settings(saved.state["config"], self._run.start["config"])
        changed |= changed_settings(saved.state["chosen"], parts.chosen())
        path = saved.path.relative_to(self._run.run_dir).as_posix()
        self.event("resumed", **{"from": path, "changed": changed})
        lines = [f"going on from step {saved.step:,}, {saved.path}"]
        lines += [
            f"{name} was {was}, from here on it is {now}" for name, (was, now) in changed.items()
        ]
        self.message("\n".join(lines))

    def written(self, written: Written) -> None:
        """What became of a checkpoint."""
        if written.path is None:
            self.event("checkpoint failed", step=written.step, why=written.problem)
            self.message(f"{written.problem}; training goes on, and older checkpoints stay")
        else:
            path = written.path.relative_to(self._run.run_dir).as_posix()
            self.event("checkpoint", step=written.step, path=path, seconds=written.seconds)

    def schedule(self) -> None:
        """The number of steps is known."""
        run = self._run
        self.event("schedule", num_steps=run.num_steps, seconds_per_step=run.step_s)
        self.message(
            f"{run.num_steps:,} steps of {1000 * run.step_s:.0f} ms fit into "
            f"{run.config.minutes:g} minutes; from here on the learning rate falls"
        )

    def stopped(self, reason: str) -> None:
        """Somebody stopped the run, and what they can do now."""
        run_dir = self._run.run_dir
        lines = [f"{reason} after step {self._run.step:,}"]
        if (run_dir / PLAN_FILE).exists():
            lines += ["to go on:", f"  gptrs train --resume {run_dir}"]
        lines += [
            "to use what was learned so far:",
            f'  gptrs generate --model {run_dir} --prompt "..."',
        ]
        self.message("\n".join(lines))
