"""report.html and samples.md: all of a run is there, and nothing that a run wrote breaks out."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptrs.errors import MissingExtraError, SourceError
from gptrs.training.reports import reports as run_reports
from gptrs.training.reports.charts import Series, line_chart, thinned, ticks
from gptrs.training.reports.metrics import read_run
from gptrs.training.reports.page import report_page
from gptrs.training.reports.reports import write_report
from gptrs.training.reports.samples import sample_section, samples_page

EVIL = (
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; {{body}} \ud800"
)
RECORDS = [
    {
        "event": "start",
        "config": {"steps": 4, "note": EVIL},
        "model": {"emb_dim": 8},
        "data": {"path": EVIL},
        "num_parameters": 1234,
        "num_train_tokens": 64,
        "unigram_loss": 5.5,
        "device": "cpu",
        "versions": {"torch": "9.9"},
    },
    {
        "event": "device",
        "name": "cpu",
        "peak_flops_per_s": 1000.0,
        "training_flops_per_token": 10,
        "peak_source": EVIL,
    },
    {"event": "evaluation", "step": 0, "val_loss": 5.0, "tokens_seen": 0, "seconds": 0.1},
    *(
        {
            "event": "step",
            "step": step,
            "loss": 5.0 - step,
            "grad_norm": 1.0,
            "learning_rate": 0.1,
            "tokens": 32 * step,
            "seconds": step / 2,
        }
        for step in range(1, 5)
    ),
    {"event": "skipped", "step": 3, "why": "the loss is nan"},
    {
        "event": "evaluation",
        "step": 4,
        "val_loss": 2.0,
        "tokens_seen": 128,
        "seconds": 2.5,
        "tokens_per_s": 64.0,
        "bits_per_byte": 1.25,
    },
    {"event": "sample", "step": 2, "prompt": "Early", "text": " text"},
    {"event": "sample", "step": 4, "prompt": EVIL, "text": EVIL},
    {"event": "end", "step": 4, "reason": "finished"},
]


def written(folder, records=RECORDS):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return read_run(folder)


class Page(HTMLParser):
    """The page as a browser would take it apart."""

    VOID = ("meta", "circle", "line", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_a_page_has_all_of_a_run(tmp_path):
    page = Page(report_page(written(tmp_path / "my-run")))
    for fact in (
        "my-run", "finished after step 4 of 4", "skipped a step 1 time", "bits per byte 1.250",
        "best validation loss 2.000", "its perplexity 7.389", "tokens seen 128", "MFU 64.0 %",
        "passes over the data 2.00", "parameters 1,234", "Early text", "emb_dim 8", "torch 9.9",
    ):  # fmt: skip
        assert fact in page.text, page.text
    assert page.tags.count("svg") == 4


def test_a_page_needs_nothing_from_elsewhere_and_runs_no_script(tmp_path):
    text = report_page(written(tmp_path / "run"))
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.links == []
    assert not re.search(r"url\(|@import|https?:", text)


def test_what_a_run_wrote_is_shown_as_it_is_and_cannot_break_out(tmp_path):
    page = Page(report_page(written(tmp_path / "run")))
    assert "img" not in page.tags
    shown = EVIL.encode("utf-8", "replace").decode()
    assert page.text.count(" ".join(shown.split())) == 5  # A prompt, a text, and three cells.


def test_a_run_that_has_just_begun_has_a_page_too(tmp_path):
    page = Page(report_page(written(tmp_path / "run", RECORDS[:1])))
    assert "running after step 0" in page.text
    assert "svg" not in page.tags


def test_a_report_of_no_run_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"no metrics\.jsonl"):
        write_report(tmp_path)


# --- The charts ---


def numbers():
    return st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)


@given(st.lists(st.tuples(numbers(), numbers()), min_size=1, max_size=40), st.booleans())
def test_all_of_a_line_lies_inside_its_picture(points, dots):
    xs, ys = zip(*points, strict=True)
    svg = line_chart([Series(label="a", xs=xs, ys=ys, dots=dots)], title="<t>", x_label="x")
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    (line,) = root.iter("polyline")
    for place in line.get("points").split():
        x, y = map(float, place.split(","))
        assert 0 <= x <= width
        assert 0 <= y <= height


@given(numbers(), numbers())
def test_ticks_are_few_evenly_apart_and_reach_around_all_values(one, other):
    lowest, highest = min(one, other), max(one, other)
    marks = ticks(lowest, highest)
    tolerance = 1e-6 * (marks[-1] - marks[0]) + 1e-12 * max(abs(lowest), abs(highest))
    assert marks[0] <= lowest + tolerance
    assert marks[-1] >= highest - tolerance
    assert 2 <= len(marks) <= 12
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert max(steps) - min(steps) <= tolerance


@pytest.mark.parametrize("count", [0, 1, 10, 11, 99, 1000])
def test_a_thinned_line_keeps_its_ends_and_its_mean(count):
    points = [(float(i), float(i % 7)) for i in range(count)]
    fewer = thinned(points, 10)
    assert len(fewer) <= 10
    assert (fewer[:1], fewer[-1:]) == (points[:1], points[-1:])
    assert [x for x, _ in fewer] == sorted(x for x, _ in fewer)


def test_what_is_not_finite_is_left_out_and_a_chart_of_nothing_is_none():
    assert line_chart([Series(label="a", xs=[], ys=[])], title="t", x_label="x") == ""
    assert line_chart([Series(label="a", xs=[1], ys=[math.nan])], title="t", x_label="x") == ""
    svg = line_chart([Series(label="a", xs=[1, 2, 3], ys=[1, math.inf, 2])], title="t", x_label="x")
    assert "inf" not in svg


# --- samples.md ---


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), st.text())
def test_a_markdown_reader_finds_each_text_whole_in_a_block_of_its_own(text, prompt):
    markdown = pytest.importorskip("markdown_it").MarkdownIt()
    prompt = " ".join(prompt.encode("utf-8", "ignore").decode().replace("\0", "").split())
    sample = {"step": 7, "prompt": prompt, "text": text}
    tokens = markdown.parse(samples_page("run", [sample, sample]))
    blocks = [token for token in tokens if token.type == "fence"]
    whole = prompt + text
    assert [block.content.rstrip("\n") for block in blocks] == [whole.rstrip("\n")] * 2
    assert {token.type for token in tokens} <= {"heading_open", "inline", "heading_close", "fence"}
    inside = [child.type for token in tokens for child in token.children or []]
    assert set(inside) <= {"text", "text_special"}


def test_a_long_prompt_is_cut_in_the_heading_alone():
    section = sample_section({"step": 1, "prompt": "word " * 50, "text": "end"})
    heading, _, rest = section.strip().partition("\n")
    assert len(heading) < 90
    assert "word " * 50 + "end" in rest


# --- loss.png ---


def test_without_matplotlib_a_run_ends_with_all_but_its_picture_and_says_so_once(
    tmp_path, monkeypatch, capsys
):
    def no_matplotlib(*args, **kwargs):
        raise MissingExtraError('pip install "gptrs[plots]"')

    monkeypatch.setattr(run_reports, "loss_figure", no_matplotlib)
    written(tmp_path / "run")
    reports = run_reports.RunReports()
    run = type("Run", (), {"run_dir": tmp_path / "run", "is_resumed": False, "step": 4})()
    evaluation = type("Evaluation", (), {"step": 4})()
    reports.on_start(run)
    for _ in range(3):
        reports.on_evaluation(run, evaluation)
    reports.on_end(run, "finished")
    assert capsys.readouterr().out.count("gptrs[plots]") == 1
    assert {file.name for file in run.run_dir.iterdir()} == {"metrics.jsonl", "report.html"}


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    written(tmp_path / "run")
    (tmp_path / "run" / "report.html").mkdir()
    run = type("Run", (), {"run_dir": tmp_path / "run", "is_resumed": False})()
    run_reports.RunReports().on_end(run, "finished")
    assert "report.html was not written" in capsys.readouterr().out
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
