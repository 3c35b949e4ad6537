"""Vectors on a plane, each with its word: labels that lie on nothing else, or are left out.

vectors [N, D] ─► principal axes ─► points [N, 2] ─► dots, then labels, the first ones first
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.labels import fitting
from gptrs.plots.style import SMALL_SIZE, Palette, Style, drawing, new_figure

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Points = npt.NDArray[np.float32]
    Boxes = npt.NDArray[np.float64]

_DOT_PIXELS = 2.5
_GAP_PIXELS = 1.5
_DISTANCES_PIXELS = (4, 9, 15, 22)
_LEADER_FROM_PIXELS = 14
"""A label that is so far from its dot gets a line to it."""
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


@dataclass(frozen=True, slots=True)
class Plane:
    """Points on the plane in which vectors differ most."""

    points: Points
    """float32 [N, 2]."""
    shares: tuple[float, float]
    """Of the vectors' variance, along each of the two axes."""


def principal_plane(vectors: npt.NDArray[Any]) -> Plane:
    """The vectors [N, D] on their two principal axes; two columns stay as they are.

    The singular value decomposition of the centred vectors. An axis' sign is free: the largest
    number of its direction is made positive, so that the picture is always the same.

    Raises:
        DataError: fewer than two vectors or columns, or numbers that are not finite.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or min(vectors.shape) < 2:
        raise DataError(f"two vectors of two numbers at least can be drawn, found {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise DataError("vectors are finite numbers; found some that are not")
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    if vectors.shape[1] == 2:
        variances = centred.var(axis=0)
        plane = vectors
    else:
        directions, variances = _directions(centred)
        plane = centred @ directions[:, :2]
    total = max(float(variances.sum()), 1e-30)
    shares = float(variances[0]) / total, float(variances[1]) / total
    return Plane(plane.astype(np.float32), shares)


def projection_figure(
    vectors: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    title: str = "",
    style: Style = "light",
) -> Figure:
    """Vectors [N, D] on a plane, with as many labels as there is room for.

    Args:
        labels: one a vector; where two would collide, the first one stays.
    Raises:
        DataError: see `principal_plane`; or there is not a label for each vector.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    plane = principal_plane(vectors)
    if len(labels) != len(plane.points):
        raise DataError(f"a vector needs a label each: {len(plane.points)} and {len(labels)}")
    names = fitting(labels)
    with drawing(style, [*names, title]) as palette:
        figure = new_figure(9, 6.4, title)
        axes = figure.add_subplot()
        x, y = plane.points.T
        axes.scatter(x, y, s=7, color=palette.colours[1], linewidth=0, zorder=3)
        axes.margins(0.06)
        _name_axes(axes, plane, is_as_learned=vectors.shape[1] == 2)
        place_labels(figure, axes, plane.points, names, palette)
        return figure


def place_labels(
    figure: Figure, axes: Axes, points: Points, labels: Sequence[str], palette: Palette
) -> None:
    """Writes labels beside their points, where they lie on no dot and on no other label.

    Tries eight directions and four distances; a label that fits nowhere is left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # The layout moves the axes, and with them all points.
    figure.set_layout_engine("none")
    axes.autoscale(enable=False)  # Nor may the lines to far labels move them.
    dots = axes.transData.transform(points)
    bounds = axes.bbox.extents
    taken = np.concatenate((dots - _DOT_PIXELS, dots + _DOT_PIXELS), axis=1)
    pixels_a_point = figure.dpi / 72
    for dot, label in zip(dots, labels, strict=True):
        text = axes.text(0, 0, label, fontsize=SMALL_SIZE, ha="left", va="bottom", zorder=4)
        extent = text.get_window_extent(canvas.get_renderer())
        box = _free_box(dot, (extent.width, extent.height), taken, bounds, pixels_a_point)
        if box is None or not label.strip():
            text.remove()
            continue
        # What a font calls the lower left corner is not where the drawn letters begin.
        corner = box[:2] - (extent.x0, extent.y0) + axes.transData.transform((0, 0))
        text.set_position(tuple(axes.transData.inverted().transform(corner)))
        taken = np.vstack((taken, box))
        _draw_leader(axes, dot, box, palette)


def _directions(centred: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Principal directions as columns [D, K], and the variance along each."""
    _, lengths, rows = np.linalg.svd(centred, full_matrices=False)
    directions = rows.T
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    return directions, lengths**2 / len(centred)


def _free_box(
    dot: Any, size: tuple[float, float], taken: Boxes, bounds: Any, pixels_a_point: float
) -> Boxes | None:
    """Where a label of this size lies on nothing, inside the bounds: x0, y0, x1, y1 in pixels."""
    for box in _candidates(dot, size, pixels_a_point):
        is_inside = (box[:2] >= bounds[:2]).all() and (box[2:] <= bounds[2:]).all()
        if is_inside and not _overlaps(box, taken):
            return box
    return None


def _candidates(dot: Any, size: tuple[float, float], pixels_a_point: float) -> Iterator[Boxes]:
    width, height = size
    for distance in _DISTANCES_PIXELS:
        for right, up in _DIRECTIONS:
            gap = distance * pixels_a_point * (0.75 if right and up else 1)
            x = dot[0] + right * gap - width * (1 - right) / 2
            y = dot[1] + up * gap - height * (1 - up) / 2
            yield np.array([x, y, x + width, y + height])


def _overlaps(box: Boxes, others: Boxes) -> bool:
    apart = (
        (others[:, 0] >= box[2] + _GAP_PIXELS)
        | (others[:, 2] <= box[0] - _GAP_PIXELS)
        | (others[:, 1] >= box[3] + _GAP_PIXELS / 2)
        | (others[:, 3] <= box[1] - _GAP_PIXELS / 2)
    )
    return not bool(apart.all())


def _draw_leader(axes: Axes, dot: Any, box: Boxes, palette: Palette) -> None:
    """A line from a dot to the nearest place of its label, if that is far."""
    nearest = np.clip(dot, box[:2], box[2:])
    if np.hypot(*(nearest - dot)) < _LEADER_FROM_PIXELS:
        return
    ends = axes.transData.inverted().transform([dot, nearest])
    axes.plot(*ends.T, color=palette.faint, linewidth=0.5, zorder=2)


def _name_axes(axes: Axes, plane: Plane, *, is_as_learned: bool) -> None:
    if is_as_learned:
        axes.set(xlabel="first number", ylabel="second number")
        return
    first, second = plane.shares
    axes.set_xlabel(f"first principal axis, {first:.1%} of the variance")
    axes.set_ylabel(f"second principal axis, {second:.1%}")
