"""A run from the outside: its numbered folder, and what is told when it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gptrs.config import GPTConfig
from gptrs.errors import GptrsError
from gptrs.model.gpt import GPTModel
from gptrs.text.corpus import Tokens
from gptrs.training.callbacks import Callback
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
    """
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
        print_summary(result)
    return result


def next_run_dir(runs_dir: str | Path, name: str) -> Path:
    """Makes `runs_dir/name-001`, or the first number that is free."""
    for number in itertools.count(1):
        run_dir = Path(runs_dir) / f"{name}-{number:03d}"
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        return run_dir
    raise AssertionError("itertools.count ends")


def print_summary(result: TrainingResult) -> None:
    """Prints what was reached, beside what a model that ignores all context would reach."""
    last = result.last
    print(
        f"\n{last.step:,} steps, {last.tokens_seen:,} tokens, in {last.seconds:.0f} s: "
        f"{last.tokens_per_s:,.0f} tokens/s without the evaluations\n\n"
        f"{'on the held-out text':36}nats per token   bits per byte"
    )
    rows = (
        ("this model", last.val_loss, last.bits_per_byte),
        ("knowing only how common tokens are", result.unigram_loss, result.unigram_bits_per_byte),
    )
    for label, loss, bits in rows:
        if loss is None:
            continue
        print(f"{label:36}{loss:14.3f}{'' if bits is None else f'{bits:16.3f}'}")
    print()


def print_stream(pieces: Iterable[str], prompt: str) -> str:
    """Prints `prompt` and the pieces as they come; returns the pieces joined."""
    print(prompt, end="", flush=True)
    written = []
    for piece in pieces:
        print(piece, end="", flush=True)
        written.append(piece)
    print()
    return "".join(written)
