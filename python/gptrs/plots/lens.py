"""The logit lens (nostalgebraist 2020): what each layer would say next, could it speak already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.labels import fitting
from gptrs.plots.style import AMOUNTS, SMALL_SIZE, Style, bare, drawing, new_figure, readable_on

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.figure import Figure

_MOST_CHARACTERS = 11


def lens_figure(
    guesses: Sequence[Sequence[str]],
    probabilities: npt.NDArray[np.float32],
    labels: Sequence[str],
    *,
    title: str = "",
    style: Style = "light",
) -> Figure:
    """A column for each token, a row for each layer, the last one on top; its colour is how sure.

    Args:
        guesses: the likeliest next token behind each token, [layers + 1][T]; row 0 is what the
            embeddings alone would say.
        probabilities: what each guess gets, float32 [layers + 1, T].
        labels: of the T tokens that are read.
    Raises:
        DataError: there is not a guess for each probability, or not a label for each column.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    shape = (len(guesses), len(labels))
    if probabilities.shape != shape or any(len(row) != shape[1] for row in guesses) or 0 in shape:
        raise DataError(
            f"guesses and probabilities are [layers + 1, tokens]; found {probabilities.shape} "
            f"probabilities, {len(guesses)} rows of guesses and {len(labels)} labels"
        )
    names = fitting(labels, _MOST_CHARACTERS)
    cells = [fitting(row, _MOST_CHARACTERS) for row in guesses]
    texts = [title, *names, *(cell for row in cells for cell in row)]
    with drawing(style, texts):
        figure = new_figure(1.9 + 0.85 * len(names), 1.3 + 0.38 * len(cells), title)
        axes = figure.add_subplot()
        image = axes.imshow(
            probabilities, cmap=AMOUNTS, vmin=0, vmax=1, aspect="auto", origin="lower"
        )
        for (row, column), probability in np.ndenumerate(probabilities):
            axes.text(
                column,
                row,
                cells[row][column],
                ha="center",
                va="center",
                fontsize=SMALL_SIZE - 0.5,
                color=readable_on(image.cmap(float(probability))[:3]),
            )
        axes.set_xticks(range(len(names)), names)
        layers = [f"layer {layer}" for layer in range(len(cells) - 1)]
        axes.set_yticks(range(len(cells)), ["embeddings", *layers])
        axes.set_xlabel("the token that was read; in its column, what would come next")
        bare(axes)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, format="{x:.0%}")
        bar.set_label("probability", fontsize=SMALL_SIZE)
        bar.outline.set_visible(False)
        return figure
