"""A run from the outside: its numbered folder, and what is told when it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, GptrsError
from gptrs.files import obstacle
from gptrs.model.gpt import GPTModel
from gptrs.text.corpus import Tokens
from gptrs.training.callbacks import Callback, Evaluation
from gptrs.training.config import TrainingConfig
from gptrs.training.reports.reports import RunReports
from gptrs.training.trainer import TrainingResult, train


def train_in_new_run(
    runs_dir: str | Path,
    name: str,
    model_config: GPTConfig,
    tokens: Tokens,
    config: TrainingConfig,
    *,
    tokenizer: Any,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Trains a new model in `runs_dir/name-001`, or the next free number, and says how it went.

    The run gets samples.md, loss.png and report.html, also if it is interrupted.

    Args:
        callbacks: are told what happens as the run goes, before the report is written.
    Raises:
        DataError, TokenIdError, ConfigError, TrainingError: see `train`; with the first three no
            folder of the run is left.
        CheckpointError: no run can be written to `runs_dir`.
    """
    check_runs_dir(runs_dir)
    torch.manual_seed(config.seed)
    model = GPTModel(model_config)
    run_dir = next_run_dir(runs_dir, name)
    try:
        result = train(
            model,
            tokens,
            config,
            run_dir=run_dir,
            tokenizer=tokenizer,
            callbacks=[*callbacks, RunReports()],
        )
    except GptrsError:
        with suppress(OSError):
            run_dir.rmdir()  # Only if it is empty, because nothing came of the run.
        raise
    if not result.interrupted:
        print_summary(result, config)
    return result


def check_runs_dir(runs_dir: str | Path) -> None:
    """Whether there can be new runs in `runs_dir`: asked before anything takes time.

    Raises:
        CheckpointError: nothing can be written there.
    """
    if (there := obstacle(Path(runs_dir))) is not None:
        raise CheckpointError(
            f"--runs {runs_dir}: cannot be written: {there} is no folder to write to"
        )


def next_run_dir(runs_dir: str | Path, name: str) -> Path:
    """Makes `runs_dir/name-001`, or the first number that is free.

    Raises:
        CheckpointError: it cannot be made.
    """
    for number in itertools.count(1):
        run_dir = Path(runs_dir) / f"{name}-{number:03d}"
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            why = error.strerror or error
            raise CheckpointError(f"--runs {runs_dir}: {run_dir} cannot be made: {why}") from error
        return run_dir
    raise AssertionError("itertools.count ends")


def print_summary(result: TrainingResult, config: TrainingConfig) -> None:
    """Prints what was reached, beside what a model that ignores all context would reach.

    The first row is the model that the run's folder has; where that is not the last one, the last
    one has a row too, and a run that was stopped early says so.
    """
    last, kept = result.last, _kept(result, config)
    if result.reason == "early stopping":
        print(f"\n{_stopped_early(result, config)}")
    print(
        f"\n{last.step:,} steps, {last.tokens_seen:,} tokens, in {last.seconds:.0f} s: "
        f"{last.tokens_per_s:,.0f} tokens/s without the evaluations\n\n"
        f"{'on the held-out text':36}nats per token   bits per byte"
    )
    rows = [
        ("knowing only how common tokens are", result.unigram_loss, result.unigram_bits_per_byte)
    ]
    if kept.step == last.step:
        rows.insert(0, ("this model", last.val_loss, last.bits_per_byte))
    else:
        rows.insert(0, ("after the last step, not kept", last.val_loss, last.bits_per_byte))
        named = f"this model, the best: step {kept.step:,}"
        rows.insert(0, (named, kept.val_loss, kept.bits_per_byte))
    for label, loss, bits in rows:
        if loss is None:
            continue
        print(f"{label:36}{loss:14.3f}{'' if bits is None else f'{bits:16.3f}'}")
    print()


def _kept(result: TrainingResult, config: TrainingConfig) -> Evaluation:
    """The evaluation of the model in `result.checkpoint`."""
    trained = [evaluation for evaluation in result.evaluations if evaluation.step]
    if not config.keep_best or not trained:
        return result.last
    return min(trained, key=lambda evaluation: evaluation.val_loss)


def _stopped_early(result: TrainingResult, config: TrainingConfig) -> str:
    losses = [evaluation.val_loss for evaluation in result.evaluations if evaluation.step]
    since_best = len(losses) - 1 - losses.index(min(losses))
    of_all = "" if config.steps is None else f" of {config.steps:,}"
    return (
        f"stopped early after step {result.last.step:,}{of_all}: no new lowest loss in "
        f"{since_best} evaluation{'s' * (since_best != 1)}"
    )


def print_stream(pieces: Iterable[str], prompt: str) -> str:
    """Prints `prompt` and the pieces as they come; returns the pieces joined."""
    print(prompt, end="", flush=True)
    written = []
    for piece in pieces:
        print(piece, end="", flush=True)
        written.append(piece)
    print()
    return "".join(written)
