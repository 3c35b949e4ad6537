"""The next token's distribution, before and after each step of sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.labels import fitting
from gptrs.plots.style import SMALL_SIZE, Palette, Style, drawing, new_figure

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Probabilities = npt.NDArray[np.float32]


def sampling_figure(
    steps: Mapping[str, Probabilities],
    labels: Sequence[str],
    *,
    most_likely: Sequence[int],
    title: str = "",
    style: Style = "light",
) -> Figure:
    """A panel a step, a bar for each of the likeliest tokens; the outline is the step before.

    Args:
        steps: what was done, and the distribution after it, float32 [V]; the first is the model's.
        most_likely: the ids of the tokens to draw, the likeliest first; `labels` are theirs.
    Raises:
        DataError: there are no steps, or not a label for each token.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    if not steps or len(labels) != len(most_likely) or not labels:
        raise DataError(
            f"a step at least and a label a token are needed; found {len(steps)} steps, "
            f"{len(most_likely)} tokens and {len(labels)} labels"
        )
    names = fitting(labels)
    shown = list(most_likely)
    with drawing(style, [*names, *steps, title]) as palette:
        figure = new_figure(1.3 + 2.1 * len(steps), 1.3 + 0.27 * len(names), title)
        panels = figure.subplots(1, len(steps), sharey=True, sharex=True, squeeze=False)[0]
        before = None
        for axes, (name, probabilities_V) in zip(panels, steps.items(), strict=True):
            _draw_step(axes, probabilities_V, shown, before, palette)
            axes.set_title(name)
            before = probabilities_V
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        panels[0].xaxis.set_major_formatter("{x:.0%}")
        return figure


def _draw_step(
    axes: Axes,
    probabilities_V: Probabilities,
    shown: list[int],
    before: Probabilities | None,
    palette: Palette,
) -> None:
    places = range(len(shown))
    axes.barh(places, probabilities_V[shown], color=palette.colours[0], height=0.75)
    if before is not None:
        axes.barh(
            places,
            before[shown],
            facecolor="none",
            edgecolor=palette.colours[1],
            linewidth=1.0,
            height=0.75,
            label="before",
        )
        axes.legend(loc="lower right", fontsize=SMALL_SIZE)
    num_left = int((probabilities_V > 0).sum())
    others = float(probabilities_V.sum() - probabilities_V[shown].sum())
    axes.set_xlabel(
        f"{num_left:,} {'token' if num_left == 1 else 'tokens'} left\nnot shown: {others:z.1%}",
        fontsize=SMALL_SIZE,
    )
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
