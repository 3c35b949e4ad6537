"""What runs wrote down, read again for pictures. No torch here.

a run's metrics.jsonl          ─► the losses of its steps and evaluations
a classifier's metrics.json    ─► its confusion matrix
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gptrs.errors import SourceError
from gptrs.plots import LossCurve

METRICS_FILE = "metrics.jsonl"
CLASSIFIER_FILE = "metrics.json"
"""What `gptrs finetune-classifier` writes."""


class Confusion(NamedTuple):
    """What a classifier takes for what."""

    matrix: npt.NDArray[np.int64]
    """[K, K], a row a class, a column what its texts were taken for."""
    classes: list[str]


def read_losses(path: str | Path) -> LossCurve:
    """The losses of a run; of a step that was taken twice, the second.

    Args:
        path: the run's folder, or its `metrics.jsonl`. A run that still goes on is read up to its
            last whole line.
    Raises:
        SourceError: there is no such run, a line is no record of one, or it has no losses yet.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path}: no such run")
    if path.is_dir() and not (path / METRICS_FILE).exists():
        raise SourceError(f"{path}: is no run, there is no {METRICS_FILE} in it")
    file = path / METRICS_FILE if path.is_dir() else path
    losses: dict[int, float] = {}
    evaluations: dict[int, tuple[float, int]] = {}
    for number, record in _records(file):
        try:
            if record["event"] == "step":
                losses[record["step"]] = float(record["loss"])
            elif record["event"] == "evaluation":
                found = float(record["val_loss"]), int(record["tokens_seen"])
                evaluations[record["step"]] = found
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{file}: line {number} is no record of a run: {type(error).__name__} {error}"
            ) from error
    if not losses and not evaluations:
        raise SourceError(f"{file}: has no losses: the run has not taken a step")
    seen = [(step, tokens) for step, (_, tokens) in evaluations.items() if step]
    return LossCurve(
        step_losses=[losses[step] for step in sorted(losses)],
        val_steps=list(evaluations),
        val_losses=[loss for loss, _ in evaluations.values()],
        tokens_per_step=seen[-1][1] // seen[-1][0] if seen else None,
    )


def read_confusion(directory: str | Path) -> Confusion:
    """The confusion matrix of a classifier's held-out texts.

    Args:
        directory: what `gptrs finetune-classifier` wrote.
    Raises:
        SourceError: there is no such folder, or it is another's; or no texts were held out.
    """
    file = Path(directory) / CLASSIFIER_FILE
    if not file.is_file():
        raise SourceError(f"{directory}: is no classifier's folder, there is no {CLASSIFIER_FILE}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        matrix = np.array(content["confusion"], dtype=np.int64)
        classes = list(content["classes"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{file}: no metrics of a classifier: {error}") from error
    if matrix.shape != (len(classes), len(classes)):
        raise SourceError(f"{file}: {len(classes)} classes, and a matrix of {matrix.shape}")
    if not matrix.any():
        raise SourceError(f"{file}: no texts were held out, so there is nothing to draw")
    return Confusion(matrix, classes)


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    """The lines, numbered from 1, as objects."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file}: cannot be read: {error}") from error
    *lines, last = content.split("\n")
    # Behind the last line end is nothing, or what a run is just writing.
    del last
    for number, line in enumerate(lines, start=1):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(f"{file}: line {number} is not JSON: {error}") from error
