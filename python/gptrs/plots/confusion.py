"""A classifier's confusion matrix: what is taken for what."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptrs.plots.labels import fitting
from gptrs.plots.style import AMOUNTS, Style, bare, drawing, new_figure, readable_on

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.figure import Figure


def confusion_figure(
    matrix: npt.NDArray[np.int64],
    classes: Iterable[Any],
    title: str = "",
    *,
    style: Style = "light",
) -> Figure:
    """The matrix, [K, K], as a picture: a cell's colour is its share of the row, of the class.

    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    names = fitting([str(name) for name in classes], most=24)
    with drawing(style, [*names, title]):
        side = 2.2 + 0.55 * len(names)
        figure = new_figure(side + 1.2, side + 0.2)
        axes = figure.add_subplot()
        shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
        image = axes.imshow(shares, cmap=AMOUNTS, vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(matrix):
            colour = readable_on(image.cmap(float(shares[row, column]))[:3])
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
        is_long = max(map(len, names), default=0) > 6
        slanted: dict[str, Any] = (
            {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
        )
        axes.set_xticks(range(len(names)), names, **slanted)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("taken for")
        axes.set_ylabel("the text is")
        axes.set_title(title)
        bare(axes)
        bar = figure.colorbar(
            image, ax=axes, label="share of the class", format="{x:.0%}", shrink=0.8
        )
        bar.outline.set_visible(False)
        return figure


def save_confusion_figure(
    path: str | Path, matrix: npt.NDArray[np.int64], classes: Iterable[Any]
) -> None:
    """Saves `confusion_figure`; the file type follows from the name."""
    right, total = int(np.trace(matrix)), int(matrix.sum())
    title = f"{right:,} of {total:,} held-out texts are right"
    confusion_figure(matrix, classes, title).savefig(path, dpi=150)
