"""Loss curves: one run's, several runs' over each other, and the book's picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from gptrs.errors import DataError
from gptrs.plots.labels import fitting
from gptrs.plots.style import BLUE, ORANGE, Style, drawing, matplotlib_needed, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Axis = Literal["tokens", "steps", "minutes"]
Shown = Literal["both", "training", "validation"]
Places = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Where training losses and validation losses lie along an axis."""

AXIS_LABELS: dict[Axis, str] = {
    "tokens": "tokens seen, millions",
    "steps": "step",
    "minutes": "minutes, evaluations included",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """The losses of a run, in nats per token."""

    step_losses: Sequence[float]
    """The training loss of every batch; may be empty."""
    val_steps: Sequence[int] = ()
    """After how many steps the validation loss was measured, and what it was."""
    val_losses: Sequence[float] = ()
    tokens_per_step: int | None = None
    """None: not known; the curves cannot be drawn over tokens."""
    steps: Sequence[int] | None = None
    """The number of each step of `step_losses`; None: 1, 2, 3 and so on."""
    step_seconds: Sequence[float] | None = None
    """How long the run had been going after each step; None: not known."""
    val_seconds: Sequence[float] | None = None

    def axis(self, by: Axis) -> Places | None:
        """Where the training and the validation losses lie along `by`; None if nothing tells."""
        if by == "minutes":
            parts = (self.step_losses, self.step_seconds), (self.val_losses, self.val_seconds)
            if any(len(losses) and seconds is None for losses, seconds in parts):
                return None
            steps, val_steps = ([] if seconds is None else seconds for _, seconds in parts)
            return np.asarray(steps, dtype=float) / 60, np.asarray(val_steps, dtype=float) / 60
        if by == "tokens" and self.tokens_per_step is None:
            return None
        scale = (self.tokens_per_step or 1) / 1e6 if by == "tokens" else 1.0
        steps = range(1, len(self.step_losses) + 1) if self.steps is None else self.steps
        return np.asarray(steps) * scale, np.asarray(self.val_steps) * scale


def losses_figure(
    runs: Mapping[str, LossCurve],
    *,
    by: Axis | None = None,
    show: Shown = "both",
    title: str = "loss",
    style: Style = "light",
) -> Figure:
    """Several runs' losses over each other, each in its colour with its last validation loss.

    Training is a thin smoothed line, validation a thick one with dots.

    Args:
        by: what the axis counts. None: tokens where all runs say how many a step has, so that
            batches of different sizes can be compared; else steps.
        show: training, validation, or both.
    Raises:
        DataError: there is no run, one has no losses to show, or does not know what `by` counts.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    if not runs:
        raise DataError("a picture of losses needs a run")
    for name, run in runs.items():
        _check(name, run, show)
    if by is None:
        known = all(run.tokens_per_step is not None for run in runs.values())
        by = "tokens" if known else "steps"
    places = [(run, _places(name, run, by)) for name, run in runs.items()]
    names = fitting(list(runs), most=40)
    with drawing(style, names) as palette:
        figure = new_figure(8, 4.6)
        axes = figure.add_subplot()
        for number, (name, (run, where)) in enumerate(zip(names, places, strict=True)):
            colour = palette.colours[number % len(palette.colours)]
            _draw_run(axes, run, where, show, colour, name)
        axes.set_xlabel(AXIS_LABELS[by])
        _label(axes, title)
        return figure


def loss_figure(
    run: LossCurve, *, title: str, unigram_loss: float | None = None, style: Style = "light"
) -> Figure:
    """One run's losses over its steps: the training loss faintly, and smoothed on top.

    Args:
        run: with one validation loss at least.
        unigram_loss: drawn as a baseline; None: there is none.
    Raises:
        DataError: the run has no validation losses.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    _check(title, run, "validation")
    with drawing(style, [title]) as palette:
        figure = new_figure(7.5, 4.5)
        axes = figure.add_subplot()
        blue, orange = palette.colours[:2]
        steps, val_steps = _places(title, run, "steps")
        axes.plot(steps, run.step_losses, color=blue, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smoothed(run.step_losses), color=blue, linewidth=1.8, label="training")
        axes.plot(
            val_steps,
            run.val_losses,
            color=orange,
            linewidth=1.8,
            marker="o",
            markersize=4.5,
            label=f"validation, {run.val_losses[-1]:.2f} at the end",
        )
        if unigram_loss is not None:
            axes.axhline(
                unigram_loss,
                color=palette.faint,
                linestyle="--",
                linewidth=1.2,
                label=f"knows only how common each token is, {unigram_loss:.2f}",
            )
        axes.set_xlabel("step")
        _label(axes, title)
        if run.tokens_per_step is not None:
            _add_tokens_axis(axes, run.tokens_per_step / 1e6, palette.faint)
        return figure


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


def _check(name: str, run: LossCurve, show: Shown) -> None:
    """Raises DataError for what cannot be drawn."""
    if not len(run.step_losses) and not len(run.val_losses):
        raise DataError(f"{name} has no losses: there is nothing to draw")
    wanted = {"training": run.step_losses, "validation": run.val_losses}.get(show)
    if wanted is not None and not len(wanted):
        raise DataError(f"{name} has no losses in {show}: there is nothing to draw")
    if len(run.val_steps) != len(run.val_losses):
        raise DataError(
            f"{name} has {len(run.val_losses)} validation losses at {len(run.val_steps)} steps"
        )


def _places(name: str, run: LossCurve, by: Axis) -> Places:
    places = run.axis(by)
    if places is None:
        raise DataError(f"{name} does not tell its {by}: by steps it can be drawn")
    return places


def _draw_run(
    axes: Axes, run: LossCurve, places: Places, show: Shown, colour: str, name: str
) -> None:
    """The curves that are to be shown, as far as the run has them."""
    has_validation = len(run.val_losses) > 0 and show != "training"
    last = run.val_losses[-1] if has_validation else smoothed(run.step_losses)[-1]
    label = f"{name}, {last:.2f} {'at the end' if has_validation else 'in training'}"
    steps, val_steps = places
    if show != "validation":
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
            val_steps,
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
