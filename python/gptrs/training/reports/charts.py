"""Lines over an axis as SVG, for a page that needs neither a network nor matplotlib.

    Series ─► thinned to what a screen shows ─► scaled to round numbers ─► <svg>

Colours are the page's: an element has the class `c0`, `c1` and so on, and the page's style says
what that is, on light and on dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 720, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 26, 38
_MOST_POINTS = 600
_ABOUT_TICKS = 5
_TINY = 1e-100


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line of a chart."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    """As many as `xs`; those that are not finite are left out."""
    colour: int = 0
    dots: bool = False
    """Each point is marked, and tells its value to whoever points at it."""


def line_chart(series: Sequence[Series], *, title: str, x_label: str) -> str:
    """An <svg> of the lines that have points; an empty string if none has."""
    lines = [(one, _points(one)) for one in series]
    lines = [(one, points) for one, points in lines if points]
    if not lines:
        return ""
    x_ticks = ticks(*_range(x for _, points in lines for x, _ in points))
    y_ticks = ticks(*_range(y for _, points in lines for _, y in points))
    to_x = _scale(x_ticks, _LEFT, _WIDTH - _RIGHT)
    to_y = _scale(y_ticks, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text class="title" x="{_LEFT}" y="14">{html.escape(title)}</text>',
        _grid(x_ticks, y_ticks, to_x, to_y),
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">'
        f"{html.escape(x_label)}</text>",
    ]
    parts += [_line(one, points, to_x, to_y) for one, points in lines]
    if len(lines) > 1:
        parts.append(_legend([one for one, _ in lines]))
    return "\n".join([*parts, "</svg>"])


def ticks(lowest: float, highest: float) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten apart) from below to above.

    >>> ticks(1.2, 4.1)
    [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    size = max(abs(lowest), abs(highest))
    if highest - lowest <= max(1e-9 * size, _TINY):  # One value, as far as a picture can tell.
        margin = 0.1 * size if size > _TINY else 1.0
        lowest, highest = lowest - margin, highest + margin
    rough = (highest - lowest) / _ABOUT_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: the means of neighbours, the first and the last as they are."""
    if len(points) <= most:
        return list(points)
    size = math.ceil((len(points) - 2) / (most - 2))
    groups = (points[i : min(i + size, len(points) - 1)] for i in range(1, len(points) - 1, size))
    return [points[0], *map(_mean, groups), points[-1]]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(points), sum(ys) / len(points)


class _Scale:
    """From a value to a place on the picture."""

    def __init__(self, first: float, last: float, begin: float, end: float) -> None:
        self._first, self._factor, self._begin = first, (end - begin) / (last - first), begin

    def __call__(self, value: float) -> str:
        return f"{self._begin + (value - self._first) * self._factor:.1f}"


def _scale(marks: Sequence[float], begin: float, end: float) -> _Scale:
    return _Scale(marks[0], marks[-1], begin, end)


def _range(values: Iterable[float]) -> tuple[float, float]:
    known = list(values)
    return min(known), max(known)


def _points(series: Series) -> list[tuple[float, float]]:
    pairs = zip(series.xs, series.ys, strict=True)
    finite = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    return finite if series.dots else thinned(finite, _MOST_POINTS)


def _grid(x_ticks: Sequence[float], y_ticks: Sequence[float], to_x: _Scale, to_y: _Scale) -> str:
    parts = []
    for mark in y_ticks:
        y = to_y(mark)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{_text(mark)}</text>')
    bottom = _HEIGHT - _BOTTOM
    parts += [
        f'<text x="{to_x(mark)}" y="{bottom + 16}" text-anchor="middle">{_text(mark)}</text>'
        for mark in x_ticks
    ]
    return "\n".join(parts)


def _line(series: Series, points: Sequence[tuple[float, float]], to_x: _Scale, to_y: _Scale) -> str:
    places = " ".join(f"{to_x(x)},{to_y(y)}" for x, y in points)
    parts = [f'<polyline class="c{series.colour}" points="{places}"/>']
    if series.dots:
        label = html.escape(series.label)
        parts += [
            f'<circle class="c{series.colour}" cx="{to_x(x)}" cy="{to_y(y)}" r="3">'
            f"<title>{label}: {y:.4g} at {_text(x)}</title></circle>"
            for x, y in points
        ]
    return "\n".join(parts)


def _legend(series: Sequence[Series]) -> str:
    """The labels in a row at the top right, each behind its colour."""
    parts, x = [], float(_WIDTH - _RIGHT)
    for one in reversed(series):
        x -= 7 * len(one.label) + 4
        parts.append(f'<text x="{x:.0f}" y="14">{html.escape(one.label)}</text>')
        parts.append(
            f'<line class="c{one.colour}" x1="{x - 20:.0f}" x2="{x - 5:.0f}" y1="10" y2="10"/>'
        )
        x -= 34
    return "\n".join(parts)


def _text(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value / 1e6:,.6g}M"
