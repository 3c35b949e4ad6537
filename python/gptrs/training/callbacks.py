"""What a training run tells as it goes, and to whom: `Callback`, and the records that it is given.

    the loop ─► on_start ─► (on_step | on_evaluation | on_sample | on_event | on_message)* ─► on_end

The log of a run, its report and TensorBoard are callbacks; so is what a caller passes to `train`.
They are called in their order, on the first rank only. What one raises ends the run, unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from gptrs.model.gpt import GPTModel
    from gptrs.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """How one optimizer step went."""

    step: int
    """Counted from 1."""
    loss: float
    """Of the step's batch, before the step, in nats per token."""
    grad_norm: float
    """Of all gradients together, before clipping."""
    learning_rate: float
    tokens: int
    """Seen since the run began, this step's included."""
    seconds: float
    """Since the run began, evaluations included, times when it was stopped not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a run stands after `step` optimizer steps."""

    step: int
    progress: float
    """The share of the run that is done, from 0 to 1."""
    tokens_seen: int
    train_loss: float | None
    """Mean over the steps since the last evaluation, in nats per token; None at step 0."""
    val_loss: float
    """In nats per token, on the same tokens each time, without dropout."""
    bits_per_byte: float | None
    """`val_loss` in bits per byte of text; None without a tokenizer."""
    seconds: float
    """Since the run began, evaluations included, times when it was stopped not."""
    tokens_per_s: float | None
    """Since the run began, without the time of evaluations; None at step 0."""

    def __str__(self) -> str:
        parts = [f"step {self.step:>5,}"]
        if self.train_loss is not None:
            parts.append(f"train loss {self.train_loss:.3f}")
        parts.append(f"validation loss {self.val_loss:.3f}")
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.3f} bits per byte")
        return "  ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What the model wrote after `step` optimizer steps."""

    step: int
    prompt: str
    text: str
    """The continuation, without the prompt."""


class RunView(Protocol):
    """A run as its callbacks see it: to be looked at, not to be changed."""

    run_dir: Path
    config: TrainingConfig
    model: GPTModel
    """As it is now; in eval mode in `on_evaluation`, `on_sample` and `on_end`."""
    tokenizer: Any
    """None if the run has none."""
    tokens_per_step: int
    start: Mapping[str, Any]
    """The values of the event `start`: config, model, data, device, dtype, micro_batch, ..."""
    is_resumed: bool

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    @property
    def num_steps(self) -> int | None:
        """How many there will be; None until a run in minutes knows."""

    @property
    def progress(self) -> float:
        """The share of the run that is done, of its steps or its time, from 0 to 1."""

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, evaluations included, times when it was stopped not."""

    @property
    def step_s(self) -> float:
        """Mean seconds a step, without evaluations; only after a step."""

    @property
    def expected_steps(self) -> int:
        """`num_steps`, or what it will be as far as is known; only after a step."""


class Callback:
    """Sees a training run; each method does nothing unless it is overridden."""

    def on_start(self, run: RunView) -> None:
        """Before the first step, or the first after a resume; `run.start` says how it is run."""

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """After every optimizer step that was taken."""

    def on_evaluation(self, run: RunView, evaluation: Evaluation) -> None:
        """After each evaluation, one before the first step included."""

    def on_sample(self, run: RunView, sample: Sample) -> None:
        """After each text that the model wrote."""

    def on_event(self, run: RunView, event: str, values: Mapping[str, Any]) -> None:
        """Whatever else metrics.jsonl tells: checkpoint, skipped, schedule, resumed."""

    def on_message(self, run: RunView, text: str) -> None:
        """A line or more for whoever watches."""

    def on_end(self, run: RunView, reason: str) -> None:
        """The run ends: "finished", "early stopping", "interrupted", "terminated" or "failed".

        What an error ends has one too, and the error goes on afterwards.
        """
