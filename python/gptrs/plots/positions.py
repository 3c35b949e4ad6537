"""How tokens know their places: what is added to the embeddings, or to the scores.

values [N, D]   ─► the table, the cosines of all pairs, the cosine by distance
scores [H, N]   ─► a curve a head, over the distance
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.style import AMOUNTS, SMALL_SIZE, Palette, Style, bare, drawing, new_figure

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Values = npt.NDArray[np.float32]

_MOST_IN_LEGEND = 7


def positions_figure(values: Values, *, title: str = "", style: Style = "light") -> Figure:
    """Positional embeddings [N, D]: their values, and how alike they are.

    The cosine of two positions is drawn for all pairs, and over their distance: the mean, with the
    range from the smallest to the largest.

    Raises:
        DataError: fewer than two positions.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    cosines_NN = cosines(values)
    with drawing(style, [title]) as palette:
        figure = new_figure(12, 4.1, title)
        table, pairs, by_distance = figure.subplots(1, 3)
        limit = max(float(np.percentile(np.abs(values), 99)), 1e-6)
        image = table.imshow(
            values, cmap=palette.around_zero, vmin=-limit, vmax=limit, aspect="auto"
        )
        table.set(title="values", xlabel="dimension", ylabel="position")
        matrix = pairs.imshow(cosines_NN, cmap=AMOUNTS, vmax=1)
        pairs.set(title="cosine of two positions", xlabel="position", ylabel="position")
        for axes, drawn in ((table, image), (pairs, matrix)):
            bare(axes)
            bar = figure.colorbar(drawn, ax=axes, fraction=0.045, pad=0.02)
            bar.outline.set_visible(False)
        _draw_by_distance(by_distance, cosines_NN, palette)
        return figure


def position_scores_figure(
    scores: Mapping[str, Values], *, title: str = "", style: Style = "light"
) -> Figure:
    """What kinds of positions add to the scores, by distance: a panel each, a curve a head.

    Args:
        scores: float32 [H, N] by the panel's title; column 0 is the token itself.
    Raises:
        DataError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    if not scores or any(by_distance.size == 0 for by_distance in scores.values()):
        raise DataError("there are no scores by distance to draw")
    with drawing(style, [*scores, title]) as palette:
        columns = min(3, len(scores))
        rows = -(-len(scores) // columns)
        figure = new_figure(max(6.0, 4.0 * columns), 3.3 * rows + 0.3, title)
        axes_of_kinds = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, by_distance_HN) in zip(axes_of_kinds, scores.items(), strict=False):
            _draw_scores(axes, by_distance_HN, palette)
            axes.set_title(name)
        for axes in axes_of_kinds[len(scores) :]:
            axes.set_axis_off()
        curves = max((axes.lines[:-1] for axes in axes_of_kinds), key=len)
        if 1 < len(curves) <= _MOST_IN_LEGEND:
            names = [f"head {head}" for head in range(len(curves))]
            figure.legend(curves, names, loc="outside right upper", fontsize=SMALL_SIZE)
        return figure


def cosines(values: Values) -> Values:
    """The cosine of every two rows, float32 [N, N]; 0 where a row is all zeros.

    Raises:
        DataError: fewer than two rows.
    """
    if values.ndim != 2 or len(values) < 2:
        raise DataError(f"two positions at least can be compared, found {values.shape}")
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units = values / np.where(lengths == 0, 1, lengths)
    products: Values = (units @ units.T).astype(np.float32)
    return products


def _draw_by_distance(axes: Axes, cosines_NN: Values, palette: Palette) -> None:
    diagonals = [np.diagonal(cosines_NN, distance) for distance in range(len(cosines_NN))]
    distances = range(len(diagonals))
    axes.fill_between(
        distances,
        [d.min() for d in diagonals],
        [d.max() for d in diagonals],
        color=palette.colours[0],
        alpha=0.2,
        linewidth=0,
        label="smallest to largest",
    )
    means = [d.mean() for d in diagonals]
    axes.plot(distances, means, color=palette.colours[0], linewidth=1.8, label="mean")
    axes.set(title="cosine by distance", xlabel="distance")
    axes.legend(fontsize=SMALL_SIZE)
    axes.margins(x=0.01)


def _draw_scores(axes: Axes, by_distance_HN: Values, palette: Palette) -> None:
    for head, by_distance_N in enumerate(by_distance_HN):
        colour = palette.colours[head % len(palette.colours)]
        axes.plot(by_distance_N, color=colour, linewidth=1.5)
    axes.axhline(0, color=palette.faint, linewidth=0.8)
    axes.set(xlabel="distance", ylabel="score")
    axes.margins(x=0.01)
