"""What is in a token store: how long documents are, how often tokens occur, which most often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptrs.plots.labels import fitting
from gptrs.plots.style import Palette, Style, drawing, new_figure

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def store_figure(
    *,
    length_bins: Sequence[tuple[int, int]],
    token_counts: npt.NDArray[np.uint64],
    frequent: Sequence[str] = (),
    title: str = "",
    style: Style = "light",
) -> Figure:
    """How long a store's documents are, how often its tokens occur, and the most frequent ones.

    Args:
        length_bins: the least length in each bin, and how many documents are in it; the bins ascend
            without gaps. None of them leaves that part empty.
        token_counts: uint64 [n_vocab], how often each id occurs.
        frequent: labels of the most frequent tokens, the most frequent first; none leaves that
            part out.
    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    labels = fitting(frequent)
    with drawing(style, [*labels, title]) as palette:
        figure = new_figure(12 if labels else 10, 4, title)
        lengths, frequencies, *rest = figure.subplots(1, 3 if labels else 2)
        bins = [(start, count) for start, count in length_bins if start > 0 and count]
        _draw_lengths(lengths, bins, palette)
        counts = np.sort(token_counts[token_counts > 0])[::-1]
        shares = counts / max(1, int(counts.sum()))
        ranks = np.arange(1, len(counts) + 1)
        frequencies.loglog(ranks, shares, color=palette.colours[1], linewidth=1.8)
        frequencies.set_xlabel(f"rank of the token, {len(counts):,} of {len(token_counts):,} occur")
        frequencies.set_ylabel("share of all tokens")
        for axes in rest:
            _draw_frequent(axes, labels, shares, palette)
        return figure


def save_store_figure(
    path: str | Path,
    *,
    length_bins: Sequence[tuple[int, int]],
    token_counts: npt.NDArray[np.uint64],
    title: str,
) -> None:
    """Saves `store_figure` without the most frequent tokens; the file type follows from the name.

    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    figure = store_figure(length_bins=length_bins, token_counts=token_counts, title=title)
    figure.savefig(path, dpi=150)


def _draw_lengths(axes: Axes, bins: Sequence[tuple[int, int]], palette: Palette) -> None:
    """A bar for each power of two: whole bins, and all as wide on a logarithmic axis."""
    axes.set_xlabel("tokens a document")
    axes.set_ylabel("documents")
    if not bins:
        axes.text(
            0.5, 0.5, "not counted", ha="center", color=palette.faint, transform=axes.transAxes
        )
        return
    starts, counts = zip(*bins, strict=True)
    first, last = starts[0].bit_length() - 1, starts[-1].bit_length()
    edges = [1 << power for power in range(first, last + 1)]
    axes.hist(
        starts,
        bins=edges,
        weights=counts,
        color=palette.colours[0],
        edgecolor=palette.paper,
        linewidth=0.4,
    )
    axes.set_xscale("log", base=10)


def _draw_frequent(
    axes: Axes, labels: Sequence[str], shares: npt.NDArray[np.float64], palette: Palette
) -> None:
    places = range(min(len(labels), len(shares)))
    axes.barh(places, shares[: len(places)], color=palette.colours[2], height=0.7)
    axes.set_yticks(places, labels[: len(places)])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter("{x:.1%}")
    axes.set_xlabel("share of all tokens")
