"""A run on one page: curves, texts, settings, speed and surroundings. One HTML file, no network.

    RunMetrics ─► report_page ─► report.html

The page has no script. Everything that a run or a model wrote is escaped. Its frame and its style
stand in page.html.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from gptrs.plots.losses import smoothed
from gptrs.training.reports.charts import Series, line_chart
from gptrs.training.reports.metrics import RunMetrics

_SPEED_MARKS = 60
"""Tokens/s are drawn as means over so many parts of the run."""
_DATA_KEYS = ("num_train_tokens", "num_validation_tokens", "unigram_loss", "bytes_per_token")
_OTHER_KEYS = ("event", "config", "model", "data", *_DATA_KEYS)


def report_page(run: RunMetrics) -> str:
    """The page of `run` as it stands, as HTML."""
    sections = (
        _tiles(run),
        _section("Curves", _charts(run)),
        _section("What it wrote", _samples(run.samples)),
        _section("Evaluations", _evaluations(run.evaluations)),
        _section("Settings", _table(run.start.get("config") or {})),
        _section("Model", _table(run.start.get("model") or {})),
        _section("Data", _table(_data(run.start))),
        _section("Device and versions", _table(_environment(run))),
    )
    template = files("gptrs.training.reports").joinpath("page.html").read_text(encoding="utf-8")
    for name, content in (("title", _escaped(run.name)), ("state", _escaped(_state(run)))):
        template = template.replace(f"{{{{{name}}}}}", content)
    return template.replace("{{body}}", "\n".join(sections))


def _state(run: RunMetrics) -> str:
    words = [run.end or "running", f"after step {run.last_step:,}"]
    if run.num_steps:
        words.append(f"of {run.num_steps:,}")
    for count, what in ((run.num_resumed, "resumed"), (run.num_skipped, "skipped a step")):
        if count:
            words.append(f"· {what} {count} time{'s' * (count != 1)}")
    return " ".join(words)


def _tiles(run: RunMetrics) -> str:
    """The few numbers that are looked for first."""
    best = run.best or {}
    loss, bits = best.get("val_loss"), best.get("bits_per_byte")
    speeds = [e["tokens_per_s"] for e in run.evaluations if e.get("tokens_per_s")]
    mfu = run.mfu(speeds[-1]) if speeds else None
    tokens = run.last_step * run.tokens_per_step if run.tokens_per_step else None
    train_tokens = run.start.get("num_train_tokens")
    facts = [
        ("best validation loss", loss, "{:.3f}"),
        ("its perplexity", None if loss is None else math.exp(min(loss, 700.0)), "{:,.4g}"),
        ("bits per byte", bits, "{:.3f}"),
        ("at step", best.get("step"), "{:,}"),
        ("tokens seen", tokens, "{:,}"),
        ("passes over the data", tokens / train_tokens if tokens and train_tokens else None,
         "{:.2f}"),
        ("tokens/s", speeds[-1] if speeds else None, "{:,.0f}"),
        ("MFU", "unknown" if mfu is None else f"{100 * mfu:.1f} %", "{}"),
        ("minutes", None if run.seconds is None else run.seconds / 60, "{:,.1f}"),
        ("parameters", run.start.get("num_parameters"), "{:,}"),
    ]  # fmt: skip
    boxes = [
        f"<div><dt>{name}</dt><dd>{_escaped(form.format(value))}</dd></div>"
        for name, value, form in facts
        if value is not None
    ]
    return f'<dl class="tiles">{"".join(boxes)}</dl>'


def _charts(run: RunMetrics) -> str:
    scale, x_label = _axis(run)
    xs = [step * scale for step in run.steps]
    values = run.values
    validation = Series(
        label="validation",
        xs=[e["step"] * scale for e in run.evaluations],
        ys=[e["val_loss"] for e in run.evaluations],
        colour=1,
        dots=True,
    )
    training = Series(label="training", xs=xs, ys=smoothed(values.get("loss", [])))
    charts = [line_chart([training, validation], title="loss, nats per token", x_label=x_label)]
    for name, title in (("learning_rate", "learning rate"), ("grad_norm", "gradient norm")):
        ys = values.get(name, [])
        series = Series(label=title, xs=xs[: len(ys)], ys=ys)
        charts.append(line_chart([series], title=title, x_label=x_label))
    charts.append(
        line_chart([_speed(run, xs)], title="tokens/s, evaluations included", x_label=x_label)
    )
    return "\n".join(chart for chart in charts if chart)


def _axis(run: RunMetrics) -> tuple[float, str]:
    """What a step counts for along the axis of all charts, and what that is."""
    if run.tokens_per_step is None:
        return 1.0, "step"
    tokens = run.tokens_per_step * run.last_step
    for unit, name in ((1e9, "billions"), (1e6, "millions")):
        if tokens >= unit:
            return run.tokens_per_step / unit, f"tokens seen, {name}"
    return run.tokens_per_step / 1e3, "tokens seen, thousands"


def _speed(run: RunMetrics, xs: Sequence[float]) -> Series:
    tokens, seconds = (run.values.get(name, []) for name in ("tokens", "seconds"))
    count = min(len(tokens), len(seconds))
    size = max(1, count // _SPEED_MARKS)
    ends = [end for end in range(size, count, size) if seconds[end] > seconds[end - size]]
    speeds = [
        (tokens[end] - tokens[end - size]) / (seconds[end] - seconds[end - size]) for end in ends
    ]
    return Series(label="tokens/s", xs=[xs[end] for end in ends], ys=speeds)


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """The last texts; those before them folded away."""
    last = [sample for sample in samples if sample["step"] == samples[-1]["step"]]
    before = [sample for sample in samples if sample["step"] != samples[-1]["step"]]
    shown = [_sample(sample) for sample in last]
    if before:
        inside = "".join(map(_sample, before))
        shown.append(f"<details><summary>{len(before)} before</summary>{inside}</details>")
    return "".join(shown)


def _sample(sample: Mapping[str, Any]) -> str:
    prompt, text = (_escaped(str(sample.get(key, ""))) for key in ("prompt", "text"))
    return f"<p>step {sample['step']:,}</p><pre><b>{prompt}</b>{text}</pre>"


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> str:
    forms = {
        "step": "{:,}",
        "tokens_seen": "{:,}",
        "train_loss": "{:.4f}",
        "val_loss": "{:.4f}",
        "bits_per_byte": "{:.4f}",
        "tokens_per_s": "{:,.0f}",
        "seconds": "{:,.0f}",
    }
    known = [name for name in forms if any(e.get(name) is not None for e in evaluations)]
    if not known:
        return ""
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in known)
    rows = [
        [forms[name].format(e[name]) if e.get(name) is not None else "" for name in known]
        for e in evaluations
    ]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f'<div class="wide"><table class="numbers"><tr>{head}</tr>{body}</table></div>'
    return f"<details><summary>{len(rows)} of them</summary>{table}</details>"


def _data(start: Mapping[str, Any]) -> dict[str, Any]:
    data = start.get("data")
    named = {key: start[key] for key in _DATA_KEYS if key in start}
    return named | (dict(data) if isinstance(data, Mapping) else {"data": data} if data else {})


def _environment(run: RunMetrics) -> dict[str, Any]:
    device = {
        "device name" if key == "name" else key: value
        for key, value in run.device.items()
        if key != "event"
    }
    flat: dict[str, Any] = {}
    for key, value in run.start.items():
        if key not in _OTHER_KEYS:
            flat |= dict(value) if isinstance(value, Mapping) else {key: value}
    return flat | device


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in _cells(values))
    return f"<table>{rows}</table>" if rows else ""


def _cells(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        yield _escaped(str(name)), _escaped(_value(value))


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _escaped(text: str) -> str:
    """Text for anywhere in the page; half of a character pair, which UTF-8 has not, becomes ?."""
    return html.escape(text.encode("utf-8", "replace").decode())
