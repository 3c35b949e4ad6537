"""Going on with a run: is there a way, is it the same run, and what was written down until then."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptrs.errors import CheckpointError, ConfigError
from gptrs.training.callbacks import Evaluation
from gptrs.training.checkpoint import FOLDER, checkpoints
from gptrs.training.reports.metrics import METRICS_FILE
from gptrs.weights.manifest import CONFIG_FILE, RUN_FOLDER

# What has to be the same: otherwise the weights, the order of the data, or the lowest validation
# loss mean nothing here.
_SAME = ("model", "data", "validation", "vocabulary")


def refuse_lost_checkpoints(run_dir: Path) -> None:
    """Raises CheckpointError if a run had checkpoints and has none to go on from.

    To begin anew, as is done before the first one, would overwrite what is left.
    """
    if checkpoints(run_dir):
        return
    left, way = [], "begin anew in another folder"
    if (run_dir / RUN_FOLDER / CONFIG_FILE).exists():
        left.append(f"the model in {RUN_FOLDER}/")
        way = f"begin another run from that model with --init {run_dir}, or {way}"
    steps = [record.get("step") for record in _records(run_dir) if record["event"] == "checkpoint"]
    if steps:
        left.append(f"{METRICS_FILE}, which has the checkpoint of step {steps[-1]}")
    if left:
        raise CheckpointError(
            f"{run_dir}: there is nothing in {FOLDER}/ to go on from, and to begin anew would "
            f"overwrite {' and '.join(left)}: {way}"
        )


def refuse_another_run(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises ConfigError if a checkpoint is of another model, store or vocabulary, and says how.

    Or if what it is validated on is something else; checkpoints of older versions do not know that.

    Also if it has more steps than are asked for: the weights of an earlier step are not in it.
    """
    differing = [
        difference
        for name in _SAME
        if name in saved
        for difference in _differences(name, saved.get(name), here.get(name))
    ]
    if differing:
        raise ConfigError(f"this is not the run that was begun: {'; '.join(differing)}")
    done, asked = saved["progress"]["step"], here["config"]["steps"]
    if asked is not None and asked < done:
        raise ConfigError(
            f"steps is {asked:,}, and the run has done {done:,}, which cannot be taken back: ask "
            f"for {done:,} or more, or begin another run"
        )


def changed_settings(saved: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that a run goes on with otherwise than it began: [before, now] by name."""
    before, now = (json.loads(json.dumps(config)) for config in (saved, here))
    return {name: [before.get(name), now[name]] for name in now if before.get(name) != now[name]}


def _differences(name: str, saved: Any, here: Any) -> list[str]:
    if not isinstance(saved, Mapping) or not isinstance(here, Mapping):
        return [] if saved == here else [f"its {name} was {saved!r}, here it is {here!r}"]
    return [
        f"its {name}'s {key} was {saved.get(key)!r}, here it is {here.get(key)!r}"
        for key in {**saved, **here}
        if saved.get(key) != here.get(key)
    ]


def read_history(run_dir: Path, step: int) -> tuple[list[float], list[Evaluation]]:
    """The losses of the steps up to `step`, nan for one that was skipped; and the evaluations.

    What metrics.jsonl does not have is left out: the run itself needs none of it.
    """
    losses: dict[int, float] = {}
    evaluations: dict[int, Evaluation] = {}
    for record in _records(run_dir):
        event = record.pop("event")
        try:
            if record.get("step", step + 1) > step:
                continue
            if event == "step":
                losses[record["step"]] = float(record["loss"])
            elif event == "evaluation":
                if record["val_loss"] is None:  # JSON has no NaN.
                    record["val_loss"] = math.nan
                evaluations[record["step"]] = Evaluation(**record)
        except (ValueError, KeyError, TypeError):
            continue  # Not a record of ours.
    history = [losses.get(number, float("nan")) for number in range(1, step + 1)]
    return history, [evaluations[number] for number in sorted(evaluations)]


def _records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl, as far as they are whole; a disk may have been full."""
    try:
        lines = (run_dir / METRICS_FILE).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            yield record
