"""Loss curves: one run's, several runs' over each other, and the book's picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.labels import fitting
from gptrs.plots.style import BLUE, ORANGE, Style, drawing, matplotlib_needed, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """The losses of a run, in nats per token."""

    step_losses: Sequence[float]
    """The training loss of every batch; may be empty."""
    val_steps: Sequence[int] = ()
    """After how many steps the validation loss was measured, and what it was."""
    val_losses: Sequence[float] = ()
    tokens_per_step: int | None = None
    """None: curves are drawn over steps."""


def losses_figure(
    runs: Mapping[str, LossCurve], *, title: str = "loss", style: Style = "light"
) -> Figure:
    """Several runs' losses over each other, each in its colour with its last validation loss.

    Training is a thin smoothed line, validation a thick one with dots. The axis is in tokens where
    all runs say how many a step has, so that batches of different sizes can be compared.

    Raises:
        DataError: there is no run, or one has no losses.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    if not runs:
        raise DataError("a picture of losses needs a run")
    for name, run in runs.items():
        if not len(run.step_losses) and not len(run.val_losses):
            raise DataError(f"{name} has no losses: there is nothing to draw")
        if len(run.val_steps) != len(run.val_losses):
            raise DataError(
                f"{name} has {len(run.val_losses)} validation losses at {len(run.val_steps)} steps"
            )
    tokens = [run.tokens_per_step for run in runs.values()]
    names = fitting(list(runs), most=40)
    with drawing(style, names) as palette:
        figure = new_figure(8, 4.6)
        axes = figure.add_subplot()
        for number, (name, run) in enumerate(zip(names, runs.values(), strict=True)):
            scale = (run.tokens_per_step or 1) / 1e6 if None not in tokens else 1.0
            colour = palette.colours[number % len(palette.colours)]
            _draw_run(axes, run, scale, colour, name)
        axes.set_xlabel("step" if None in tokens else "tokens seen, millions")
        _label(axes, title)
        return figure


def save_loss_figure(
    path: str | Path,
    *,
    step_losses: Sequence[float],
    val_steps: Sequence[int],
    val_losses: Sequence[float],
    tokens_per_step: int,
    unigram_loss: float,
    title: str,
    style: Style = "light",
) -> None:
    """Saves a run's loss curves; the file type follows from the name.

    Args:
        step_losses: the training loss of every batch, drawn faintly, and smoothed on top.
        val_steps, val_losses: after how many steps the validation loss was what; at least one.
        unigram_loss: drawn as a baseline.
    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    with drawing(style, [title]) as palette:
        figure = new_figure(7.5, 4.5)
        axes = figure.add_subplot()
        blue, orange = palette.colours[:2]
        steps = range(1, len(step_losses) + 1)
        axes.plot(steps, step_losses, color=blue, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smoothed(step_losses), color=blue, linewidth=1.8, label="training")
        axes.plot(
            val_steps,
            val_losses,
            color=orange,
            linewidth=1.8,
            marker="o",
            markersize=4.5,
            label=f"validation, {val_losses[-1]:.2f} at the end",
        )
        axes.axhline(
            unigram_loss,
            color=palette.faint,
            linestyle="--",
            linewidth=1.2,
            label=f"knows only how common each token is, {unigram_loss:.2f}",
        )
        axes.set_xlabel("step")
        _label(axes, title)
        _add_tokens_axis(axes, tokens_per_step / 1e6, palette.faint)
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
    with matplotlib_needed():
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


def smoothed(values: Sequence[float]) -> list[float]:
    """Running mean over a fiftieth of the values."""
    window = max(1, len(values) // 50)
    sums = [0.0, *accumulate(values)]
    return [
        (sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(values) + 1)
    ]


def _draw_run(axes: Axes, run: LossCurve, scale: float, colour: str, name: str) -> None:
    """Both curves; `scale` turns steps into what the axis counts."""
    has_validation = len(run.val_losses) > 0
    last = run.val_losses[-1] if has_validation else smoothed(run.step_losses)[-1]
    label = f"{name}, {last:.2f} {'at the end' if has_validation else 'in training'}"
    steps = np.arange(1, len(run.step_losses) + 1) * scale
    axes.plot(
        steps,
        smoothed(run.step_losses),
        color=colour,
        linewidth=1.0,
        alpha=0.55 if has_validation else 1.0,
        label=None if has_validation else label,
    )
    if has_validation:
        axes.plot(
            np.asarray(run.val_steps) * scale,
            run.val_losses,
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=4,
            label=label,
        )


def _add_tokens_axis(axes: Axes, millions_per_step: float, colour: str) -> None:
    tokens_axis = axes.secondary_xaxis(
        "top",
        functions=(
            lambda steps: np.asarray(steps) * millions_per_step,
            lambda millions: np.asarray(millions) / millions_per_step,
        ),
    )
    tokens_axis.set_xlabel("tokens seen, millions", color=colour)
    tokens_axis.tick_params(colors=colour)


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, pad=12)
    axes.set_ylabel("loss, nats per token")
    axes.legend()
    axes.margins(x=0.01)
