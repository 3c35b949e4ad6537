"""The training loop that `gptrs train` and the demo share: tokens in, a trained model and its record out.

    tokens ─► split ─► batches ─► loss ─► clipped gradients ─► AdamW, warm-up and cosine
                          │
              now and then: validation loss, checkpoint, the caller's `on_evaluation`

Writes into `run_dir`: `checkpoint/`, renewed at every evaluation, and `metrics.jsonl`, one JSON object a line.
What was chosen by measuring (device, dtype, number of steps) is printed and is the first line there.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from gptrs import corpus
from gptrs.checkpoint import save_checkpoint
from gptrs.corpus import Batch, Tokens
from gptrs.devices import Precision, choose_device, choose_precision
from gptrs.errors import TrainingError
from gptrs.loss import next_token_loss
from gptrs.model import GPTModel
from gptrs.training_config import TrainingConfig

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

    Args:
        tokens: ids in 0..vocab_size, an integer array [N].
        run_dir: where `checkpoint/` and `metrics.jsonl` go; made if missing.
        tokenizer: saved with the checkpoint, and needed for bits per byte.
        on_evaluation: called after each evaluation, before the first step too. Its time counts
            towards `minutes`. The model is in eval mode.
    Raises:
        ConfigError: the device or dtype is not available here.
        DataError: too few tokens for one window of the model's context_length.
        TokenIdError: a token id is outside the model's vocabulary.
        TrainingError: the loss or the gradient became NaN or infinite; the message names the last good
            checkpoint.
    """
    config = config or TrainingConfig()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        run = _Run(model, tokens, config, Path(run_dir), tokenizer, on_evaluation)
        return run.to_the_end()


def learning_rate_at(step: int, num_steps: int | None, config: TrainingConfig) -> float:
    """The learning rate of step 0..num_steps-1: it rises in a line, stays, and falls along half a cosine.

    While `num_steps` is unknown, it stays.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if num_steps is None:
        return config.learning_rate
    last = num_steps - 1
    fall_begins = max(config.warmup_steps, (1 - config.decay_fraction) * last)
    fallen = min(1.0, max(0.0, (step - fall_begins) / max(1.0, last - fall_begins)))
    height = 0.5 * (1 + math.cos(math.pi * fallen))
    return config.final_learning_rate + height * (config.learning_rate - config.final_learning_rate)


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, fused where the device has it; weight decay on parameters of two dimensions or more only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


@torch.no_grad()
def validation_loss(
    model: GPTModel, batches: list[Batch], device: torch.device, precision: Precision
) -> float:
    """Mean loss per token over `batches`, in nats, in eval mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    total, num_tokens = 0.0, 0
    for inputs, targets in batches:
        with precision.autocast(device):
            loss = next_token_loss(model, inputs.to(device), targets.to(device))
        total += loss.item() * targets.numel()
        num_tokens += targets.numel()
    model.train(was_training)
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
        self.model, self.config = model, config
        self.run_dir, self.tokenizer, self.on_evaluation = run_dir, tokenizer, on_evaluation
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.dtype, self.device)
        vocab_size, context_length = model.cfg.vocab_size, model.cfg.context_length
        split = corpus.split_tokens(
            tokens,
            validation_fraction=config.validation_fraction,
            context_length=context_length,
            vocab_size=vocab_size,
        )
        self.batches = corpus.training_batches(
            split.train,
            batch_size=config.batch_size,
            context_length=context_length,
            seed=config.seed,
        )
        self.validation = corpus.validation_batches(
            split.validation,
            batch_size=config.batch_size,
            context_length=context_length,
            max_tokens=config.max_validation_tokens,
        )
        self.unigram_loss = corpus.unigram_loss(split, vocab_size=vocab_size)
        self.bytes_per_token = (
            None if tokenizer is None else corpus.bytes_per_token(split.validation, tokenizer)
        )
        model.to(self.device)
        self.optimizer = build_optimizer(model, config)
        self.num_steps = config.steps
        self.step_losses: list[float] = []
        self.tokens_per_step = config.batch_size * context_length
        self.started = time.perf_counter()
        self.evaluation_seconds = 0.0
        self.evaluations: list[Evaluation] = []
        self.saved_step: int | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.step_losses)

    @property
    def checkpoint(self) -> Path:
        return self.run_dir / "checkpoint"

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def step_s(self) -> float:
        """Mean seconds a step, without evaluations."""
        return (self.elapsed_s - self.evaluation_seconds) / self.step

    @property
    def progress(self) -> float:
        """The share of the run that is done: of its steps, or of its time while those are unknown."""
        if self.num_steps is not None:
            return self.step / self.num_steps
        return self.elapsed_s / (self.config.minutes * 60)

    @property
    def finished(self) -> bool:
        return self.step == self.num_steps

    def to_the_end(self) -> TrainingResult:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with (
            (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8") as self.metrics,
            stop_on_interrupt() as interrupt,
            tqdm(unit="step", desc="training", mininterval=0.5) as bar,
        ):
            self._announce()
            self.started = time.perf_counter()
            self._evaluate()
            while not self.finished and not interrupt.is_set():
                self._train_step(next(self.batches))
                # Timed for as long as the learning rate stays: a busy moment fools nobody then.
                if self.num_steps is None and self.progress >= 1 - self.config.decay_fraction:
                    self._fix_num_steps()
                self._show_progress(bar)
                if int(self.progress * self.config.num_evaluations + 1e-9) >= len(self.evaluations):
                    self._evaluate()
            if not self.finished:
                self._save()
                self._tell(
                    f"interrupted after step {self.step}; to use what it learned so far:\n"
                    f'  gptrs generate --model {self.checkpoint} --prompt "..."'
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
        self._refuse_non_finite("loss", loss.item(), learning_rate)
        self._refuse_non_finite("gradient norm", grad_norm.item(), learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_losses.append(loss.item())
        self._record(
            "step",
            step=self.step,
            loss=loss.item(),
            learning_rate=learning_rate,
            grad_norm=grad_norm.item(),
        )

    def _refuse_non_finite(self, what: str, value: float, learning_rate: float) -> None:
        if math.isfinite(value):
            return
        good = (
            "no checkpoint was saved yet"
            if self.saved_step is None
            else f"{self.checkpoint} is good, from step {self.saved_step}"
        )
        raise TrainingError(
            f"the {what} is {value} at step {self.step + 1}, with learning rate {learning_rate:.2g}; "
            f"{good}; a lower learning rate or a longer warm-up may help"
        )

    def _evaluate(self) -> None:
        began = self.elapsed_s
        val_loss = validation_loss(self.model, self.validation, self.device, self.precision)
        since_last = self.step_losses[self.evaluations[-1].step if self.evaluations else 0 :]
        self.evaluation_seconds += self.elapsed_s - began
        evaluation = Evaluation(
            step=self.step,
            progress=min(1.0, self.progress),
            tokens_seen=self.step * self.tokens_per_step,
            train_loss=sum(since_last) / len(since_last) if since_last else None,
            val_loss=val_loss,
            bits_per_byte=self._bits_per_byte(val_loss),
            seconds=self.elapsed_s,
            tokens_per_s=self.tokens_per_step / self.step_s if self.step else None,
        )
        began = self.elapsed_s
        self.evaluations.append(evaluation)
        self._record("evaluation", **asdict(evaluation))
        self._tell(_summary(evaluation))
        if self.step:
            self._save()
        if self.on_evaluation is not None:
            self.model.eval()
            self.on_evaluation(evaluation)
        self.evaluation_seconds += self.elapsed_s - began

    def _bits_per_byte(self, loss: float) -> float | None:
        if self.bytes_per_token is None:
            return None
        return corpus.bits_per_byte(loss, self.bytes_per_token)

    def _save(self) -> None:
        last = self.evaluations[-1]
        save_checkpoint(
            self.model,
            self.checkpoint,
            tokenizer=self.tokenizer,
            metadata={"step": self.step, "val_loss": last.val_loss, "config": asdict(self.config)},
        )
        self.saved_step = self.step

    def _steps_that_fit(self) -> int:
        """How many steps, those done included, take `minutes` with all evaluations."""
        evaluation_s = self.evaluation_seconds / len(self.evaluations)
        num_to_come = self.config.num_evaluations + 1 - len(self.evaluations)
        left_s = self.config.minutes * 60 - self.elapsed_s - num_to_come * evaluation_s
        return self.step + max(1, int(left_s / self.step_s))

    def _fix_num_steps(self) -> None:
        self.num_steps = self._steps_that_fit()
        self._record(
            "schedule", step=self.step, num_steps=self.num_steps, seconds_per_step=self.step_s
        )
        self._tell(
            f"a step takes {self.step_s * 1000:.0f} ms: {self.num_steps:,} steps fit into "
            f"{self.config.minutes:g} minutes; from here on the learning rate falls"
        )

    def _announce(self) -> None:
        dtype = str(self.precision.dtype).removeprefix("torch.")
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self._record(
            "start",
            config=asdict(self.config),
            model=self.model.cfg.to_dict(),
            num_parameters=num_parameters,
            device=str(self.device),
            dtype=dtype,
            dtype_reason=self.precision.reason,
            num_threads=torch.get_num_threads(),
            torch=torch.__version__,
            unigram_loss=self.unigram_loss,
        )
        self._tell(
            f"{num_parameters:,} parameters on {self.device} with {torch.get_num_threads()} threads, "
            f"matmuls in {dtype} ({self.precision.reason})"
        )

    def _show_progress(self, bar: "tqdm[Any]") -> None:
        recent = self.step_losses[-20:]
        bar.set_postfix_str(
            f"loss {sum(recent) / len(recent):.3f}, "
            f"{self.tokens_per_step / self.step_s:,.0f} tokens/s",
            refresh=False,
        )
        bar.total = self.num_steps or self._steps_that_fit()
        bar.update()

    def _record(self, event: str, **values: Any) -> None:
        self.metrics.write(json.dumps({"event": event, **values}) + "\n")
        self.metrics.flush()

    def _tell(self, line: str) -> None:
        tqdm.write(line)


def _summary(evaluation: Evaluation) -> str:
    parts = [f"step {evaluation.step:>5,}"]
    if evaluation.train_loss is not None:
        parts.append(f"train loss {evaluation.train_loss:.3f}")
    parts.append(f"validation loss {evaluation.val_loss:.3f}")
    if evaluation.bits_per_byte is not None:
        parts.append(f"{evaluation.bits_per_byte:.3f} bits per byte")
    return "  ".join(parts)


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, instead of raising; the second raises KeyboardInterrupt.

    Outside the main thread, where Python allows no signal handler, nothing is changed.
    """
    interrupted = threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
