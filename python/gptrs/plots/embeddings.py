"""Embeddings as tables of colours: rows are tokens, columns dimensions, blue is below zero.

tokens [T, D]  +  positions [T, D]  =  their sum [T, D]     as books draw it: `sum_figure`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.labels import fitting
from gptrs.plots.style import (
    SMALL_SIZE,
    TEXT_SIZE,
    Palette,
    Style,
    bare,
    drawing,
    new_figure,
    readable_on,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    Values = npt.NDArray[np.float32]

MOST_ROWS = 60
_MOST_NUMBERS = 10
"""A row with more columns has cells too small to write numbers in."""


def table_figure(
    values: Values, labels: Sequence[str], *, title: str = "", style: Style = "light"
) -> Figure:
    """Vectors [N, D] as a heat map, a row each; small tables have numbers in their cells.

    Colours are cut at the 99th percentile, so that one large number does not bleach the others.

    Raises:
        DataError: more than 60 rows, or labels that are not one a row.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    _check_rows(values, labels)
    names = fitting(labels)
    with drawing(style, [*names, title]) as palette:
        num_rows, num_columns = values.shape
        width = 9.0 if num_columns > _MOST_NUMBERS else 2.5 + 0.65 * num_columns
        figure = new_figure(width, 1.3 + 0.25 * num_rows, title)
        axes = figure.add_subplot()
        image = _draw_table(axes, values, names, palette, _limit(values))
        axes.set_xlabel(f"dimension, {num_columns:,} in all")
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.04)
        bar.outline.set_visible(False)
        return figure


def sum_figure(
    tokens: Values,
    positions: Values,
    labels: Sequence[str],
    *,
    columns: int = 6,
    title: str = "",
    style: Style = "light",
) -> Figure:
    """Token embeddings plus positional embeddings equals input embeddings, [T, D] each.

    Args:
        columns: how many dimensions to draw, from the first.
    Raises:
        DataError: more than 60 rows, labels that are not one a row, or shapes that differ.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    _check_rows(tokens, labels)
    if tokens.shape != positions.shape:
        raise DataError(f"token vectors are {tokens.shape}, positions {positions.shape}")
    names = fitting(labels)
    parts = (
        ("token embeddings", tokens, names),
        ("positional embeddings", positions, [str(place) for place in range(len(names))]),
        ("input embeddings", tokens + positions, names),
    )
    with drawing(style, [*names, title]) as palette:
        columns = min(columns, tokens.shape[1])
        width = max(2.2, 0.46 * columns)
        figure = new_figure(3 * width + 2.6, 1.4 + 0.3 * len(names), title)
        axes_of_parts = figure.subplots(1, 5, width_ratios=(width, 0.35, width, 0.35, width))
        for axes, sign in zip(axes_of_parts[1::2], "+=", strict=True):
            axes.set_axis_off()
            axes.text(
                0.5, 0.5, sign, fontsize=22, ha="center", va="center", transform=axes.transAxes
            )
        for axes, (name, values, rows) in zip(axes_of_parts[::2], parts, strict=True):
            shown = values[:, :columns]
            _draw_table(axes, shown, rows, palette, _limit(shown))
            axes.set_title(name, fontsize=TEXT_SIZE)
            axes.set_xticks(range(columns))
        axes_of_parts[2].set_ylabel("position", fontsize=SMALL_SIZE, color=palette.faint)
        axes_of_parts[2].set_xlabel(
            f"dimensions 0 to {columns - 1} of {tokens.shape[1]:,}; colours: each table by itself",
            fontsize=SMALL_SIZE,
            color=palette.faint,
        )
        return figure


def _draw_table(
    axes: Axes, values: Values, names: Sequence[str], palette: Palette, limit: float
) -> AxesImage:
    image = axes.imshow(
        values,
        cmap=palette.around_zero,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_yticks(range(len(names)), names)
    bare(axes)
    if values.shape[1] <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            axes.text(
                column,
                row,
                f"{value:z.2f}",
                ha="center",
                va="center",
                fontsize=SMALL_SIZE - 1,
                color=readable_on(image.cmap((float(value) / limit + 1) / 2)[:3]),
            )
    return image


def _limit(values: Values) -> float:
    """The number that gets the strongest colour."""
    return max(float(np.percentile(np.abs(values), 99)), 1e-6)


def _check_rows(values: Values, labels: Sequence[str]) -> None:
    if values.ndim != 2 or len(values) != len(labels) or not values.size:
        raise DataError(f"a row needs a label each: found {values.shape} and {len(labels)} labels")
    if len(values) > MOST_ROWS:
        raise DataError(f"{len(values)} rows were asked for; at most {MOST_ROWS} can be read")
