"""`gptrs plot KIND`, as a terminal sees it: a whole picture, or an error and no file."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import gptrs
from gptrs import cli
from gptrs.config import GPTConfig
from gptrs.embeddings.word_vectors import WordVectors
from gptrs.errors import SourceError
from gptrs.model.gpt import GPTModel
from gptrs.training.reports.metrics import read_confusion, read_losses

KINDS = [
    "attention", "confusion", "embeddings", "inputs", "lens", "loss", "parameters", "positions",
    "projection", "sampling", "store",
]  # fmt: skip
OF_A_TEXT = ["attention", "embeddings", "inputs", "lens", "sampling"]
CONFIG = GPTConfig(vocab_size=270, context_length=16, emb_dim=8, n_heads=2, n_layers=2)
TEXT = "a cat sat"
BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run with a small model, its tokenizer and its metrics, and other things to draw."""
    folder = tmp_path_factory.mktemp("places")
    text = folder / "text.txt"
    text.write_text("a cat sat on a mat. 中文 a cat ate a rat.\n" * 20, encoding="utf-8")
    tokenizer = gptrs.train_tokenizer(text, CONFIG.vocab_size)
    torch.manual_seed(0)
    for name, pos in (("run", "learned"), ("far", "relative_key"), ("alibi", "alibi")):
        cfg = CONFIG.to_dict() | {"vocab_size": tokenizer.n_vocab, "pos": pos}
        gptrs.save_checkpoint(GPTModel(cfg), folder / name / "checkpoint", tokenizer=tokenizer)
    records = [
        {"event": "start"},
        {"event": "evaluation", "step": 0, "val_loss": 5.5, "tokens_seen": 0},
        {"event": "step", "step": 1, "loss": 5.0},
        {"event": "step", "step": 2, "loss": 4.0},
        {"event": "evaluation", "step": 2, "val_loss": 4.5, "tokens_seen": 64},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "run" / "metrics.jsonl").write_text(lines + '{"event": "st')
    gptrs.build_store(text, folder / "store", tokenizer=tokenizer)
    (folder / "classifier").mkdir()
    metrics = {"classes": {"ham": 9, "spam": 8}, "confusion": [[2, 1], [0, 3]]}
    (folder / "classifier" / "metrics.json").write_text(json.dumps(metrics))
    words = [f"word{number}" for number in range(12)]
    vectors = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    WordVectors(words, vectors).save(folder / "words.bin")
    return folder


@pytest.fixture
def there(places, tmp_path, monkeypatch):
    """A folder of its own, with names for what there is to draw."""
    for place in places.iterdir():
        (tmp_path / place.name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "attention": ["attention", TEXT, "--model", "run"],
    "one-head": ["attention", TEXT, "--model", "run", "--layer", "1", "--head", "0"],
    "embeddings": ["embeddings", TEXT, "--model", "run", "--columns", "4"],
    "inputs": ["inputs", TEXT, "--model", "run"],
    "lens": ["lens", TEXT, "--model", "run", "--last", "3"],
    "sampling": ["sampling", TEXT, "--model", "run", "--temperature", "0.5", "--top-k", "9"],
    "losses": ["loss", "run", "run/metrics.jsonl"],
    "validation": ["loss", "run", "--by", "steps", "--show", "validation"],
    "confusion": ["confusion", "classifier"],
    "parameters": ["parameters", "gpt2-124m", "run"],
    "positions": ["positions", "--model", "run"],
    "alibi": ["positions", "--model", "alibi"],
    "far": ["positions", "--model", "far", "--text", TEXT, "--layer", "1"],
    "projection": ["projection", "--model", "run", "--text", "text.txt", "--top", "20"],
    "first-tokens": ["projection", "--model", "run", "--top", "20"],
    "words": ["projection", "--vectors", "words.bin"],
    "store": ["store", "store"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_kind_writes_a_whole_picture_and_says_where(run, there, name):
    suffix = [".png", ".svg", ".pdf"][len(name) % 3]
    before = set(there.iterdir())
    code, out, err = run("plot", *COMMANDS[name], "--out", f"x{suffix}", "--style", "dark")
    assert (code, out) == (0, f"drawn: x{suffix}\n"), err
    assert (there / f"x{suffix}").read_bytes().startswith(BEGINNINGS[suffix])
    assert set(there.iterdir()) - before == {there / f"x{suffix}"}


def test_a_picture_is_called_as_its_kind_unless_told_otherwise(run, there):
    assert run("plot", "loss", "run")[:2] == (0, "drawn: loss.png\n")
    assert (there / "loss.png").exists()


def test_a_projection_can_be_a_page(run, there):
    code, out, _ = run("plot", "projection", "--vectors", "words.bin", "--out", "map.html")
    assert (code, out) == (0, "drawn: map.html\n")
    assert '"word11"' in (there / "map.html").read_text(encoding="utf-8")


def test_there_is_a_command_for_every_kind_and_it_explains_itself(run):
    code, out, _ = run("plot", "--help")
    assert code == 0
    for kind in KINDS:
        assert f"  {kind} " in out
        code, own, err = run("plot", kind, "--help")
        assert (code, err) == (0, "")
        assert own.startswith(f"Usage: gptrs plot {kind} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "", "--model", "run"], "TEXT is empty"),
        (["attention", TEXT], "Missing option '--model'"),
        (["attention", TEXT, "--model", "nothing"], "nothing: no such file or folder"),
        (["attention", TEXT, "--model", "gpt2-124m"], "gpt2-124m is a preset: it has no weights"),
        (
            ["attention", TEXT, "--model", "run", "--layer", "2"],
            "layer 2 was asked for; there are 2",
        ),
        (["attention", TEXT, "--model", "run", "--head", "9"], "head 9 was asked for; there are 2"),
        (["lens", "z" * 17, "--model", "run"], "17 tokens, more than context_length 16"),
        (["inputs", TEXT, "--model", "alibi"], 'pos is "alibi": no vectors are added'),
        (
            ["sampling", TEXT, "--model", "run", "--top-p", "2"],
            "at most 1, or None to keep the whole vocabulary; found 2",
        ),
        (["positions", "--model", "far"], "its scores depend on the queries of a text: --text"),
        (["positions", "--model", "far", "--text", TEXT, "--layer", "5"], "layer 5 was asked for"),
        (["loss"], "Missing argument 'RUNS...'"),
        (["loss", "run-9"], "run-9: no such run"),
        (["loss", "alibi"], "no metrics.jsonl"),
        (["loss", "text.txt"], "line 1 is not JSON"),
        (["loss", "run", "--by", "minutes"], "run does not tell its minutes"),
        (["confusion", "run"], "run: is no classifier's folder, there is no metrics.json"),
        (["parameters", "gpt2-124"], "unknown preset 'gpt2-124': did you mean"),
        (["parameters", "runs/none"], "runs/none: no such file or folder"),
        (["store", "run"], "run: "),
        (["projection"], "projection needs a --model or --vectors, one of them"),
        (
            ["projection", "--vectors", "words.bin", "--text", "text.txt"],
            "--text goes with --model",
        ),
        (["projection", "--vectors", "none.bin"], "none.bin: no such file"),
        (["loss", "run", "--out", "x.gif"], "x.gif: a picture's name ends in .png, .svg, .pdf"),
        (["loss", "run", "--out", "x.html"], "x.html: a picture's name ends in .png"),
        (["loss", "run", "--out", "none/x.png"], "there is no folder none"),
        (["loss", "run", "--style", "blue"], "'blue' is not one of 'light', 'dark'"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_no_file(run, there, arguments, message):
    before = set(there.iterdir())
    code, out, err = run("plot", *arguments)
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert message in err
    assert err.count("\n") == 1
    assert set(there.iterdir()) == before


@pytest.mark.parametrize("kind", OF_A_TEXT)
def test_a_text_that_is_too_long_for_the_model_is_refused_or_has_no_need_of_it(run, there, kind):
    code, _, err = run("plot", kind, "z" * 17, "--model", "run")
    if kind == "embeddings":  # No place is asked for.
        assert code == 0
    else:
        assert code == cli.EXIT_USAGE
        assert "17 tokens, more than context_length 16" in err


def test_a_picture_that_fails_half_way_leaves_the_old_one(run, there, monkeypatch):
    from matplotlib.figure import Figure

    (there / "loss.png").write_bytes(b"old")

    def fail(figure, file, **settings):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    code, _, err = run("plot", "loss", "run")
    assert (code, err) == (cli.EXIT_FAILURE, "gptrs: disk full\n")
    assert (there / "loss.png").read_bytes() == b"old"
    assert not list(there.glob(".tmp*"))


def test_without_matplotlib_the_pip_line_comes_before_any_work(run, there, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run("plot", "attention", TEXT, "--model", "no such model")
    assert (code, out) == (cli.EXIT_FAILURE, "")
    assert 'pip install "gptrs[plots]"' in err


@pytest.mark.parametrize("arguments", [["--help"], ["loss", "run"], ["parameters", "gpt2-124m"]])
def test_what_needs_no_model_imports_no_torch(there, arguments):
    program = (
        "import sys; from gptrs.cli import main; code = main(['plot', *sys.argv[1:]]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


# --- metrics.jsonl ---


def test_a_run_that_still_goes_on_is_read_up_to_its_last_whole_line(places):
    curve = read_losses(places / "run")
    assert curve.step_losses == [5.0, 4.0]
    assert (curve.val_steps, curve.val_losses) == ([0, 2], [5.5, 4.5])
    assert curve.tokens_per_step == 32
    assert read_losses(places / "run" / "metrics.jsonl") == curve


def test_a_step_that_was_taken_twice_counts_once(tmp_path):
    lines = [{"event": "step", "step": step, "loss": loss} for step, loss in ((1, 3), (1, 2))]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_losses(file).step_losses == [2.0]
    assert read_losses(file).tokens_per_step is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no losses: the run has not taken a step"),
        ('{"event": "start"}\n', "has no losses"),
        ("[]\n", "line 1 is no record of a run: TypeError"),
        ('{"event": "start"}\n{"event": "step", "step": 1}\n', "line 2 is no record .* KeyError"),
        ("\xff\n", "line 1 is not JSON"),
    ],
)
def test_what_is_no_record_of_a_run_is_refused(tmp_path, content, message):
    (tmp_path / "metrics.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        read_losses(tmp_path)


def test_a_classifiers_matrix_is_read_with_its_classes(places):
    matrix, classes = read_confusion(places / "classifier")
    assert (matrix.tolist(), classes) == ([[2, 1], [0, 3]], ["ham", "spam"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"confusion": [[1]]}, "no metrics of a classifier: 'classes'"),
        ({"confusion": [[1]], "classes": {"a": 1, "b": 1}}, r"2 classes, and a matrix of \(1, 1\)"),
        ({"confusion": [[0]], "classes": {"a": 1}}, "no texts were held out"),
        ([], "no metrics of a classifier"),
    ],
)
def test_what_is_no_classifiers_record_is_refused(tmp_path, content, message):
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match=message):
        read_confusion(tmp_path)
