"""Who looks at whom: attention maps. A row is a token, its columns the tokens that it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.labels import fitting
from gptrs.plots.style import AMOUNTS, SMALL_SIZE, Style, bare, drawing, new_figure

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    Weights = npt.NDArray[np.float32]

MOST_LABELS = 48


def attention_figure(
    weights: Weights,
    labels: Sequence[str],
    *,
    title: str = "",
    first_layer: int = 0,
    first_head: int = 0,
    style: Style = "light",
) -> Figure:
    """A map for every layer, a row, and every head, a column.

    Args:
        weights: float32 [L, H, T, T], rows sum to 1; a token does not see those after it.
        labels: of the T tokens; drawn where there is one map only.
        first_layer, first_head: the numbers of the first of the L layers and of the H heads.
    Raises:
        DataError: shapes and labels do not fit together.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    _check(weights, labels, ndim=4)
    num_layers, num_heads = weights.shape[:2]
    if num_layers == num_heads == 1:
        return attention_map(weights[0, 0], labels, title=title, style=style)
    with drawing(style, [title]):
        side = float(np.clip(7.5 / num_heads, 0.75, 2.0))
        figure = new_figure(side * num_heads + 1.4, side * num_layers + 0.8, title)
        grid = figure.subplots(num_layers, num_heads, squeeze=False, sharex=True, sharey=True)
        images = [
            _draw_map(grid[layer, head], weights[layer, head])
            for layer in range(num_layers)
            for head in range(num_heads)
        ]
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
        for head, axes in enumerate(grid[0], start=first_head):
            axes.set_title(f"head {head}", fontsize=SMALL_SIZE, loc="center")
        for layer, axes in enumerate(grid[:, 0], start=first_layer):
            axes.set_ylabel(f"layer {layer}", fontsize=SMALL_SIZE)
        _add_bar(figure, images[0], list(grid.flat))
        return figure


def attention_map(
    weights: Weights, labels: Sequence[str], *, title: str = "", style: Style = "light"
) -> Figure:
    """One head's map, float32 [T, T], with the tokens at both sides.

    Raises:
        DataError: weights and labels do not fit together.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    _check(weights, labels, ndim=2)
    names = fitting(labels)
    with drawing(style, [*names, title]) as palette:
        side = float(np.clip(1.6 + 0.3 * len(names), 4.0, 11.0))
        figure = new_figure(side + 1.2, side, title)
        axes = figure.add_subplot()
        image = _draw_map(axes, weights)
        # More labels than that would lie on each other.
        places = range(0, len(names), -(-len(names) // MOST_LABELS))
        shown = [names[place] for place in places]
        axes.set_xticks(places, shown, rotation=90)
        axes.set_yticks(places, shown)
        axes.set_xlabel("sees", color=palette.faint)
        axes.set_ylabel("token", color=palette.faint)
        _add_bar(figure, image, [axes])
        return figure


def _draw_map(axes: Axes, weights_TT: Weights) -> AxesImage:
    from matplotlib.colors import PowerNorm

    hidden = np.triu(np.ones(weights_TT.shape, dtype=bool), k=1)
    # In a long text most weights are small: their square roots can still be told apart.
    image = axes.imshow(
        np.ma.masked_array(weights_TT, hidden), cmap=AMOUNTS, norm=PowerNorm(0.5, vmin=0, vmax=1)
    )
    bare(axes)
    return image


def _add_bar(figure: Figure, image: AxesImage, axes: list[Axes]) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.7, fraction=0.03, pad=0.02)
    bar.set_label("attention weight", fontsize=SMALL_SIZE)
    bar.outline.set_visible(False)


def _check(weights: Weights, labels: Sequence[str], ndim: int) -> None:
    num_tokens = len(labels)
    if weights.ndim != ndim or weights.shape[-2:] != (num_tokens, num_tokens) or not weights.size:
        shape = "[L, H, T, T]" if ndim == 4 else "[T, T]"
        raise DataError(
            f"attention is {shape}, T the number of labels; found {weights.shape} "
            f"and {num_tokens} labels"
        )
