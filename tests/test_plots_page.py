"""The page's own script, run by Node.js on a canvas that takes notes; skipped without it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gptrs.plots.projection_page import nearest_neighbours, projection_page

PAGE_READER = Path(__file__).parent / "fixtures" / "projection_page.js"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")


@pytest.fixture(params=range(5))
def read(request, tmp_path):
    """Vectors, labels, and what a reader sees who drags, zooms, clicks the first and searches."""
    rng = np.random.default_rng(request.param)
    vectors = rng.normal(size=(rng.integers(20, 200), 6)).astype(np.float32)
    labels = [f"{'ba'[number % 2]}{number}" for number in range(len(vectors))]
    page = tmp_path / "page.html"
    page.write_text(projection_page(vectors, labels), encoding="utf-8")
    command = [NODE, str(PAGE_READER), str(page), "A1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return vectors, labels, json.loads(result.stdout)


def test_labels_do_not_collide_and_the_first_is_among_them(read):
    _, labels, seen = read
    drawn = seen["atFirst"]
    assert drawn[0]["text"] == labels[0]
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            apart_x = one["left"] >= other["right"] or other["left"] >= one["right"]
            assert apart_x or abs(one["y"] - other["y"]) >= 16


def test_dragging_moves_all_and_the_wheel_keeps_the_place_under_the_pointer(read):
    _, _, seen = read
    before, after = seen["atFirst"][0], seen["dragged"][0]
    moved = after["left"] - before["left"], after["y"] - before["y"]
    assert moved == pytest.approx((30, 20))
    zoomed = seen["zoomed"]
    for name in ("left", "y"):
        assert zoomed["after"][name] == pytest.approx(zoomed["before"][name])


def test_a_click_shows_the_nearest_in_all_dimensions(read):
    vectors, labels, seen = read
    chosen = labels.index(seen["chosen"])
    assert seen["chosen"] == seen["zoomed"]["text"]
    ids, cosines = nearest_neighbours(vectors, 8)
    expected = [[labels[i], c] for i, c in zip(ids[chosen], cosines[chosen], strict=True)]
    assert [name for name, _ in seen["neighbours"]] == [name for name, _ in expected]
    found = [float(cosine) for _, cosine in seen["neighbours"]]
    assert found == pytest.approx([cosine for _, cosine in expected], abs=0.0051)


def test_a_search_finds_all_that_have_it_in_them_whatever_their_case(read):
    _, labels, seen = read
    matches = [label for label in labels if "a1" in label]
    assert seen["found"] == f"{len(matches)} of {len(labels)} found; Enter shows them"
    assert set(seen["afterEnter"]) & set(matches)
    assert seen["style"] in ("light", "dark")
