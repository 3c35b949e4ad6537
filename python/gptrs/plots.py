"""Pictures of training and of tokens, with matplotlib: the extra `plots`. Takes plain numbers.

In colours of Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptrs.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"


def save_loss_figure(
    path: str | Path,
    *,
    step_losses: Sequence[float],
    val_steps: Sequence[int],
    val_losses: Sequence[float],
    tokens_per_step: int,
    unigram_loss: float,
    title: str,
) -> None:
    """Saves a run's loss curves; the file type follows from the name.

    Args:
        step_losses: the training loss of every batch, drawn faintly, and smoothed on top.
        val_steps, val_losses: after how many steps the validation loss was what; at least one.
        unigram_loss: drawn as a baseline.
    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    with _matplotlib():
        from matplotlib.figure import Figure

    # A bare Figure: pyplot would look for a screen.
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps = range(1, len(step_losses) + 1)
    axes.plot(steps, step_losses, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smoothed(step_losses), color=BLUE, linewidth=1.8, label="training")
    axes.plot(
        val_steps,
        val_losses,
        color=ORANGE,
        linewidth=1.8,
        marker="o",
        markersize=4.5,
        label=f"validation, {val_losses[-1]:.2f} at the end",
    )
    axes.axhline(
        unigram_loss,
        color=GREY,
        linestyle="--",
        linewidth=1.2,
        label=f"knows only how common each token is, {unigram_loss:.2f}",
    )
    _label(axes, title)
    axes.set_xlabel("step")
    millions_per_step = tokens_per_step / 1e6
    tokens_axis = axes.secondary_xaxis(
        "top",
        functions=(
            lambda steps: np.asarray(steps) * millions_per_step,
            lambda millions: np.asarray(millions) / millions_per_step,
        ),
    )
    tokens_axis.set_xlabel("tokens seen, millions", color=GREY)
    tokens_axis.tick_params(colors=GREY)
    figure.savefig(path, dpi=150)


def save_and_show_losses(
    path: str | Path,
    epochs_seen: Sequence[float],
    tokens_seen: Sequence[int],
    train_losses: Sequence[float],
    val_losses: Sequence[float],
) -> None:
    """The book's picture, saved and shown: both losses over epochs, tokens seen along the top.

    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    with _matplotlib():
        import matplotlib
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.plot(epochs_seen, train_losses, color=BLUE, label="Training loss")
    axes.plot(epochs_seen, val_losses, color=ORANGE, linestyle="-.", label="Validation loss")
    axes.set_xlabel("Epochs")
    axes.set_ylabel("Loss")
    axes.legend(loc="upper right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tokens_axes = axes.twiny()
    tokens_axes.plot(tokens_seen, train_losses, alpha=0)  # Unseen: it gives the axis its range.
    tokens_axes.set_xlabel("Tokens seen")
    figure.savefig(path)
    # Agg has no screen, and warns when asked to show.
    if matplotlib.get_backend().lower() != "agg":
        pyplot.show()
    pyplot.close(figure)


def save_store_figure(
    path: str | Path,
    *,
    length_bins: Sequence[tuple[int, int]],
    token_counts: npt.NDArray[np.uint64],
    title: str,
) -> None:
    """Saves how long a store's documents are and how often its tokens occur.

    Args:
        length_bins: the least length in each bin, and how many documents are in it; the bins ascend
            without gaps. None of them leaves that half empty.
        token_counts: uint64 [n_vocab], how often each id occurs.
    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    with _matplotlib():
        from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    lengths, frequencies = figure.subplots(1, 2)
    _draw_lengths(lengths, [(start, count) for start, count in length_bins if start > 0])
    counts = np.sort(token_counts[token_counts > 0])[::-1]
    ranks = np.arange(1, len(counts) + 1)
    frequencies.loglog(ranks, counts / max(1, counts.sum()), color=ORANGE, linewidth=1.8)
    frequencies.set_xlabel(f"rank of the token, {len(counts):,} of {len(token_counts):,} occur")
    frequencies.set_ylabel("share of all tokens")
    for axes in (lengths, frequencies):
        axes.grid(alpha=0.2)
        axes.spines[["right", "top"]].set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def _draw_lengths(axes: Axes, bins: Sequence[tuple[int, int]]) -> None:
    """A bar for each power of two: whole bins, and all as wide on a logarithmic axis."""
    axes.set_xlabel("tokens a document")
    axes.set_ylabel("documents")
    if not bins:
        axes.text(0.5, 0.5, "not counted", ha="center", color=GREY, transform=axes.transAxes)
        return
    starts, counts = zip(*bins, strict=True)
    edges = [1 << power for power in range(starts[-1].bit_length() + 1)]
    axes.hist(starts, bins=edges, weights=counts, color=BLUE, edgecolor="white", linewidth=0.4)
    axes.set_xscale("log", base=10)


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, pad=12)
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    axes.spines["right"].set_visible(False)
    axes.margins(x=0.01)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Running mean over a fiftieth of the values."""
    window = max(1, len(values) // 50)
    sums = [0.0, *accumulate(values)]
    return [
        (sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(values) + 1)
    ]


@contextmanager
def _matplotlib() -> Iterator[None]:
    """Turns a failed import of matplotlib into the pip line that mends it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingExtraError(
            'pictures need matplotlib: pip install "gptrs[plots]"', name="matplotlib"
        ) from None
