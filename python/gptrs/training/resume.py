"""Going on with a run: is it the same run, and what was written down until its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptrs.errors import ConfigError
from gptrs.training.callbacks import Evaluation
from gptrs.training.reports.metrics import METRICS_FILE

# What has to be the same: otherwise the weights, or the order of the data, mean nothing here.
_SAME = ("model", "data", "vocabulary")


def refuse_another_run(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises ConfigError if a checkpoint is of another model, store or vocabulary, and says how.

    Also if it has more steps than are asked for: the weights of an earlier step are not in it.
    """
    differing = [
        difference
        for name in _SAME
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
    try:
        lines = (run_dir / METRICS_FILE).read_text("utf-8").split("\n")
    except OSError:
        lines = []
    for line in lines:
        try:
            record = json.loads(line)
            event = record.pop("event")
            if record.get("step", step + 1) > step:
                continue
            if event == "step":
                losses[record["step"]] = float(record["loss"])
            elif event == "evaluation":
                evaluations[record["step"]] = Evaluation(**record)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # Half of a line, from a disk that was full.
    history = [losses.get(number, float("nan")) for number in range(1, step + 1)]
    return history, [evaluations[number] for number in sorted(evaluations)]
