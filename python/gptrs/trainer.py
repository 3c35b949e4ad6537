"""The training loop that `gptrs train` and the demo share: tokens in, a trained model out.

    tokens ─► split ─► batches ─► loss ─► clipped gradients ─► AdamW
                          │
              now and then: validation loss, checkpoint, the caller's `on_evaluation`

Into `run_dir` go `checkpoint/`, renewed at every evaluation, and `metrics.jsonl`. What was chosen
by looking or measuring (device, dtype, number of steps) is printed and stands there too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gptrs import corpus
from gptrs.checkpoint import RUN_FOLDER, check_tokenizer, save_checkpoint
from gptrs.corpus import Batch, Tokens
from gptrs.devices import Precision, choose_device, choose_precision
from gptrs.errors import TrainingError
from gptrs.interrupts import stop_on_interrupt
from gptrs.loss import next_token_loss
from gptrs.model import GPTModel
from gptrs.optimization import build_optimizer, learning_rate_at
from gptrs.run_log import RunLog
from gptrs.training_config import TrainingConfig

SMOOTHED_STEPS = 20
"""The progress bar's loss is the mean of so many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a run stands after `step` optimizer steps."""

    step: int
    progress: float
    """The share of the run that is done, from 0 to 1."""
    tokens_seen: int
    train_loss: float | None
    """Mean over the batches since the last evaluation, in nats per token; None at step 0."""
    val_loss: float
    """In nats per token, on the same tokens each time, without dropout."""
    bits_per_byte: float | None
    """`val_loss` in bits per byte of text; None without a tokenizer."""
    seconds: float
    """Since the run began, evaluations included."""
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
class TrainingResult:
    """What `train` did. The model itself was trained in place."""

    evaluations: list[Evaluation]
    step_losses: list[float]
    """Each batch's training loss."""
    tokens_per_step: int
    unigram_loss: float
    """What a model that knows only how common each token is gets on the held-out tokens."""
    unigram_bits_per_byte: float | None
    interrupted: bool
    checkpoint: Path

    @property
    def last(self) -> Evaluation:
        """The last evaluation: after the last step, unless the run was interrupted."""
        return self.evaluations[-1]


def train(
    model: GPTModel,
    tokens: Tokens,
    config: TrainingConfig | None = None,
    *,
    run_dir: str | Path,
    tokenizer: Any = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> TrainingResult:
    """Trains `model` in place on `tokens`, the last part of which is held out to validate on.

    Ctrl-C ends the run after the step in progress; the checkpoint is saved and the result says so.
    The model ends in eval mode, on the device it was trained on.

    Args:
        tokens: ids in 0..vocab_size - 1, uint16 or uint32 [N].
        run_dir: where `checkpoint/` and `metrics.jsonl` go; made if missing.
        tokenizer: saved with the checkpoint, and needed for bits per byte. Its ids are all in the
            model's vocabulary.
        on_evaluation: called after each evaluation, before the first step too, with the model in
            eval mode. Its time counts towards `minutes`.
    Raises:
        ConfigError: the device or dtype is not available here, or the tokenizer cannot be saved.
        DataError: too few tokens for one window of the model's context_length.
        TokenIdError: a token id is outside the model's vocabulary.
        TrainingError: the loss or the gradient is NaN or infinite; the message names the last good
            checkpoint.
    """
    with torch.random.fork_rng():
        config = config or TrainingConfig()
        torch.manual_seed(config.seed)
        return _Run(model, tokens, config, Path(run_dir), tokenizer, on_evaluation).to_the_end()


@torch.no_grad()
def validation_loss(
    model: GPTModel, batches: list[Batch], device: torch.device, precision: Precision
) -> float:
    """Mean loss per token over `batches`, in nats. Leaves the model in eval mode."""
    model.eval()
    total, num_tokens = 0.0, 0
    for inputs, targets in batches:
        with precision.autocast(device):
            loss = next_token_loss(model, inputs.to(device), targets.to(device))
        total += loss.item() * targets.numel()
        num_tokens += targets.numel()
    return total / num_tokens


class _Run:
    """One run of `train`: its parts, and where it stands."""

    def __init__(
        self,
        model: GPTModel,
        tokens: Tokens,
        config: TrainingConfig,
        run_dir: Path,
        tokenizer: Any,
        on_evaluation: Callable[[Evaluation], None] | None,
    ) -> None:
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.run_dir, self.checkpoint = run_dir, run_dir / RUN_FOLDER
        self.on_evaluation = on_evaluation
        check_tokenizer(tokenizer, model, self.checkpoint)  # Not only after the first steps.
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.dtype, self.device)
        self._prepare_data(tokens)
        model.to(self.device)
        self.optimizer = build_optimizer(model, config)

        self.num_steps = config.steps
        self.step_losses: list[float] = []
        self.evaluations: list[Evaluation] = []
        self.evaluation_seconds = 0.0
        self.saved_step: int | None = None

    def _prepare_data(self, tokens: Tokens) -> None:
        vocab_size, context_length = self.model.cfg.vocab_size, self.model.cfg.context_length
        batch_size = self.config.batch_size
        self.split = corpus.split_tokens(
            tokens,
            validation_fraction=self.config.validation_fraction,
            context_length=context_length,
            vocab_size=vocab_size,
        )
        self.batches = corpus.training_batches(
            self.split.train,
            batch_size=batch_size,
            context_length=context_length,
            seed=self.config.seed,
        )
        self.validation = corpus.validation_batches(
            self.split.validation,
            batch_size=batch_size,
            context_length=context_length,
            max_tokens=self.config.max_validation_tokens,
        )
        self.tokens_per_step = batch_size * context_length
        self.unigram_loss = corpus.unigram_loss(self.split, vocab_size=vocab_size)
        self.bytes_per_token = (
            corpus.bytes_per_token(self.split.validation, self.tokenizer)
            if self.tokenizer is not None
            else None
        )

    # --- Where it stands ---

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.step_losses)

    @property
    def finished(self) -> bool:
        return self.step == self.num_steps

    @property
    def progress(self) -> float:
        """How much of the run is done: of its steps, or of its time until those are known."""
        if self.num_steps is not None:
            return self.step / self.num_steps
        return self.elapsed_s / (60 * self.config.minutes)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def step_s(self) -> float:
        """Mean seconds a step, without evaluations."""
        return (self.elapsed_s - self.evaluation_seconds) / self.step

    # --- What it does ---

    def to_the_end(self) -> TrainingResult:
        with RunLog(self.run_dir) as self.log, stop_on_interrupt() as interrupt:
            self._announce()
            self.started = time.perf_counter()
            self._evaluate()
            while not self.finished and not interrupt.is_set():
                self._train_step(next(self.batches))
                # The learning rate is level until now, and a busy moment no longer fools the clock.
                if self.num_steps is None and self.progress >= 1 - self.config.decay_fraction:
                    self._fix_num_steps()
                self._show_progress()
                if int(self.progress * self.config.num_evaluations + 1e-9) >= len(self.evaluations):
                    self._evaluate()
            if not self.finished:
                self._save()
                self.log.tell(
                    f"interrupted after step {self.step:,}; to use what was learned so far:\n"
                    f'  gptrs generate --model {self.run_dir} --prompt "..."'
                )
        self.model.eval()
        return TrainingResult(
            evaluations=self.evaluations,
            step_losses=self.step_losses,
            tokens_per_step=self.tokens_per_step,
            unigram_loss=self.unigram_loss,
            unigram_bits_per_byte=self._bits_per_byte(self.unigram_loss),
            interrupted=not self.finished,
            checkpoint=self.checkpoint,
        )

    def _train_step(self, batch: Batch) -> None:
        self.model.train()
        learning_rate = learning_rate_at(self.step, self.num_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        inputs, targets = (tensor.to(self.device) for tensor in batch)
        with self.precision.autocast(self.device):
            loss = next_token_loss(self.model, inputs, targets)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        measured = {"loss": loss.item(), "gradient norm": grad_norm.item()}
        self._refuse_non_finite(measured, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_losses.append(measured["loss"])
        self.log.record(
            "step",
            step=self.step,
            loss=measured["loss"],
            grad_norm=measured["gradient norm"],
            learning_rate=learning_rate,
        )

    def _refuse_non_finite(self, measured: dict[str, float], learning_rate: float) -> None:
        """Raises before the weights are touched, so that the model too is as it was."""
        found = [f"the {name} is {x}" for name, x in measured.items() if not math.isfinite(x)]
        if not found:
            return
        saved = (
            "no checkpoint was saved yet"
            if self.saved_step is None
            else f"{self.checkpoint} is good, from step {self.saved_step:,}"
        )
        raise TrainingError(
            f"{' and '.join(found)} at step {self.step + 1:,}, with learning rate "
            f"{learning_rate:.2g}; {saved}; try a lower learning rate or a longer warm-up"
        )

    def _evaluate(self) -> None:
        began_s = self.elapsed_s
        since_last = self.step_losses[self.evaluations[-1].step if self.evaluations else 0 :]
        tokens_per_s = self.tokens_per_step / self.step_s if self.step else None
        val_loss = validation_loss(self.model, self.validation, self.device, self.precision)
        evaluation = Evaluation(
            step=self.step,
            progress=min(1.0, self.progress),
            tokens_seen=self.step * self.tokens_per_step,
            train_loss=sum(since_last) / len(since_last) if since_last else None,
            val_loss=val_loss,
            bits_per_byte=self._bits_per_byte(val_loss),
            seconds=self.elapsed_s,
            tokens_per_s=tokens_per_s,
        )
        self.evaluations.append(evaluation)
        self.log.record("evaluation", **asdict(evaluation))
        self.log.tell(str(evaluation))
        if self.step:
            self._save()
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)
        self.evaluation_seconds += self.elapsed_s - began_s

    def _bits_per_byte(self, loss: float) -> float | None:
        if self.bytes_per_token is None:
            return None
        return corpus.bits_per_byte(loss, self.bytes_per_token)

    def _save(self) -> None:
        metadata = {
            "step": self.step,
            "val_loss": self.evaluations[-1].val_loss,
            "training": asdict(self.config),
        }
        save_checkpoint(self.model, self.checkpoint, tokenizer=self.tokenizer, metadata=metadata)
        self.saved_step = self.step

    def _steps_that_fit(self) -> int:
        """How many steps, those done included, take `minutes` with all evaluations."""
        evaluation_s = self.evaluation_seconds / len(self.evaluations)
        num_to_come = self.config.num_evaluations + 1 - len(self.evaluations)
        left_s = 60 * self.config.minutes - self.elapsed_s - num_to_come * evaluation_s
        return self.step + max(1, int(left_s / self.step_s))

    def _fix_num_steps(self) -> None:
        self.num_steps = self._steps_that_fit()
        self.log.record(
            "schedule", step=self.step, num_steps=self.num_steps, seconds_per_step=self.step_s
        )
        self.log.tell(
            f"{self.num_steps:,} steps of {1000 * self.step_s:.0f} ms fit into "
            f"{self.config.minutes:g} minutes; from here on the learning rate falls"
        )

    def _show_progress(self) -> None:
        recent = self.step_losses[-SMOOTHED_STEPS:]
        self.log.advance(
            num_steps=self.num_steps or self._steps_that_fit(),
            loss=sum(recent) / len(recent),
            tokens_per_s=self.tokens_per_step / self.step_s,
        )

    def _announce(self) -> None:
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        num_threads = torch.get_num_threads()
        dtype = str(self.precision.dtype).removeprefix("torch.")
        self.log.record(
            "start",
            config=asdict(self.config),
            model=self.model.cfg.to_dict(),
            num_parameters=num_parameters,
            num_train_tokens=len(self.split.train),
            num_validation_tokens=len(self.split.validation),
            unigram_loss=self.unigram_loss,
            device=str(self.device),
            dtype=dtype,
            dtype_reason=self.precision.reason,
            num_threads=num_threads,
            torch=torch.__version__,
        )
        self.log.tell(
            f"{len(self.split.train):,} tokens to train on, "
            f"{len(self.split.validation):,} held out\n"
            f"{num_parameters:,} parameters on {self.device}, {num_threads} threads, "
            f"matmuls in {dtype}: {self.precision.reason}"
        )
