"""`gptrs build` and `gptrs merge`, as a terminal sees them."""

import contextlib
import gzip
import inspect
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gptrs
from gptrs import cli
from gptrs.commands.build import build
from gptrs.text.named_tokenizers import get_tokenizer

ENCODING = get_tokenizer("gpt2").as_tiktoken()


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs `gptrs` with these arguments, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def gptrs_command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "gptrs", *map(str, arguments)],
        capture_output=True,
        check=False,
        **options,
    )


def documents_in(folder):
    tokens = np.concatenate([np.load(file) for file in sorted(folder.glob("tokens-*"))])
    return [part.removesuffix("<|endoftext|>") for part in decoded(tokens)]


def decoded(tokens):
    ends = np.flatnonzero(tokens == 50256)
    return [ENCODING.decode(part.tolist()) for part in np.split(tokens, ends + 1)[:-1]]


@pytest.mark.parametrize("command", ["build", "merge"])
def test_the_commands_explain_themselves(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: gptrs {command}")
    assert f"  {command} " in run("--help")[1]


def test_the_defaults_are_those_of_the_function():
    parameters = inspect.signature(gptrs.build_store).parameters
    own = build.make_context("build", ["input", "--out", "out"]).params
    for name in set(own) & set(parameters) - {"inputs", "out"}:
        assert own[name] == parameters[name].default, name
    missing = set(parameters) - set(own)
    assert missing == {"tokenizer", "shard_tokens", "progress", "on_progress"}


def test_a_build_is_summed_up(run, tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": ""}\n{"text": "one text"}\n{}\n')
    code, out, _ = run("build", ".", "--out", "out", "--deduplicate", "--skip-invalid")
    assert code == 0
    assert documents_in(tmp_path / "out") == ["one text", "two"]
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["documents", "tokens", "bytes", "a", "token"]
    assert rows[1] == ["out", "2", "5", "2.20"]
    assert "left out: 1 empty, 1 duplicate, 1 invalid" in out
    assert "MB/s" in out
    assert out.endswith("Look at it:\n  gptrs inspect out\n")


def test_a_build_with_documents_to_validate_on_is_summed_up(run, tmp_path):
    lines = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(500))
    (tmp_path / "a.jsonl").write_text(lines)
    code, out, _ = run("build", "a.jsonl", "--out", "my out", "--val-fraction", "0.2")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:3]}
    counts = [len(documents_in(tmp_path / "my out" / side)) for side in ("train", "val")]
    assert [int(rows["train"][0]), int(rows["val"][0])] == counts
    assert sum(counts) == 500
    assert out.endswith("gptrs inspect 'my out/train'\n")


def test_a_split_that_leaves_one_side_empty_says_why(run, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    code, out, err = run("build", "a.txt", "--out", "out", "--val-fraction", "0.5")
    counts = [len(gptrs.TokenStore.open(tmp_path / "out" / side)) for side in ("train", "val")]
    empty, filled = ("train", "val") if counts[0] == 0 else ("val", "train")
    assert code == 0
    assert f"{empty} is empty: --val-fraction parts whole documents" in err
    assert "--split-on makes many of it" in err
    assert out.endswith(f"gptrs inspect out/{filled}\n")


def test_a_store_of_nothing_is_not_to_be_looked_at(run, tmp_path):
    (tmp_path / "a.txt").write_text("")
    code, out, err = run("build", "a.txt", "--out", "out")
    assert (code, err) == (0, "")
    assert "left out: 1 empty" in out
    assert "Look at it" not in out


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ([], ["a\n\nb\tc\n\né"]),
        (["--split-on", r"\n\n"], ["a", "b\tc", "é"]),
        (["--split-on", r"\t"], ["a\n\nb", "c\n\né"]),
        (["--split-on", "\n\n"], ["a", "b\tc", "é"]),
        (["--split-on", "é"], ["a\n\nb\tc\n\n"]),
        (["--split-on", r"\u00e9"], ["a\n\nb\tc\n\n"]),
        (["--split-on", r"\x62"], ["a\n\n", "\tc\n\né"]),
        (["--split-on", r"\d"], ["a\n\nb\tc\n\né"]),
        (["--split-on", r"\n\n", "--min-chars", "2"], ["b\tc"]),
    ],
)
def test_a_file_is_split_where_it_is_asked(run, tmp_path, options, texts):
    (tmp_path / "a.txt").write_text("a\n\nb\tc\n\né")
    assert run("build", "a.txt", "--out", "out", *options)[0] == 0
    assert documents_in(tmp_path / "out") == texts


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ([], ['{"text": "one"}\n{"text": "two"}\n']),
        (["--format", "text"], ['{"text": "one"}\n{"text": "two"}\n']),
        (["--format", "jsonl"], ["one", "two"]),
    ],
)
def test_standard_input_is_an_input(tmp_path, options, texts):
    content = b'{"text": "one"}\n{"text": "two"}\n'
    pq.write_table(pa.table({"text": ["last"]}), tmp_path / "last.parquet")
    inputs = ["-", tmp_path / "last.parquet"]
    done = gptrs_command("build", *inputs, "--out", tmp_path / "out", *options, input=content)
    assert done.returncode == 0, done.stderr
    assert documents_in(tmp_path / "out") == [*texts, "last"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_that_has_a_name_is_an_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    builder = subprocess.Popen(
        [sys.executable, "-m", "gptrs", "build", tmp_path / "pipe", "--out", tmp_path / "out"],
        stderr=subprocess.DEVNULL,
    )
    pipe = None
    while pipe is None and builder.poll() is None:
        with contextlib.suppress(OSError):  # Until the other side has opened it.
            pipe = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    os.write(pipe, b"from a pipe")
    os.close(pipe)
    assert builder.wait() == 0
    assert documents_in(tmp_path / "out") == ["from a pipe"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_file_whose_name_is_not_utf8_is_refused_and_named(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    code, out, err = run("build", "in", "--out", "out")
    assert (code, out) == (2, "")
    assert err == "gptrs: in/caf\\xe9.txt: its name is not UTF-8; give it another\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "part"), [([], ""), (["--val-fraction", "0.5"], "train")])
def test_a_store_is_never_written_over_its_input(run, tmp_path, options, part):
    text = tmp_path / "out" / part / "tokenizer.json"
    text.parent.mkdir(parents=True)
    text.write_text("a text of an odd name")
    code, out, err = run("build", text, "--out", "out", *options)
    assert (code, out) == (2, "")
    assert "tokenizer.json is an input, and the store's tokenizer would be written over it" in err
    assert text.read_text() == "a text of an odd name"


def test_every_kind_of_file_is_found_by_a_pattern(run, tmp_path):
    folder = tmp_path / "data" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "b"}'))
    pq.write_table(pa.table({"body": ["c", "d"]}), folder / "c.parquet")
    assert run("build", "data/**/*.*", "--text-key", "body", "--out", "out")[0] == 0
    assert documents_in(tmp_path / "out") == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "Missing argument 'INPUT...'"),
        (["build", "a.txt"], "Missing option '--out'"),
        (["build", "no.txt", "--out", "out"], "no.txt: no such file or folder"),
        (["build", "*.csv", "--out", "out"], "*.csv: no file matches"),
        (["build", "a.txt", "--out", "out", "--task", "3"], "expected i/N, such as 0/8"),
        (["build", "a.txt", "--out", "out", "--task", "8/8"], "8"),
        (["build", "a.txt", "--out", "out", "--val-fraction", "1"], "val_fraction"),
        (["build", "a.txt", "--out", "out", "--memory", "big"], "memory is a number of bytes"),
        (["build", "a.txt", "--out", "out", "--tokenizer", "gpt9"], "no tokenizer is named"),
        (["build", "bad.jsonl", "--out", "out"], "bad.jsonl:1: "),
        (["merge", "--out", "out"], "Missing argument 'PART...'"),
    ],
)
def test_bad_usage_is_one_line_on_stderr_and_exit_code_2(run, tmp_path, arguments, message):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "bad.jsonl").write_text("bad\n")
    code, out, err = run(*arguments)
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert err.startswith("gptrs: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_store_that_is_in_the_way_is_exit_code_1(run, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert run("build", "a.txt", "--out", "out")[0] == 0
    for command in (["build", "a.txt"], ["merge", "out", "out"], ["merge", "nowhere"]):
        code, out, err = run(*command, "--out", "out")
        assert (code, out) == (cli.EXIT_FAILURE, "")
        assert err.startswith("gptrs: ")
        assert err.count("\n") == 1


def test_parts_are_built_and_joined(run, tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(name)
    for task in range(3):
        options = ["--task", f"{task}/3", "--out", f"part-{task}", "--deduplicate"]
        assert run("build", "*.txt", *options)[0] == 0
    parts = [f"part-{task}" for task in range(3)]
    code, out, _ = run("merge", *parts, "--out", "out", "--deduplicate")
    assert code == 0
    assert documents_in(tmp_path / "out") == list("abcde")
    assert out.splitlines()[1].split()[:3] == ["out", "5", "10"]
    assert out.endswith("Look at it:\n  gptrs inspect out\n")


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    builder = subprocess.Popen(
        [sys.executable, "-m", "gptrs", "build", "a.txt", "-", "--out", "out"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / "out" / ".building").exists():
        time.sleep(0.01)
    builder.send_signal(signal.SIGINT)
    # Whoever waits for a pipe is woken by the signal, or by what comes next.
    _, err = builder.communicate(b"more")
    if builder.returncode:
        assert builder.returncode == cli.EXIT_INTERRUPT
        assert err.endswith(b"gptrs: stopped; the same command goes on from here\n")
        command = ["build", "a.txt", "-", "--out", "out"]
        assert gptrs_command(*command, input=b"more", cwd=tmp_path).returncode == 0
    assert documents_in(tmp_path / "out") == ["a", "more"]


@pytest.mark.parametrize(
    "command", [["build", "a.txt", "--out", "out"], ["merge", "a", "--out", "b"]]
)
def test_neither_command_imports_torch(tmp_path, command):
    (tmp_path / "a.txt").write_text("a")
    gptrs.build_store([["a"]], tmp_path / "a")
    program = (
        "import sys; from gptrs.cli import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_other_commands_do_not_wait_for_numpy():
    program = "import sys, gptrs.cli; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
