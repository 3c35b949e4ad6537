"""The projection as a page that zooms and searches: one file, which needs no network.

Its HTML, CSS and JavaScript stand in projection_page.html; here its data is put in.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from gptrs.errors import DataError
from gptrs.plots.projection import principal_plane

if TYPE_CHECKING:
    import numpy.typing as npt

NUM_NEIGHBOURS = 8
_ROWS_AT_ONCE = 1024


def projection_page(
    vectors: npt.NDArray[Any], labels: Sequence[str], *, title: str = "embeddings"
) -> str:
    """HTML that shows vectors [N, D] on a plane: drag, zoom, search, click for the nearest ones.

    The nearest ones are those of all D dimensions, by cosine. The page follows the reader's light
    or dark setting, or a button.

    Args:
        labels: one a vector, the most important first: labels that would collide give way to them.
    Raises:
        DataError: see `principal_plane`; or there is not a label for each vector.
    """
    plane = principal_plane(vectors)
    if len(labels) != len(plane.points):
        raise DataError(f"a vector needs a label each: {len(plane.points)} and {len(labels)}")
    ids, similarities = nearest_neighbours(vectors, NUM_NEIGHBOURS)
    lowest = plane.points.min(axis=0)
    # Whole numbers are short, and as fine as any screen.
    extent = max(float((plane.points.max(axis=0) - lowest).max()), 1e-30)
    data = {
        "labels": list(labels),
        "points": np.rint((plane.points - lowest) / extent * 10_000).astype(int).ravel().tolist(),
        "neighbours": ids.ravel().tolist(),
        "cosines": np.rint(similarities * 100).astype(int).ravel().tolist(),
        "num_neighbours": ids.shape[1],
        "shares": [round(share, 4) for share in plane.shares],
    }
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # Inside a script element, "<" could end it.
    content = content.replace("<", "\\u003c").replace("\u2028", "\\u2028")
    content = content.encode("utf-8", "replace").decode()  # Half of a character pair is none.
    template = files("gptrs.plots").joinpath("projection_page.html").read_text(encoding="utf-8")
    return template.replace("{{title}}", html.escape(title)).replace("{{data}}", content)


def nearest_neighbours(
    vectors: npt.NDArray[Any], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The most similar other rows of each row, by cosine: numbers and cosines, [N, count] both.

    Fewer, where there are not so many others.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    num_rows = len(units)
    count = min(count, num_rows - 1)
    ids = np.empty((num_rows, count), dtype=np.int64)
    cosines = np.empty((num_rows, count), dtype=np.float32)
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, num_rows))
        products = units[rows] @ units.T
        places = np.arange(products.shape[0])
        products[places, places + start] = -np.inf  # Nobody is their own neighbour.
        found = np.argpartition(-products, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(products, found, axis=1)
        order = np.lexsort((found, -values), axis=1)
        ids[rows] = np.take_along_axis(found, order, axis=1)
        cosines[rows] = np.take_along_axis(values, order, axis=1)
    return ids, cosines
