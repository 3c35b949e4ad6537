"""The command `gptrs runs`: what runs have reached, from what they wrote down. No torch.

    DIR...  ─►  every folder below with a metrics.jsonl  ─►  a line each, and what was set otherwise

A run writes no "end" when it is killed. So it counts as running while its file is young, and as
stopped once nothing was written for long: for `_SILENT_STEPS` of its steps, and ten minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptrs.errors import SourceError
from gptrs.tables import align
from gptrs.weights.missing import no_such_path

if TYPE_CHECKING:
    from gptrs.training.reports.metrics import RunMetrics

_SILENT_S, _SILENT_STEPS = 600, 20

Row = dict[str, Any]


def _count(count: float) -> str:
    """To three digits, from 1,000 on with a unit: 15.4k."""
    if count < 1000:
        return f"{count:.0f}"
    for unit in ("k", "M", "B"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g}{unit}"
    return f"{count / 1000:.3g}T"


def _time(minutes: float) -> str:
    """To three digits, in the unit that suits it."""
    if minutes < 2:
        return f"{60 * minutes:.3g} s"
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes / 60:,.3g} h"


# Each column: its key, its title, how a value is written.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("run", "run", str),
    ("state", "state", str),
    ("steps", "steps", "{:,}".format),
    ("tokens", "tokens", _count),
    ("val_loss", "val loss", "{:.3f}".format),
    ("best_val_loss", "best", "{:.3f}".format),
    ("bits_per_byte", "bits/byte", "{:.3f}".format),
    ("tokens_per_s", "tokens/s", "{:,.0f}".format),
    ("mfu", "MFU", "{:.0%}".format),
    ("parameters", "parameters", _count),
    ("minutes", "time", _time),
)
_HIGHEST_FIRST = ("steps", "tokens", "tokens_per_s", "mfu", "parameters", "minutes")


@click.command()
@click.argument("directories", nargs=-1, metavar="[DIR...]", type=click.Path(path_type=Path))
@click.option("--sort", "key", type=click.Choice([key for key, _, _ in _COLUMNS]), default="run",
              show_default=True, help="By which column; losses from the lowest, counts from the "
              "highest.")  # fmt: skip
@click.option("--settings", is_flag=True, help="Also what the runs were told differently.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list, with all settings.")
def runs(directories: tuple[Path, ...], key: str, settings: bool, as_json: bool) -> None:
    """List runs and compare what they have reached.

    A DIR is a run or a folder with runs in it, however deep; by default `runs`. Loss is in nats per
    token, and can be compared where tokenizers are the same; bits per byte always can, on the same
    text. The bits per byte are the best evaluation's.
    """
    found = list(_find(directories or (Path("runs"),)))
    rows = [summary(run) for run in found]
    order = _order([row[key] for row in rows], highest_first=key in _HIGHEST_FIRST)
    rows, found = [rows[i] for i in order], [found[i] for i in order]
    if as_json:
        everything = zip(rows, found, strict=True)
        content = [row | {"settings": all_settings(run)} for row, run in everything]
        click.echo(json.dumps(content, indent=2))
        return
    click.echo("\n".join(_table(rows)))
    if settings:
        lines = _differences([row["run"] for row in rows], [all_settings(run) for run in found])
        click.echo("\n" + "\n".join(lines))


def summary(run: RunMetrics) -> Row:
    """What a run has reached: the values of the columns, None where nothing tells."""
    last = run.evaluations[-1] if run.evaluations else {}
    best = run.best or {}
    tokens = run.tokens_per_step
    speeds = [e["tokens_per_s"] for e in run.evaluations if e.get("tokens_per_s")]
    return {
        "run": str(run.file.parent),
        "state": state(run),
        "steps": run.last_step,
        "tokens": None if tokens is None else run.last_step * tokens,
        "val_loss": last.get("val_loss"),
        "best_val_loss": best.get("val_loss"),
        "bits_per_byte": best.get("bits_per_byte"),
        "tokens_per_s": speeds[-1] if speeds else None,
        "mfu": run.mfu(speeds[-1]) if speeds else None,
        "parameters": run.start.get("num_parameters"),
        "minutes": None if run.seconds is None else run.seconds / 60,
    }


def state(run: RunMetrics) -> str:
    """Why the run ended, "running", or "stopped" where it wrote neither an end nor anything new."""
    if run.end is not None:
        return run.end
    silent_s = time.time() - run.file.stat().st_mtime
    step_s = (run.seconds or 0.0) / max(1, run.last_step)
    return "running" if silent_s < max(_SILENT_S, _SILENT_STEPS * step_s) else "stopped"


def all_settings(run: RunMetrics) -> dict[str, Any]:
    """What the run and its model were told."""
    return dict(run.start.get("model") or {}) | dict(run.start.get("config") or {})


def _find(directories: Sequence[Path]) -> Iterator[RunMetrics]:
    """The runs below; one that cannot be read is told, and left out."""
    from gptrs.training.reports.metrics import METRICS_FILE, read_run

    num_found = 0
    for directory in directories:
        if not directory.exists():
            raise SourceError(no_such_path(directory))
        if not directory.is_dir():
            raise SourceError(f"{directory}: is a file, not a folder")
        for folder, below, files in os.walk(directory):
            below.sort()
            if METRICS_FILE not in files:
                continue
            below.clear()  # A run has no runs inside.
            num_found += 1
            try:
                yield read_run(folder)
            except SourceError as error:
                click.echo(f"left out: {error}", err=True)
    if not num_found:
        names = ", ".join(map(str, directories))
        raise SourceError(f"{names}: no run is in there, no folder has a {METRICS_FILE}")


def _order(values: Sequence[Any], *, highest_first: bool) -> list[int]:
    """The numbers of the values in their order; what has none stands last."""
    known = [i for i, value in enumerate(values) if value is not None]
    known.sort(key=lambda i: values[i], reverse=highest_first)
    return known + [i for i, value in enumerate(values) if value is None]


def _table(rows: Sequence[Row]) -> list[str]:
    titles = [title for _, title, _ in _COLUMNS]
    cells = [
        ["-" if row[key] is None else write(row[key]) for key, _, write in _COLUMNS] for row in rows
    ]
    return align([titles, *cells], "<<" + ">" * (len(_COLUMNS) - 2))


def _differences(names: Sequence[str], settings: Sequence[dict[str, Any]]) -> list[str]:
    """A column for each run, a line for each setting that is not the same in all."""
    keys = [
        key
        for key in dict.fromkeys(key for of_run in settings for key in of_run)
        if len({json.dumps(of_run.get(key)) for of_run in settings}) > 1
    ]
    if not keys:
        return ["all were told the same"]
    lines = [[key, *(str(of_run.get(key, "-")) for of_run in settings)] for key in keys]
    return align([["", *names], *lines], "<" + ">" * len(names))
