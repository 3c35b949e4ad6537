"""The training loop: step after step, and what comes between them.

batches ─► loss ─► gradients, added up ─► finite? ─► clipped ─► optimizer
                                            └ no: the step is skipped
then, if it is due:  number of steps, evaluation and samples, checkpoint
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from gptrs.errors import CheckpointError, TrainingError
from gptrs.generation.generator import Generator
from gptrs.interrupts import StopReason, StopRequest, stop_on_signals
from gptrs.model.dropout import seeded_dropout
from gptrs.model.gpt import GPTModel
from gptrs.training.callbacks import Callback, Evaluation, Sample, StepRecord
from gptrs.training.checkpoint import SavedRun, checkpoints, clean, step_of
from gptrs.training.config import TrainingConfig
from gptrs.training.data import PrefetchedSteps, StepBatches
from gptrs.training.memory import freed_memory_kept
from gptrs.training.model_state import ModelState
from gptrs.training.optimization import MasterWeights, Optimizers, learning_rate_at
from gptrs.training.parts import Parts
from gptrs.training.progress import Standing
from gptrs.training.resume import read_history
from gptrs.training.snapshot import restore, take_snapshot
from gptrs.training.step import (
    StepLoss,
    accumulate,
    checkpoint_blocks,
    compile_blocks,
    measure,
    restore_blocks,
)
from gptrs.training.telling import Telling
from gptrs.training.validation import validation_loss
from gptrs.training.writer import CheckpointWriter, Writable
from gptrs.weights.manifest import RUN_FOLDER

SAMPLE_TEMPERATURE = 0.8
_TRY = "try a lower learning rate or a longer warm-up"
STOP_REASONS: tuple[StopReason | None, ...] = (None, *get_args(StopReason))


class _Due(NamedTuple):
    """What comes after a step."""

    num_steps: int | None
    schedule: bool
    """Whether their number was settled just now."""
    evaluation: bool
    checkpoint: bool


class Run(Standing):
    """One run of `train`, and what its callbacks see of it.

    Attributes:
        step_losses: of each step, before it was resumed too; nan where one was skipped.
        evaluations: the same of these.
    """

    def __init__(
        self,
        model: GPTModel,
        state: ModelState,
        parts: Parts,
        config: TrainingConfig,
        *,
        run_dir: Path,
        tokenizer: Any,
        start: Mapping[str, Any],
        callbacks: Sequence[Callback],
        saved: SavedRun | None,
    ) -> None:
        super().__init__(config)
        self.model, self.tokenizer, self.run_dir = model, tokenizer, run_dir
        self.start, self.is_resumed = start, saved is not None
        self.tokens_per_step = parts.source.num_tokens_per_step
        self.step_losses: list[float] = []
        self.evaluations: list[Evaluation] = []
        self._tell = Telling(self, callbacks)
        self._parts, self._state, self._saved = parts, state, saved
        self._writer = CheckpointWriter(
            run_dir, keep_last=config.keep_last, keep_best=config.keep_best
        )
        world = parts.world
        if not world.is_sharded:  # A model that is cut into shards moves block by block.
            model.to(parts.device)
        self._step_loss = world.wrap(StepLoss(model), parts.precision)
        if saved is not None:
            state.load(saved.path, saved.tensors, world)
        has_masters = parts.precision.is_pure and not world.is_sharded
        self._masters = MasterWeights(model) if has_masters else None
        masters = {} if self._masters is None else self._masters.masters
        self._optimizers = Optimizers(model, config, parts.peak_learning_rate, masters)
        if saved is not None:
            self._stand_at(saved.state)
            self.step_losses, self.evaluations = read_history(run_dir, saved.step)
            restore(saved, parts, self._optimizers)
            saved.tensors.close()
        self._saved_step, self._saved_at_s = None if saved is None else saved.step, 0.0

    def to_the_end(self) -> str:
        """Trains; the reason why it ended. Whatever happens, the callbacks see an end.

        Raises:
            TrainingError: see `train`.
            CheckpointError: the last checkpoint cannot be written.
        """
        reason, world = "failed", self._parts.world
        world.most(self.step)  # All have read what is there before anything is written.
        if world.rank == 0:
            clean(self.run_dir)
        with freed_memory_kept(), self._prepared_model(), self._writer, stop_on_signals() as stop:
            self._tell.start()
            try:
                self._tell.parts(self._parts)
                if self._saved is not None:
                    self._tell.resumed(self._saved, self._parts)
                self._clock.start()
                self._saved_at_s = self.elapsed_s
                ended = self._train_until(stop)
                self._save_last()
                reason = ended
            finally:
                self.model.eval()
                self._tell.end(reason)
            if reason == stop.reason:
                self._tell.stopped(reason)
        return reason

    def _train_until(self, stop: StopRequest) -> str:
        """The reason why there is no further step."""
        if not self.is_resumed:
            self._evaluate()
        is_gpu = self._parts.device.type == "cuda"
        with PrefetchedSteps(self._parts.source, self.step, pin=is_gpu) as steps:
            while not self.is_finished:
                if (reason := self._stop_reason(stop)) is not None:
                    return reason
                if self.has_stopped_learning:
                    return "early stopping"
                self._train_step(next(steps))
                due = self._what_is_due()
                if due.schedule:
                    self._tell.schedule()
                is_best = due.evaluation and self._evaluate()
                is_stuck = self._progress.skipped_in_a_row > 0
                if is_best or (due.checkpoint and not is_stuck and self._is_sound()):
                    self._save()
                self._tell_what_was_written()
        return "finished"

    def _train_step(self, step: StepBatches) -> None:
        parts, progress = self._parts, self._progress
        self.model.train()
        learning_rate = learning_rate_at(
            progress.step,
            progress.num_steps,
            self.config,
            peak=parts.peak_learning_rate,
            last=parts.last_learning_rate,
        )
        loss = accumulate(self._step_loss, step, parts.device, parts.precision, parts.world)
        outcome = measure(loss, self._optimizers.gradients(), parts.world)
        progress.step += 1
        if outcome.problem is not None:
            self._skip(outcome.problem, learning_rate)
            return
        self._optimizers.step(learning_rate, outcome.grad_norm, self.config.max_grad_norm)
        if self._masters is not None:
            self._masters.publish()
        progress.skipped_in_a_row = 0
        progress.losses.append(outcome.loss)
        self.step_losses.append(outcome.loss)
        self._tell.step(
            StepRecord(
                step=progress.step,
                loss=outcome.loss,
                grad_norm=outcome.grad_norm,
                learning_rate=learning_rate,
                tokens=progress.step * self.tokens_per_step,
                seconds=self.elapsed_s,
            )
        )

    def _skip(self, problem: str, learning_rate: float) -> None:
        """Leaves the weights as they are; raises if that was so too often in a row."""
        progress = self._progress
        self._optimizers.zero_grad()
        self.step_losses.append(float("nan"))
        progress.skipped_in_a_row += 1
        progress.num_skipped += 1
        self._tell.event("skipped", why=problem, learning_rate=learning_rate)
        at = f"{problem} at step {progress.step:,}, with learning rate {learning_rate:.2g}"
        if progress.skipped_in_a_row <= self.config.max_skipped_steps:
            self._tell.message(f"{at}: the step is skipped")
            return
        skipped = f"steps skipped in a row: {progress.skipped_in_a_row}"
        raise TrainingError(f"{at}; {skipped}; {_named(self._last_good())}; {_TRY}")

    def _last_good(self) -> Path | None:
        """Where the run can go on from; on the first process, which writes it."""
        self._tell_what_was_written(wait=True)
        return self._writer.last_good or (self._saved and self._saved.path)

    # --- Between the steps ---

    def _stop_reason(self, stop: StopRequest) -> StopReason | None:
        """Why all are to stop, whichever of them was told to."""
        stop.reason = STOP_REASONS[self._parts.world.most(STOP_REASONS.index(stop.reason))]
        return stop.reason

    def _what_is_due(self) -> _Due:
        """By the clock of the first process: the others' differ."""
        is_settled = self._settles_num_steps()
        mine = _Due(
            self.num_steps, is_settled, self._evaluation_is_due(), self._checkpoint_is_due()
        )
        due = self._parts.world.first(mine)
        self._progress.num_steps = due.num_steps
        return due

    def _evaluate(self) -> bool:
        """Whether the model is the best so far."""
        parts, losses = self._parts, self._progress.losses
        tokens_per_s = self.tokens_per_step / self.step_s if self.step else None
        train_loss = sum(losses) / len(losses) if losses else None
        with self._clock.evaluating():
            self.model.eval()
            val_loss = validation_loss(
                self._step_loss, parts.held_out.batches, parts.device, parts.precision, parts.world
            )
            evaluation = Evaluation(
                step=self.step,
                progress=self.progress,
                tokens_seen=self.step * self.tokens_per_step,
                train_loss=train_loss,
                val_loss=val_loss,
                bits_per_byte=parts.held_out.bits_per_byte(val_loss),
                seconds=self.elapsed_s,
                tokens_per_s=tokens_per_s,
            )
            self.evaluations.append(evaluation)
            is_best = self._progress.note_evaluation(val_loss)
            self._tell.evaluation(evaluation)
            if math.isfinite(val_loss):  # NaN says nothing.
                self._write_samples()
        self._pass_shares()
        return is_best

    def _write_samples(self) -> None:
        prompts = list(self.config.sample_prompts)
        if not prompts or not self._tell:
            return
        generator = Generator(self.model, self.tokenizer)
        try:
            completions = generator(
                prompts,
                self.config.sample_tokens,
                temperature=SAMPLE_TEMPERATURE,
                seed=self.config.seed,
            )
        finally:
            generator.close()
        for prompt, completion in zip(prompts, completions, strict=True):
            self._tell.sample(Sample(step=self.step, prompt=prompt, text=completion.text))

    def _checkpoint_is_due(self) -> bool:
        return self.elapsed_s - self._saved_at_s >= 60 * self.config.checkpoint_minutes

    def _is_sound(self) -> bool:
        """Whether the weights are worth going on from: with NaN in them no step is taken again.

        The step that spoilt them had a finite loss itself: so a batch goes through the model.
        """
        parts, last = self._parts, self._progress.val_loss
        if last is not None and not math.isfinite(last):
            return False
        self.model.eval()
        batch = next(batch for batch in parts.held_out.batches if batch.num_targets)
        loss = validation_loss(self._step_loss, [batch], parts.device, parts.precision, parts.world)
        return math.isfinite(loss)

    def _save(self) -> None:
        world = self._parts.world
        if world.rank == 0 or world.peers is not None:
            self._writer.save(self._snapshot, best=self._progress.best_step)
        else:
            self._take_snapshot()
        self._saved_step, self._saved_at_s = self.step, self.elapsed_s

    def _snapshot(self) -> Writable:
        return cast(Writable, self._take_snapshot())

    def _take_snapshot(self) -> Writable | None:
        return take_snapshot(
            self.start,
            self._parts,
            self._state,
            self._optimizers,
            self._masters,
            self._progress,
            self._clock,
        )

    def _save_last(self) -> None:
        if self._saved_step != self.step:
            if self._is_sound():
                self._save()
            else:
                self._tell_unsound()
        problem = self._tell_what_was_written(wait=True)
        if problem is not None:
            raise CheckpointError(problem)
        if self._state.is_adapters and self._parts.world.rank == 0:
            steps = {step_of(path): path for path in checkpoints(self.run_dir)}
            best = steps.get(self._progress.best_step or self.step, steps[max(steps)])
            metadata = {"step": step_of(best), "training": self.start["config"]}
            self._state.export_merged(best, self.run_dir / RUN_FOLDER, metadata)

    def _tell_unsound(self) -> None:
        """The weights after the last step are not kept; raises if none were before them."""
        good = self._parts.world.first(self._last_good())
        said = (
            f"the model of step {self.step:,} is not saved, for its loss on held-out text is not "
            f"finite; {_named(good)}"
        )
        if good is None:
            raise TrainingError(f"{said}; {_TRY}")
        self._tell.message(said)

    def _tell_what_was_written(self, *, wait: bool = False) -> str | None:
        """What was wrong with the newest checkpoint, if it could not be written."""
        problem = None
        for written in self._writer.finished(wait=wait):
            self._tell.written(written)
            problem = written.problem
        return problem

    @contextmanager
    def _prepared_model(self) -> Iterator[None]:
        """The model as its blocks are computed; afterwards it is as it was, but for its weights."""
        if self.config.activation_checkpointing:
            checkpoint_blocks(self.model)
        if self._parts.compiles:
            compile_blocks(self.model, around=not self._parts.world.is_sharded)
        try:
            with seeded_dropout(self.model):
                yield
        finally:
            restore_blocks(self.model)
            if self._masters is not None:
                self._masters.give_back()


def _named(good: Path | None) -> str:
    return f"{good} is the last good checkpoint" if good else "no checkpoint was saved yet"
