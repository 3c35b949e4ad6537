"""Where `gptrs train` writes, and what lies there or is gone when it goes on."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import gptrs

SHAPE = ["--context-length", "8", "--emb-dim", "8", "--n-heads", "2", "--n-layers", "1"]
QUICK = ["--steps", "3", "--device", "cpu", "--dtype", "float32", "--set", "num_evaluations=1"]
TINY = [*SHAPE, *QUICK]
TEXT = "the quick brown fox jumps over the lazy dog. " * 30


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["tokenizer", "store", "gptrs", "hf"])
@pytest.mark.parametrize("shape", [SHAPE, ["--context-length", "100000"]], ids=["ok", "too long"])
def test_a_folder_with_what_no_run_has_written_is_left_as_it_is(run, text, tmp_path, kind, shape):
    out = tmp_path / "out"
    if kind == "tokenizer":
        out.mkdir()
        gptrs.train_tokenizer(text, 270).save(out)
    elif kind == "store":
        gptrs.build_store([text], out)
    else:
        cfg = {"context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "vocab_size": 270}
        gptrs.GPTModel(cfg).save_pretrained(out, format=kind)
    before = contents(tmp_path)
    code, _, err = run("train", text, *shape, *QUICK, "--tokenizer", "char", "--out", out)
    assert code == 2
    assert f"{out}: has a " in err
    assert "a run gets a folder of its own" in err
    assert contents(tmp_path) == before


def test_a_run_that_was_refused_leaves_its_folder_as_it_was(run, text, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    short = tmp_path / "short.txt"
    short.write_text("abc")
    code, _, err = run("train", short, *TINY, "--tokenizer", "char", "--out", out)
    assert code == 2
    assert "train has" in err
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.fixture
def begun(run, text, tmp_path):
    """Weights, and a run that began with them."""
    arguments = ("--tokenizer", "char", "--out", tmp_path / "weights")
    assert run("train", text, *TINY, *arguments)[0] == 0

    def begin(*options):
        arguments = ("--init", tmp_path / "weights", *options, "--out", tmp_path / "run")
        code, _, err = run("train", text, *QUICK, *arguments)
        assert code == 0, err
        return tmp_path / "weights", tmp_path / "run"

    return begin


def test_a_run_goes_on_without_the_weights_that_it_began_with(run, begun, tmp_path):
    weights, run_dir = begun()
    shutil.copytree(run_dir, tmp_path / "copy")
    assert run("train", "--resume", tmp_path / "copy", "--steps", "5")[0] == 0
    shutil.rmtree(weights)
    code, _, err = run("train", "--resume", run_dir, "--steps", "5")
    assert code == 0, err
    found, expected = (
        gptrs.GPTModel.from_pretrained(folder).state_dict()
        for folder in (run_dir, tmp_path / "copy")
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_adapters_do_not_go_on_without_the_weights_beside_which_they_are(run, begun):
    weights, run_dir = begun("--lora", "2")
    shutil.rmtree(weights)
    before = contents(run_dir)
    code, _, err = run("train", "--resume", run_dir, "--steps", "5")
    assert code == 2
    line = f"{weights}: the weights that {run_dir} trains adapters of are no longer there"
    assert err == f"gptrs: {line}\n"
    assert contents(run_dir) == before


def test_a_run_goes_on_when_nobody_reads_what_it_prints(text, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gptrs", "train", str(text), *TINY, "--tokenizer", "char"]
    read, write = os.pipe()
    os.close(read)
    subprocess.run([*command, "--out", out], stdout=write, stderr=write, check=False)
    os.close(write)
    end = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert (end["event"], end["reason"]) == ("end", "finished")
    assert (out / "report.html").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no such names")
@pytest.mark.skipif(os.name == "nt", reason="its file systems have no such names")
def test_a_folder_whose_name_is_no_text_gets_its_run(run, text, tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    code, _, err = run("train", text, *TINY, "--tokenizer", "char", "--out", out)
    assert code == 0, err
    assert {"loss.png", "report.html"} <= set(os.listdir(out))
