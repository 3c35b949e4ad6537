"""metrics.jsonl: what a run tells programs, an event a line. `metrics` reads it again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gptrs.errors import TrainingError
from gptrs.files import write_whole
from gptrs.training.callbacks import Callback
from gptrs.training.reports.metrics import METRICS_FILE
from gptrs.training.reports.speed import RunSpeed

if TYPE_CHECKING:
    from gptrs.training.callbacks import Evaluation, RunView, Sample, StepRecord


class MetricsLog(Callback):
    """Writes `metrics.jsonl` in the run's folder, a JSON object a line, each in one piece.

    A number that is not finite is null there, for JSON has none. It is only evaluations that have
    such: a step is skipped instead.

    A run that goes on finds what was written behind its checkpoint dropped, and its end with it: so
    the file of a run that was stopped and resumed differs from that of one that never was by times
    and by the lines "resumed".
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = None

    def on_start(self, run: RunView) -> None:
        """Opens the file; the events start and device, unless the run goes on."""
        run.run_dir.mkdir(parents=True, exist_ok=True)
        file = run.run_dir / METRICS_FILE
        goes_on = run.is_resumed and file.exists()
        if goes_on:
            drop_behind(file, run.step)
        self._stream = file.open("a" if goes_on else "w", encoding="utf-8")
        if not goes_on:
            self._write("start", run.start)
            self._write("device", RunSpeed.of(run).to_dict())

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """The event step."""
        self._write("step", asdict(record))

    def on_evaluation(self, run: RunView, evaluation: Evaluation) -> None:
        """The event evaluation."""
        self._write("evaluation", asdict(evaluation))

    def on_sample(self, run: RunView, sample: Sample) -> None:
        """The event sample."""
        self._write("sample", asdict(sample))

    def on_event(self, run: RunView, event: str, values: Mapping[str, Any]) -> None:
        """Any other event, as it is."""
        self._write(event, values)

    def on_end(self, run: RunView, reason: str) -> None:
        """The event end; closes the file."""
        self._write("end", {"step": run.step, "reason": reason})
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        if self._stream is None:  # What failed before the run began.
            return
        record = _without_nan({"event": event, **values})
        try:
            self._stream.write(json.dumps(record, allow_nan=False) + "\n")
            self._stream.flush()  # Whoever is killed has written what was done.
        except OSError as error:
            file = Path(self._stream.name)
            with suppress(OSError):
                self._stream.close()
            self._stream = None
            raise TrainingError(
                f"{file} cannot be written: {error.strerror or error}; once it can, `gptrs train "
                f"--resume {file.parent}` goes on from the newest checkpoint"
            ) from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list | tuple) else value


def drop_behind(file: Path, step: int) -> None:
    """Keeps the lines of `file` up to `step`: not those of later steps, no end, no half line."""
    *lines, _ = file.read_bytes().split(b"\n")
    kept = [line for line in lines if _is_kept(line, step)]
    write_whole(file, b"".join(line + b"\n" for line in kept))


def _is_kept(line: bytes, step: int) -> bool:
    try:
        record = json.loads(line)
        return record["event"] != "end" and int(record.get("step", 0)) <= step
    except (ValueError, TypeError, KeyError):
        return False  # Half of a line, from a disk that was full.
