"""`gptrs.train`: a model and data in, a trained model and the run's folder out.

    checks ─► Parts: what the run consists of ─► Run: the loop ─► TrainingResult

Into `run_dir` go `metrics.jsonl`, `checkpoints/`, which the run can go on from, and `checkpoint/`,
the model at its lowest validation loss. What was chosen by looking or measuring (device, dtype,
micro-batch, number of steps) is told, stands there too, and stays when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gptrs.errors import CheckpointError, ConfigError
from gptrs.files import obstacle
from gptrs.model.gpt import GPTModel
from gptrs.text.prompts import PromptReader
from gptrs.training.callbacks import Callback, Evaluation
from gptrs.training.checkpoint import (
    SavedRun,
    checkpoints,
    newest_run,
    newest_state,
    read_run,
)
from gptrs.training.config import TrainingConfig
from gptrs.training.data import Ids
from gptrs.training.model_state import ModelState
from gptrs.training.parts import Data, described, prepare
from gptrs.training.random_state import own_random
from gptrs.training.reports.log import MetricsLog
from gptrs.training.reports.metrics import METRICS_FILE
from gptrs.training.reports.progress import ProgressBar
from gptrs.training.resume import refuse_another_run, refuse_lost_checkpoints
from gptrs.training.run import Run
from gptrs.training.run_lock import locked
from gptrs.training.step import World
from gptrs.training.validation import Validation
from gptrs.training.world import joined
from gptrs.weights.manifest import CONFIG_FILE, RUN_FOLDER


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What `train` did. The model itself was trained in place."""

    evaluations: list[Evaluation]
    """All of the run, before it was resumed too."""
    step_losses: list[float]
    """Each step's training loss, before it was resumed too; nan where a step was skipped."""
    tokens_per_step: int
    unigram_loss: float | None
    """What a model that knows only how common each token is gets on the held-out tokens."""
    unigram_bits_per_byte: float | None
    reason: str
    """Why it ended: "finished", "early stopping", "interrupted" or "terminated"."""
    checkpoint: Path
    """The model at its lowest validation loss."""

    @property
    def last(self) -> Evaluation:
        """The last evaluation: after the last step, unless somebody stopped the run."""
        return self.evaluations[-1]

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped it, by Ctrl-C or SIGTERM."""
        return self.reason in ("interrupted", "terminated")


def train(
    model: GPTModel,
    data: Data,
    config: TrainingConfig | None = None,
    *,
    run_dir: str | Path,
    tokenizer: Any = None,
    validation: Validation | Ids | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    world: World | None = None,
    fine_tunes: bool = False,
) -> TrainingResult:
    """Trains `model` in place; Ctrl-C or SIGTERM ends it after the step, with a checkpoint of it.

    The result's `interrupted` says that they did: whoever has more to do asks for it.
    The model ends in eval mode and float32, on the device it was trained on. Python's, NumPy's and
    torch's random number generators start from the seed, and are left as they were.

    Args:
        data: ids in 0..vocab_size - 1, a list, tensor or array [N], of which uint16 and uint32 are
            not copied; or a store; or a source of batches.
        config: None: the defaults, or with `resume` what the run was begun with.
        run_dir: where the run is written; made if missing.
        tokenizer: saved with the checkpoints, and needed for bits per byte and sample_prompts. Its
            ids are all in the model's vocabulary.
        validation: tokens or a store to validate on, or batches for a source of batches; None holds
            out the last part of `data`.
        callbacks: are told what happens, after `metrics.jsonl` and the progress bar.
        resume: go on from the newest good checkpoint in `run_dir`, or begin if the run was stopped
            before its first. On the same machine, with as many threads, the run becomes what it
            would have been, to the bit.
        world: the processes that train together; None: those that torchrun started, or this one
            alone, as `parallel` of the config says. In each of them `train` is called alike. With
            parallel="fsdp" the model is left in shards: take it from the checkpoint.
        fine_tunes: the model's weights have learned already: unless the config has a learning rate,
            it is a tenth of what it would be from nothing. Adapters keep that, being new.
    Raises:
        ConfigError: a setting is impossible here, the tokenizer cannot be saved, `run_dir` has
            a run already, or the one to resume is of another model, data, validation or vocabulary.
        DataError: too few tokens for one window of the model's context_length.
        TokenIdError: a token id is outside the model's vocabulary.
        CheckpointError: `run_dir` or the last checkpoint cannot be written, or all checkpoints to
            resume from are damaged or gone.
        TrainingError: the loss or the gradient was not finite for several steps, or to the end
            with nothing saved, or memory ran out; the message names the last good checkpoint, or
            says what to lower. Or another process trains in `run_dir`.
    """
    run_dir = Path(run_dir)
    if not isinstance(config, TrainingConfig | None):
        raise ConfigError(
            f"config is a TrainingConfig; found {type(config).__name__}: "
            "TrainingConfig(**settings) makes one"
        )
    check_folder(run_dir, resume=resume)
    if config is None:
        state = newest_state(run_dir) if resume else None
        config = TrainingConfig() if state is None else TrainingConfig.of(state["config"])
    group = nullcontext(world) if world is not None else joined(config)
    with group as world, locked(run_dir, world):
        return train_locked(
            model,
            data,
            config,
            run_dir=run_dir,
            tokenizer=tokenizer,
            validation=validation,
            callbacks=callbacks,
            resume=resume,
            world=world,
            fine_tunes=fine_tunes,
        )


def train_locked(
    model: GPTModel,
    data: Data,
    config: TrainingConfig,
    *,
    run_dir: Path,
    tokenizer: Any,
    validation: Validation | Ids | None,
    callbacks: Sequence[Callback],
    resume: bool,
    world: World,
    fine_tunes: bool,
) -> TrainingResult:
    """`train` in a folder that the caller has `locked`, so that what it prepares is safe too."""
    if not isinstance(model, GPTModel):
        raise ConfigError(f"train takes a GPTModel, not wrapped; found {type(model).__name__}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(f"a callback is a gptrs.Callback; found {callback!r}")
    check_folder(run_dir, resume=resume)
    saved = _newest(run_dir, world) if resume else None
    if resume and saved is None and world.rank == 0:
        tqdm.write(f"{run_dir}: no checkpoint yet: it begins anew")
    _check_same_start(saved, run_dir, world)
    model.float()  # Small steps are lost in narrower weights, whatever is computed in.
    state = ModelState(model, tokenizer, run_dir / RUN_FOLDER)
    chosen = None if saved is None else saved.state["chosen"]
    parts = prepare(
        model, data, validation, config, tokenizer, world, chosen, fine_tunes=fine_tunes
    )
    _check_sample_prompts(config, tokenizer)
    start = described(parts, model, config, tokenizer)
    if saved is not None:
        refuse_another_run(saved.state, start)
    standard: list[Callback] = [MetricsLog(), ProgressBar()]
    with own_random(config.seed + world.rank, parts.device):
        run = Run(
            model,
            state,
            parts,
            config,
            run_dir=run_dir,
            tokenizer=tokenizer,
            start=start,
            callbacks=[*standard, *callbacks] if world.rank == 0 else [],
            saved=saved,
        )
        reason = run.to_the_end()
    return TrainingResult(
        evaluations=run.evaluations,
        step_losses=run.step_losses,
        tokens_per_step=run.tokens_per_step,
        unigram_loss=parts.held_out.unigram_loss,
        unigram_bits_per_byte=parts.held_out.bits_per_byte(parts.held_out.unigram_loss),
        reason=reason,
        checkpoint=run_dir / RUN_FOLDER,
    )


def _check_sample_prompts(config: TrainingConfig, tokenizer: Any) -> None:
    """Before anything is trained: whether they can be read.

    Raises:
        ConfigError: there is no tokenizer.
        GptrsError: one has no tokens, or what the tokenizer does not know.
    """
    if not config.sample_prompts:
        return
    if tokenizer is None:
        raise ConfigError("sample_prompts are texts, which need a tokenizer: there is none")
    PromptReader(tokenizer).many(list(config.sample_prompts))


def _newest(run_dir: Path, world: World) -> SavedRun | None:
    """The checkpoint to go on from. The first process looks whether it is good, for all.

    Raises:
        CheckpointError: all are damaged, or one is of a newer format; or somebody cannot read it.
    """
    saved, problem = None, ""
    if world.rank == 0:
        try:
            saved = newest_run(run_dir, tqdm.write)
        except CheckpointError as error:
            problem = str(error)
    problem, path = world.first((problem, None if saved is None else saved.path))
    if problem:
        raise CheckpointError(problem)
    if world.rank == 0 or path is None:
        return saved
    try:
        return read_run(path, is_good=True)
    except CheckpointError:
        return None


def has_run(run_dir: Path) -> bool:
    """Whether a run was begun there."""
    files = (run_dir / METRICS_FILE, run_dir / RUN_FOLDER / CONFIG_FILE)
    return any(file.exists() for file in files) or bool(checkpoints(run_dir))


def check_folder(run_dir: Path, *, resume: bool) -> None:
    """Whether a run can be written to `run_dir`.

    Raises:
        ConfigError: it has a run already; or with `resume`, it has none.
        CheckpointError: nothing can be written there; or the checkpoints to resume from are gone.
    """
    if resume and not has_run(run_dir):
        raise ConfigError(f"{run_dir}: there is no run to resume")
    if resume:
        refuse_lost_checkpoints(run_dir)
    if not resume and has_run(run_dir):
        raise ConfigError(
            f"{run_dir}: has a run already: resume it (gptrs train --resume {run_dir}), or choose "
            "another folder"
        )
    if (there := obstacle(run_dir)) is not None:
        raise CheckpointError(f"{run_dir}: cannot be written: {there} is no folder to write to")


def _check_same_start(saved: SavedRun | None, run_dir: Path, world: World) -> None:
    """Raises CheckpointError if not all processes see the same checkpoint to go on from."""
    step = None if saved is None else saved.step
    first = world.first(step)
    if world.most(int(first != step)):
        raise CheckpointError(
            f"{run_dir}: process {world.rank} would begin at step {step or 0:,}, the first one at "
            f"step {first or 0:,}: all machines have to see the same folder"
        )
