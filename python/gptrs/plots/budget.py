"""Where the parameters are: a bar for each model, cut into its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from gptrs.errors import DataError
from gptrs.plots.style import SMALL_SIZE, Style, drawing, new_figure, readable_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Row(Protocol):
    """A line of `parameter_budget`."""

    @property
    def part(self) -> str: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def depth(self) -> int:
        """0: adds to the total; 1: of one block; 2: a part of that block."""


def budget_figure(
    budgets: Mapping[str, Sequence[Row]], *, title: str = "", style: Style = "light"
) -> Figure:
    """The share of each part in each model's parameters.

    Args:
        budgets: by the model's name, what `parameter_budget` gives.
    Raises:
        DataError: there is no model.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    if not budgets:
        raise DataError("a picture of parameters needs a model")
    models = {name: parts_of(rows) for name, rows in budgets.items()}
    parts = list(dict.fromkeys(part for counts in models.values() for part in counts))
    with drawing(style, [*models, title]) as palette:
        from matplotlib.colors import to_rgb

        figure = new_figure(9, 1.5 + 0.62 * len(models), title)
        axes = figure.add_subplot()
        left = [0.0] * len(models)
        for number, part in enumerate(parts):
            colour = palette.colours[number % len(palette.colours)]
            shares = [counts.get(part, 0) / sum(counts.values()) for counts in models.values()]
            axes.barh(range(len(models)), shares, left=left, color=colour, label=part,
                      edgecolor=palette.paper, linewidth=0.8, height=0.68)  # fmt: skip
            for row, (share, counts) in enumerate(zip(shares, models.values(), strict=True)):
                if share > 0.075:
                    axes.text(left[row] + share / 2, row, in_short(counts[part]), ha="center",
                              va="center", fontsize=SMALL_SIZE,
                              color=readable_on(to_rgb(colour)))  # fmt: skip
            left = [start + share for start, share in zip(left, shares, strict=True)]
        totals = [in_short(sum(counts.values())) for counts in models.values()]
        names = [f"{name}\n{total}" for name, total in zip(models, totals, strict=True)]
        axes.set_yticks(range(len(models)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.set_xlabel("share of the parameters")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper right" if not title else "outside lower center",
                      ncols=min(4, len(parts)), fontsize=SMALL_SIZE)  # fmt: skip
        return figure


def parts_of(rows: Sequence[Row]) -> dict[str, int]:
    """What each part has in all blocks together; the last norm counts with the others."""
    counts: dict[str, int] = {}
    copies = 1
    *rows_without_total, _ = rows
    for row, after in zip(rows_without_total, rows[1:], strict=True):
        if after.depth == 1 and row.depth == 0:
            copies = row.count // after.count  # All blocks, and one of them.
        elif row.depth != 1:
            part = "norms" if row.part == "final norm" else row.part
            counts[part] = counts.get(part, 0) + row.count * (copies if row.depth == 2 else 1)
    return {part: count for part, count in counts.items() if count}


def in_short(count: int) -> str:
    """A number of parameters to three digits, e.g. "124 million".

    >>> in_short(38_597_376)
    '38.6 million'
    """
    for size, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= 0.9995 * size:  # What rounds to 1,000 of the next smaller one.
            return f"{count / size:.3g} {name}"
    return str(count)
