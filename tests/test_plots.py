"""`gptrs.plots`: what is in a picture is what was given, or there is an error that says why not."""

import builtins
import io
import json
import re
import struct
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from gptrs import plots
from gptrs.config import PRESETS
from gptrs.costs.params import count_parameters, parameter_budget
from gptrs.errors import ConfigError, DataError, MissingExtraError
from gptrs.plots import fonts
from gptrs.plots.budget import in_short, parts_of
from gptrs.plots.labels import fitting, token_label
from gptrs.plots.projection_page import nearest_neighbours

RUN = plots.LossCurve(
    step_losses=[10 / (step + 1) for step in range(200)],
    val_steps=[0, 100, 200],
    val_losses=[10.0, 5.0, 4.0],
    tokens_per_step=2048,
)
LABELS = ["If", "␣the", "␣object", "$x$", "<0xE4>"]
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 12)).astype(np.float32)
WEIGHTS = np.tril(RNG.random((2, 3, 5, 5)))
WEIGHTS = (WEIGHTS / WEIGHTS.sum(-1, keepdims=True)).astype(np.float32)
DISTRIBUTION = RNG.dirichlet(np.ones(40)).astype(np.float32)
CURVE = plots.LossCurve(
    step_losses=[3.0, 2.0, 1.0], val_steps=[0, 3], val_losses=[3.5, 1.5], tokens_per_step=10**6
)
NO_CHARACTER = "\U000fdddd"  # For private use: no font has a glyph there, none has a meaning.

FIGURES = {
    "table": lambda style: plots.table_figure(VALUES, LABELS, style=style),
    "sum": lambda style: plots.sum_figure(VALUES, VALUES, LABELS, style=style),
    "positions": lambda style: plots.positions_figure(VALUES, style=style),
    "scores": lambda style: plots.position_scores_figure({"alibi": VALUES}, style=style),
    "attention": lambda style: plots.attention_figure(WEIGHTS, LABELS, style=style),
    "map": lambda style: plots.attention_map(WEIGHTS[0, 0], LABELS, style=style),
    "lens": lambda style: plots.lens_figure([LABELS] * 3, WEIGHTS[0, :3, 0], LABELS, style=style),
    "sampling": lambda style: plots.sampling_figure(
        {"the model": DISTRIBUTION}, LABELS, most_likely=range(5), style=style
    ),
    "loss": lambda style: plots.loss_figure(RUN, title="a run", unigram_loss=6.0, style=style),
    "losses": lambda style: plots.losses_figure({"run": CURVE}, style=style),
    "budget": lambda style: plots.budget_figure(
        {"gpt2-124m": parameter_budget(PRESETS["gpt2-124m"])}, style=style
    ),
    "store": lambda style: plots.store_figure(
        length_bins=[(1, 3), (2, 5)],
        token_counts=np.array([5, 0, 3], dtype=np.uint64),
        frequent=LABELS[:2],
        style=style,
    ),
    "confusion": lambda style: plots.confusion_figure(
        np.array([[3, 1], [0, 4]]), ["ham", "spam"], style=style
    ),
    "projection": lambda style: plots.projection_figure(VALUES, LABELS, style=style),
}


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def image_of(axes):
    """What is drawn as colours."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("style", ["light", "dark"])
def test_every_picture_is_a_figure_on_the_paper_of_its_style(name, style):
    figure = FIGURES[name](style)
    assert isinstance(figure, Figure)
    content = io.BytesIO()
    figure.savefig(content, dpi=20)
    with Image.open(content) as image:
        corner = image.convert("RGB").getpixel((0, 0))
    assert corner == {"light": (255, 255, 255), "dark": (13, 17, 23)}[style]


@pytest.mark.parametrize("name", FIGURES)
def test_a_style_that_there_is_not_is_refused(name):
    with pytest.raises(ConfigError, match=r'style is "light" or "dark", found "?\'?sepia'):
        FIGURES[name]("sepia")


@pytest.mark.parametrize("name", FIGURES)
def test_without_matplotlib_every_picture_says_how_to_get_it(name, no_matplotlib):
    with pytest.raises(MissingExtraError, match=r'pip install "gptrs\[plots\]"'):
        FIGURES[name]("light")


def test_the_settings_of_matplotlib_stay_what_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    FIGURES["table"]("dark")
    assert dict(matplotlib.rcParams) == before


# --- Labels and fonts ---


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (b" the", "␣the"),
        (b"\n\n", "↵↵"),
        (b"\t", "⇥"),
        ("zażółć".encode(), "zażółć"),
        ("中".encode()[:2], "<0xE4><0xB8>"),
        (b"\x80a", "<0x80>a"),
        (" 中", "␣中"),
        (b"<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_a_tokens_label_shows_what_cannot_be_seen(token, label):
    assert token_label(token) == label


def test_polish_is_drawn_and_what_no_font_has_is_escaped():
    assert fonts.drawable("Zażółć gęślą jaźń") == "Zażółć gęślą jaźń"
    assert fonts.drawable(f"a{NO_CHARACTER}\r\x00") == r"a\U000fdddd\r\x00"


def test_a_script_is_drawn_by_an_installed_font_or_as_escapes_and_never_as_boxes():
    words = ["中文", "한국어", "日本語", "český", NO_CHARACTER]
    vectors = RNG.normal(size=(5, 3))
    figure = plots.projection_figure(vectors, words)
    figure.savefig(io.BytesIO())  # A missing glyph would be a warning, and so an error here.
    drawn = [text.get_text() for text in figure.axes[0].texts]
    for word in words:
        family = [fonts.family_with(character) for character in word]
        escaped = word.encode("unicode_escape").decode()
        shown = word if None not in family else fitting([word])[0]
        assert shown in drawn
        assert all(family) or shown.startswith(escaped[:6])


def test_a_font_of_boxes_is_no_font(monkeypatch):
    from matplotlib.font_manager import fontManager

    @dataclass
    class Entry:
        name: str

    monkeypatch.setattr(fontManager, "ttflist", [Entry("Last Resort"), Entry("DejaVu Sans")])
    fonts.family_with.cache_clear()
    try:
        assert fonts.family_with("中") is None
        assert fonts.family_with("a") == "DejaVu Sans"
    finally:
        fonts.family_with.cache_clear()


def test_another_font_is_taken_where_the_first_has_no_glyph(monkeypatch):
    code_points = {"DejaVu Sans": {ord("a")}, "Noto Sans CJK SC": {ord("中")}}
    monkeypatch.setattr(fonts, "_families", lambda: iter(code_points))
    monkeypatch.setattr(fonts, "_code_points", code_points.__getitem__)
    fonts.family_with.cache_clear()
    try:
        assert fonts.families_for(["a中", "b"]) == ["DejaVu Sans", "Noto Sans CJK SC"]
        assert fonts.drawable("a中") == "a中"
        assert fonts.family_with("b") is None
    finally:
        fonts.family_with.cache_clear()


def test_long_labels_are_cut_and_dollars_are_no_mathematics():
    assert fitting(["x" * 40], most=8) == ["xxxxxxx…"]
    figure = plots.table_figure(VALUES, ["$a$", "$\\frac$", "$$", "$", "%"])
    figure.savefig(io.BytesIO())
    assert tick_labels(figure.axes[0].yaxis)[:4] == ["$a$", "$\\frac$", "$$", "$"]


# --- What is in the pictures ---


@pytest.mark.parametrize("seed", range(20))
def test_heat_maps_have_the_vectors_and_a_label_for_each(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 30, size=2)
    values = rng.normal(size=shape).astype(np.float32)
    labels = [f"t{row}" for row in range(shape[0])]
    axes = plots.table_figure(values, labels).axes[0]
    assert np.array_equal(image_of(axes), values)
    assert tick_labels(axes.yaxis) == labels
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ([f"{x:z.2f}" for x in values.ravel()] if shape[1] <= 10 else [])


@pytest.mark.parametrize("seed", range(20))
def test_the_third_table_is_the_sum_of_the_first_two(seed):
    rng = np.random.default_rng(seed)
    tokens, positions = rng.normal(size=(2, rng.integers(1, 9), 16)).astype(np.float32)
    labels = [f"t{row}" for row in range(len(tokens))]
    axes = plots.sum_figure(tokens, positions, labels, columns=5).axes
    drawn = [image_of(axes[number]) for number in (0, 2, 4)]
    for found, expected in zip(drawn, (tokens, positions, tokens + positions), strict=True):
        assert np.array_equal(found, expected[:, :5])
    assert tick_labels(axes[0].yaxis) == tick_labels(axes[4].yaxis) == labels
    assert [axes[number].texts[0].get_text() for number in (1, 3)] == ["+", "="]


@pytest.mark.parametrize("seed", range(20))
def test_positions_are_drawn_with_the_cosines_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rng.integers(2, 12), 8)).astype(np.float32)
    table, pairs, by_distance = plots.positions_figure(values).axes[:3]
    assert np.array_equal(image_of(table), values)
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    assert image_of(pairs) == pytest.approx(units @ units.T, abs=1e-6)
    means = [np.diagonal(units @ units.T, d).mean() for d in range(len(values))]
    assert by_distance.lines[0].get_ydata() == pytest.approx(means, abs=1e-6)


def test_scores_by_distance_are_a_curve_a_head_and_a_panel_a_kind():
    kinds = {"alibi": VALUES, "t5": VALUES[:2] + 1, "rope": VALUES[:1], "xl": VALUES}
    figure = plots.position_scores_figure(kinds)
    panels = figure.axes
    for axes, (name, values) in zip(panels, kinds.items(), strict=False):
        assert axes.get_title(loc="left") == name
        drawn = [line.get_ydata() for line in axes.lines[: len(values)]]
        assert np.array_equal(drawn, values)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"head {n}" for n in range(5)]


def test_attention_has_a_map_for_each_layer_and_head_that_hides_what_is_not_seen():
    figure = plots.attention_figure(WEIGHTS, LABELS, first_layer=4, first_head=1)
    for index, axes in enumerate(figure.axes[:6]):
        drawn = axes.images[0].get_array()
        expected = WEIGHTS[index // 3, index % 3]
        assert np.array_equal(drawn.data, expected)
        assert np.array_equal(drawn.mask, np.triu(np.ones((5, 5), dtype=bool), 1))
        assert axes.images[0].get_clim() == (0, 1)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["head 1", "head 2", "head 3"]
    assert [axes.get_ylabel() for axes in figure.axes[:6:3]] == ["layer 4", "layer 5"]


def test_one_attention_map_has_the_tokens_at_both_sides_and_as_many_as_can_be_read():
    axes = plots.attention_figure(WEIGHTS[:1, :1], LABELS).axes[0]
    assert tick_labels(axes.xaxis) == tick_labels(axes.yaxis) == LABELS
    many = plots.attention_map(np.eye(200), [f"t{n}" for n in range(200)]).axes[0]
    assert tick_labels(many.xaxis) == [f"t{n}" for n in range(0, 200, 5)]


def test_the_lens_has_a_guess_in_each_cell_and_the_last_layer_on_top():
    guesses = [[f"g{row}{column}" for column in range(5)] for row in range(3)]
    probabilities = RNG.random((3, 5)).astype(np.float32)
    axes = plots.lens_figure(guesses, probabilities, LABELS).axes[0]
    assert np.array_equal(image_of(axes), probabilities)
    assert [text.get_text() for text in axes.texts] == [cell for row in guesses for cell in row]
    assert tick_labels(axes.yaxis) == ["embeddings", "layer 0", "layer 1"]
    assert not axes.yaxis_inverted()
    assert tick_labels(axes.xaxis) == LABELS


def test_each_sampling_step_has_its_bars_and_the_outline_of_the_one_before():
    kept = np.where(DISTRIBUTION > 0.05, DISTRIBUTION, 0)
    shown = [3, 1, 4, 0, 9]
    figure = plots.sampling_figure(
        {"the model": DISTRIBUTION, "min_p 0.5": kept}, LABELS, most_likely=shown
    )
    first, second = figure.axes
    widths = [bar.get_width() for bar in second.patches]
    assert [bar.get_width() for bar in first.patches] == DISTRIBUTION[shown].tolist()
    assert widths == [*kept[shown].tolist(), *DISTRIBUTION[shown].tolist()]
    assert f"{(kept > 0).sum()} tokens left" in second.get_xlabel()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["the model", "min_p 0.5"]
    assert tick_labels(first.yaxis) == LABELS


def test_loss_curves_lie_over_each_other_in_tokens_if_all_know_how_many():
    other = plots.LossCurve(step_losses=[5.0, 4.0], tokens_per_step=2 * 10**6)
    axes = plots.losses_figure({"a": CURVE, "b": other}).axes[0]
    training, validation, second = axes.lines
    assert training.get_xdata().tolist() == [1, 2, 3]
    assert training.get_ydata().tolist() == [3, 2, 1]
    assert (validation.get_xdata().tolist(), validation.get_ydata().tolist()) == (
        [0, 3],
        [3.5, 1.5],
    )
    assert second.get_xdata().tolist() == [2, 4]
    assert axes.get_xlabel() == "tokens seen, millions"
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["a, 1.50 at the end", "b, 4.00 in training"]
    unknown = plots.LossCurve(step_losses=[5.0, 4.0])
    assert plots.losses_figure({"a": CURVE, "b": unknown}).axes[0].get_xlabel() == "step"


def test_loss_curves_lie_over_minutes_and_over_steps_where_that_is_asked():
    timed = replace(CURVE, step_seconds=[30, 60, 90], val_seconds=[0, 120])
    figure = plots.losses_figure({"a": timed}, by="minutes")
    training, validation = figure.axes[0].lines
    assert training.get_xdata().tolist() == [0.5, 1, 1.5]
    assert validation.get_xdata().tolist() == [0, 2]
    numbered = replace(CURVE, steps=[1, 2, 4])
    training, _ = plots.losses_figure({"a": numbered}, by="steps").axes[0].lines
    assert training.get_xdata().tolist() == [1, 2, 4]


@pytest.mark.parametrize(("show", "data"), [("training", [3, 2, 1]), ("validation", [3.5, 1.5])])
def test_one_kind_of_loss_can_be_shown_alone(show, data):
    (line,) = plots.losses_figure({"a": CURVE}, show=show).axes[0].lines
    assert line.get_ydata().tolist() == data
    legend = plots.losses_figure({"a": CURVE}, show=show).axes[0].get_legend()
    assert len(legend.get_texts()) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_the_parts_of_a_budget_sum_to_all_parameters(name):
    parts = parts_of(parameter_budget(PRESETS[name]))
    assert sum(parts.values()) == count_parameters(PRESETS[name])
    assert 0 not in parts.values()
    axes = plots.budget_figure({name: parameter_budget(PRESETS[name])}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(
        [count / sum(parts.values()) for count in parts.values()]
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12"),
        (999_600, "1 million"),
        (124_439_808, "124 million"),
        (175 * 10**9, "175 billion"),
    ],
)
def test_numbers_of_parameters_are_said_in_three_digits(count, text):
    assert in_short(count) == text


def test_a_store_has_whole_bins_and_its_most_frequent_tokens():
    counts = np.array([0, 6, 3, 1], dtype=np.uint64)
    lengths, ranks, frequent = plots.store_figure(
        length_bins=[(0, 2), (1, 0), (4, 3), (5, 4), (8, 1)],
        token_counts=counts,
        frequent=["␣the", "a"],
    ).axes
    assert [bar.get_height() for bar in lengths.patches] == [7, 1]
    assert ranks.lines[0].get_ydata().tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert [bar.get_width() for bar in frequent.patches] == pytest.approx([0.6, 0.3])
    assert tick_labels(frequent.yaxis) == ["␣the", "a"]


# --- The projection ---


@pytest.mark.parametrize("seed", range(20))
def test_the_plane_is_that_of_the_largest_variance(seed):
    """torch's randomised PCA is exact for as many columns."""
    import torch

    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(40, 6)) * rng.uniform(0.1, 3, size=6)
    plane = plots.principal_plane(vectors)
    torch.manual_seed(seed)
    _, lengths, directions = torch.pca_lowrank(torch.tensor(vectors), q=6)
    theirs = (torch.tensor(vectors - vectors.mean(0)) @ directions[:, :2]).numpy()
    assert np.abs(plane.points) == pytest.approx(np.abs(theirs), abs=1e-4)
    shares = (lengths**2 / (lengths**2).sum())[:2].tolist()
    assert plane.shares == pytest.approx(shares, rel=1e-6)


def test_two_numbers_are_drawn_as_they_are():
    vectors = RNG.normal(size=(9, 2)).astype(np.float32)
    assert np.array_equal(plots.principal_plane(vectors).points, vectors)
    axes = plots.projection_figure(vectors, list("abcdefghi")).axes[0]
    assert np.array_equal(axes.collections[0].get_offsets(), vectors)
    assert axes.get_xlabel() == "first number"


@pytest.mark.parametrize("seed", range(20))
def test_labels_lie_on_no_other_label_and_on_no_dot(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rng.integers(2, 45), 2)) ** 3
    labels = [f"word{number}" for number in range(len(vectors))]
    figure = plots.projection_figure(vectors, labels)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    dots = axes.transData.transform(vectors)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.contains(*dot) for dot in dots)
        assert Bbox.intersection(axes.bbox, box).bounds == pytest.approx(box.bounds)
    assert {text.get_text() for text in axes.texts} <= set(labels)
    assert axes.texts[0].get_text() == labels[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_page_has_the_points_the_labels_and_the_true_neighbours(seed):
    import torch

    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rng.integers(3, 60), 5)).astype(np.float32)
    labels = [f"<b>&{number}</script>中" for number in range(len(vectors))]
    page = plots.projection_page(vectors, labels, title="a <title>")
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert data["labels"] == labels
    points = np.reshape(data["points"], (-1, 2))
    assert points.shape == (len(vectors), 2)
    assert (points.min(), points.max()) == (0, 10_000)
    torch_vectors = torch.tensor(vectors)
    cosines = torch.cosine_similarity(torch_vectors[:, None], torch_vectors[None], dim=-1)
    cosines.fill_diagonal_(-2)
    count = min(8, len(vectors) - 1)
    expected = cosines.topk(count)
    ids, found = nearest_neighbours(vectors, 8)
    assert np.array_equal(ids, expected.indices)
    assert found == pytest.approx(expected.values.numpy(), abs=1e-5)
    assert data["neighbours"] == ids.ravel().tolist()


def test_the_page_needs_nothing_from_elsewhere():
    page = plots.projection_page(VALUES, LABELS, title="a <title>")
    assert "a &lt;title&gt;" in page
    assert not re.search(r"https?://|\b(src|href)=|@import|url\(", page)
    assert page.count("</script>") == 2
    assert "prefers-color-scheme: dark" in page


def test_a_page_of_more_rows_than_are_compared_at_once_is_right_at_the_seam():
    vectors = RNG.normal(size=(1030, 4)).astype(np.float32)
    ids, _ = nearest_neighbours(vectors, 3)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    products = units @ units.T
    np.fill_diagonal(products, -2)
    assert np.array_equal(ids[:, 0], products.argmax(axis=1))


# --- Bad input ---


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.table_figure(VALUES, LABELS[:3]), r"a row needs a label each.*\(5, 12\)"),
        (lambda: plots.table_figure(np.ones((61, 2)), ["x"] * 61), "61 rows .* at most 60"),
        (lambda: plots.sum_figure(VALUES, VALUES[:, 1:], LABELS), r"\(5, 12\), positions \(5, 11"),
        (lambda: plots.positions_figure(VALUES[:1]), "two positions at least"),
        (lambda: plots.position_scores_figure({}), "no scores by distance"),
        (lambda: plots.attention_figure(WEIGHTS, LABELS[1:]), r"\(2, 3, 5, 5\) and 4 labels"),
        (lambda: plots.lens_figure([LABELS], WEIGHTS[0, 0], LABELS), r"found \(5, 5\)"),
        (lambda: plots.sampling_figure({}, LABELS, most_likely=range(5)), "found 0 steps"),
        (lambda: plots.losses_figure({}), "needs a run"),
        (lambda: plots.losses_figure({"a": plots.LossCurve(step_losses=[])}), "a has no losses"),
        (lambda: plots.losses_figure({"a": CURVE}, by="minutes"), "a does not tell its minutes"),
        (
            lambda: plots.losses_figure(
                {"a": plots.LossCurve(step_losses=[1.0])}, show="validation"
            ),
            "a has no losses in validation",
        ),
        (lambda: plots.loss_figure(plots.LossCurve(step_losses=[1.0]), title="a"), "validation"),
        (lambda: plots.budget_figure({}), "needs a model"),
        (lambda: plots.projection_figure(VALUES, LABELS[:2]), "5 and 2"),
        (lambda: plots.projection_figure(VALUES[:1], LABELS[:1]), r"found \(1, 12\)"),
        (lambda: plots.projection_page(VALUES * np.nan, LABELS), "finite"),
    ],
)
def test_what_does_not_fit_together_is_refused(draw, message):
    with pytest.raises(DataError, match=message):
        draw()


# --- The picture of a run ---


def test_a_runs_losses_become_a_png_of_readable_size(tmp_path):
    plots.loss_figure(RUN, title="x").savefig(tmp_path / "loss.png", dpi=150)
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1000
    assert height >= 600


def test_a_run_of_one_step_can_be_drawn():
    one_step = replace(RUN, step_losses=[10.0], val_steps=[0, 1], val_losses=[10.0, 9.0])
    axes = plots.loss_figure(one_step, title="x").axes[0]
    assert [line.get_label() for line in axes.lines[1:]] == [
        "training",
        "validation, 9.00 at the end",
    ]


def test_a_skipped_step_leaves_a_gap_in_the_curve():
    skipped = replace(RUN, step_losses=[5.0, 4.0], steps=[1, 3], val_steps=[3], val_losses=[4.0])
    axes = plots.loss_figure(skipped, title="x").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 3]


def test_without_matplotlib_the_error_has_the_pip_line(no_matplotlib):
    with pytest.raises(MissingExtraError, match=r'pip install "gptrs\[plots\]"'):
        plots.loss_figure(RUN, title="x")


@pytest.fixture
def no_matplotlib(monkeypatch):
    """As if it were not installed, and nobody had asked for a font before."""
    fonts.family_with.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    really_import = builtins.__import__

    def import_without_matplotlib(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return really_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_matplotlib)
