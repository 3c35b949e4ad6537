"""What runs wrote down, read again: for pictures, reports and comparisons. No torch here.

    a run's metrics.jsonl          ─► RunMetrics: its start, steps, evaluations, samples and end
                                      └─► the losses of its steps and evaluations
    a classifier's metrics.json    ─► its confusion matrix

A line of metrics.jsonl is a JSON object that says which "event" it is; events and values that are
not known here are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gptrs.errors import SourceError
from gptrs.plots import LossCurve

METRICS_FILE = "metrics.jsonl"
CLASSIFIER_FILE = "metrics.json"
"""What `gptrs finetune-classifier` writes."""

STEP_VALUES = ("loss", "grad_norm", "learning_rate", "tokens", "seconds")
"""What is kept of a step, as far as the run wrote it."""


@dataclass(slots=True)
class RunMetrics:
    """A run as its metrics.jsonl tells it. Of what was done twice, the second counts."""

    file: Path
    start: dict[str, Any] = field(default_factory=dict)
    """What was known before the first step: config, model, device, data."""
    device: dict[str, Any] = field(default_factory=dict)
    """Its name, its peak, and what a token costs: what MFU is reckoned from."""
    steps: list[int] = field(default_factory=list)
    """The numbers of the steps taken, rising."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """Of each step, in the same order: those of `STEP_VALUES` that every step has."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """In the order of their steps; each has step, val_loss and tokens_seen at least."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Texts that were written on the way: step, prompt and text."""
    num_steps: int | None = None
    """How many steps the run has in all, where that is known."""
    num_skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    num_resumed: int = 0
    end: str | None = None
    """Why the run ended; None while it goes on, or if it was killed."""

    @property
    def name(self) -> str:
        """The name of the run's folder, with "?" for what no text can have."""
        return self.file.resolve().parent.name.encode(errors="replace").decode()

    @property
    def last_step(self) -> int:
        """How far the run is."""
        evaluated = self.evaluations[-1]["step"] if self.evaluations else 0
        return int(max(self.steps[-1] if self.steps else 0, evaluated))

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens in a batch; None if nothing tells."""
        seen = [(e["step"], e["tokens_seen"]) for e in self.evaluations if e["step"]]
        if seen:
            step, tokens = seen[-1]
            return int(tokens) // int(step)
        known = self.start.get("tokens_per_step")
        return None if known is None else int(known)

    @property
    def seconds(self) -> float | None:
        """How long the run has been going, evaluations included; None if nothing tells."""
        known = [float(e["seconds"]) for e in self.evaluations[-1:] if "seconds" in e]
        known += self.values.get("seconds", [])[-1:]
        return max(known, default=None)

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest validation loss; None before the first that is finite."""
        finite = [each for each in self.evaluations if math.isfinite(each["val_loss"])]
        return min(finite, key=lambda evaluation: evaluation["val_loss"], default=None)

    def mfu(self, tokens_per_s: float) -> float | None:
        """The share of the device's peak that so many tokens/s use; None: it is unknown."""
        peak = self.device.get("peak_flops_per_s")
        if not peak:
            return None
        flops = float(self.device["training_flops_per_token"])
        return tokens_per_s * flops / (float(peak) * int(self.device.get("num_devices", 1)))

    @property
    def curve(self) -> LossCurve:
        """The losses, for a picture."""
        evaluations = self.evaluations
        timed = all("seconds" in evaluation for evaluation in evaluations)
        return LossCurve(
            step_losses=self.values.get("loss", []),
            steps=self.steps,
            step_seconds=self.values.get("seconds"),
            val_steps=[evaluation["step"] for evaluation in evaluations],
            val_losses=[evaluation["val_loss"] for evaluation in evaluations],
            val_seconds=[float(e["seconds"]) for e in evaluations] if timed else None,
            tokens_per_step=self.tokens_per_step,
        )


class Confusion(NamedTuple):
    """What a classifier takes for what."""

    matrix: npt.NDArray[np.int64]
    """[K, K], a row a class, a column what its texts were taken for."""
    classes: list[str]


def read_run(path: str | Path) -> RunMetrics:
    """What the run in `path` has written down so far, up to its last whole line.

    Args:
        path: the run's folder, or its `metrics.jsonl`.
    Raises:
        SourceError: there is no such run, or a line is no record of one.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path}: no such run")
    if path.is_dir() and not (path / METRICS_FILE).exists():
        raise SourceError(f"{path}: is no run, there is no {METRICS_FILE} in it")
    reader = _Reader(path / METRICS_FILE if path.is_dir() else path)
    for number, record in _records(reader.run.file):
        try:
            reader.take(record)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{reader.run.file}: line {number} is no record of a run: "
                f"{type(error).__name__} {error}"
            ) from error
    return reader.finish()


def read_losses(path: str | Path) -> LossCurve:
    """The losses of a run; of a step that was taken twice, the second.

    Raises:
        SourceError: there is no such run, a line is no record of one, or it has no losses yet.
    """
    run = read_run(path)
    if not run.steps and not run.evaluations:
        raise SourceError(f"{run.file}: has no losses: the run has not taken a step")
    return run.curve


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


class _Reader:
    """Builds a RunMetrics from records, in the order in which they were written."""

    def __init__(self, file: Path) -> None:
        self.run = RunMetrics(file)
        self._steps: dict[int, tuple[float | None, ...]] = {}
        self._evaluations: dict[int, dict[str, Any]] = {}
        self._samples: dict[tuple[int, str], dict[str, Any]] = {}

    def take(self, record: dict[str, Any]) -> None:
        event = record["event"]
        if event == "step":
            float(record["loss"])  # Without it there is nothing to draw.
            self._steps[int(record["step"])] = tuple(map(record.get, STEP_VALUES))
        elif event == "evaluation":
            step = int(record["step"])
            self._evaluations[step] = record | {
                "step": step,
                "val_loss": math.nan if (loss := record["val_loss"]) is None else float(loss),
                "tokens_seen": int(record["tokens_seen"]),
            }
        elif event == "sample":
            self._samples[int(record["step"]), str(record["prompt"])] = record
        elif event == "start":
            self.run.start = record
            self.run.num_steps = (record.get("config") or {}).get("steps")
        elif event == "device":
            self.run.device = record
        elif event == "schedule":
            self.run.num_steps = int(record["num_steps"])
        elif event == "skipped":
            self.run.num_skipped += 1
        elif event == "resumed":
            self.run.num_resumed += 1
            self._change(record.get("changed") or {})
        # Whatever comes after an end, the run goes on.
        self.run.end = str(record.get("reason", "finished")) if event == "end" else None

    def _change(self, changed: dict[str, Any]) -> None:
        """A run that goes on may be told otherwise: each setting as it was, and as it is now."""
        config = self.run.start.get("config") or {}
        now = {name: new for name, (_, new) in changed.items() if name in config}
        self.run.start["config"] = config | now
        self.run.num_steps = now.get("steps", self.run.num_steps)

    def finish(self) -> RunMetrics:
        run = self.run
        run.steps = sorted(self._steps)
        columns = zip(*(self._steps[step] for step in run.steps), strict=True)
        for name, column in zip(STEP_VALUES, columns, strict=False):
            if None not in column:
                run.values[name] = [float(x) for x in column if x is not None]
        run.evaluations = [self._evaluations[step] for step in sorted(self._evaluations)]
        run.samples = list(self._samples.values())
        return run


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
