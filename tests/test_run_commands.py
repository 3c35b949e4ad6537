"""`gptrs runs`, as a terminal sees it."""

import json
import os
import time

import pytest
from click.testing import CliRunner

from gptrs.commands.runs import _count, _time, runs
from gptrs.errors import SourceError
from gptrs.training.reports.metrics import read_run


def write(folder, *, losses, end="finished", config=None, speed=100.0, bits=None):
    """A run of 10 steps an evaluation, 1,000 tokens a step, a minute an evaluation."""
    records = [
        {"event": "start", "config": config or {}, "model": {"emb_dim": 8}, "num_parameters": 5000},
        {"event": "device", "peak_flops_per_s": 1000.0, "training_flops_per_token": 4},
    ]
    for number, loss in enumerate(losses):
        records.append(
            {
                "event": "evaluation",
                "step": 10 * number,
                "val_loss": loss,
                "bits_per_byte": bits and bits[number],
                "tokens_seen": 10_000 * number,
                "seconds": 60.0 * number,
                "tokens_per_s": speed if number else None,
            }
        )
    if end:
        records.append({"event": "end", "reason": end})
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three runs, one of them deeper, and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs" / "b", losses=[5.0, 2.0, 2.5], bits=[3.0, 1.2, 1.5])
    write(
        tmp_path / "runs" / "a",
        losses=[5.0, 4.0],
        end="interrupted",
        config={"learning_rate": 0.1},
        speed=250.0,
    )
    write(tmp_path / "runs" / "deep" / "c", losses=[6.0], end=None)
    (tmp_path / "runs" / "other").mkdir()
    return tmp_path / "runs"


def call(*arguments):
    result = CliRunner().invoke(runs, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def table(*arguments):
    titles, *rows = (line.split("  ") for line in call(*arguments).output.splitlines())
    titles, *rows = [[cell.strip() for cell in row if cell.strip()] for row in (titles, *rows)]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_every_run_below_has_a_line_with_what_it_reached(folder):
    rows = table()
    assert [row["run"] for row in rows] == ["runs/a", "runs/b", "runs/deep/c"]
    assert rows[1] == {
        "run": "runs/b",
        "state": "finished",
        "steps": "20",
        "tokens": "20k",
        "val loss": "2.500",
        "best": "2.000",
        "bits/byte": "1.200",
        "tokens/s": "100",
        "MFU": "40%",
        "parameters": "5k",
        "time": "2 min",
    }
    assert rows[0]["state"] == "interrupted"
    assert rows[2]["state"] == "running"
    assert rows[2]["tokens/s"] == "-"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1k"), (15_360, "15.4k"), (999_400, "999k"),
        (999_900, "1M"), (7_241_088, "7.24M"), (1.5e9, "1.5B"), (5e12, "5T"),
    ],
)  # fmt: skip
def test_counts_have_three_digits_and_a_unit(count, text):
    assert _count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0.4 s"), (11.26, "11.3 s"), (150, "2.5 min"), (36_000, "10 h")]
)
def test_a_short_run_is_told_in_seconds_and_a_long_one_in_hours(seconds, text):
    assert _time(seconds / 60) == text


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("run", "abc"),
        ("best_val_loss", "bac"),
        ("tokens_per_s", "abc"),
        ("minutes", "bac"),
        ("bits_per_byte", "bac"),
    ],
)
def test_lines_stand_in_the_order_asked_for_and_what_is_unknown_comes_last(folder, key, order):
    assert "".join(row["run"][-1] for row in table("--sort", key)) == order


def test_runs_can_be_named_one_by_one(folder):
    assert [row["run"] for row in table("runs/b", "runs/deep")] == ["runs/b", "runs/deep/c"]


def test_the_json_has_the_same_and_all_settings(folder):
    found = json.loads(call("--json").output)
    assert [run["run"] for run in found] == ["runs/a", "runs/b", "runs/deep/c"]
    assert found[0]["settings"] == {"emb_dim": 8, "learning_rate": 0.1}
    assert found[1]["best_val_loss"] == 2.0
    assert found[1]["tokens"] == 20_000


def test_only_settings_that_differ_are_compared(folder):
    _, compared = call("--settings").output.split("\n\n")
    assert "learning_rate" in compared
    assert "emb_dim" not in compared
    assert "the same" in call("runs/b", "--settings").output


def test_a_run_that_writes_nothing_for_long_has_stopped(folder):
    file = folder / "deep" / "c" / "metrics.jsonl"
    an_hour_ago = time.time() - 3600
    os.utime(file, (an_hour_ago, an_hour_ago))
    assert table("runs/deep")[0]["state"] == "stopped"


def test_a_run_that_went_on_after_its_end_is_running(folder):
    with (folder / "a" / "metrics.jsonl").open("a") as stream:
        stream.write('{"event": "resumed", "step": 10}\n')
    assert table("runs/a")[0]["state"] == "running"
    assert read_run(folder / "a").num_resumed == 1


def test_a_damaged_run_is_told_and_left_out(folder):
    (folder / "b" / "metrics.jsonl").write_text("nonsense\n")
    result = call()
    assert "left out: runs/b/metrics.jsonl: line 1 is not JSON" in result.stderr
    assert "runs/a" in result.stdout
    assert "runs/b" not in result.stdout


def test_where_there_is_no_run_the_error_says_what_was_looked_for(tmp_path):
    with pytest.raises(SourceError, match=r"no run is in there.*metrics\.jsonl"):
        call(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(SourceError, match=rf"no such file or folder; did you mean {tmp_path}/runs"):
        call(tmp_path / "rnus")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="file: is a file, not a folder"):
        call(tmp_path / "file")
