"""`gptrs embed` and `gptrs search`, as a terminal sees them."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import gptrs
from gptrs.config import GPTConfig
from gptrs.embeddings.embedder import Embedder, embed
from gptrs.model.gpt import GPTModel

ANIMALS = ["Cats purr and sleep.", "Dogs bark at night.", "Fish swim in the sea."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint's folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    cfg = GPTConfig(context_length=32, emb_dim=16, n_heads=2, n_layers=2)
    gptrs.save_checkpoint(GPTModel(cfg), folder, tokenizer=gptrs.get_tokenizer("gpt2"))
    return folder


@pytest.fixture
def index(run, model, tmp_path):
    """An index of three files."""
    for number, text in enumerate(ANIMALS):
        (tmp_path / f"{number}.txt").write_text(f"\n{text}\n")
    out = tmp_path / "index"
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    assert run("embed", *files, "--model", model, "--out", out)[0] == 0
    return out


@pytest.mark.parametrize("command", ["embed", "search"])
def test_both_commands_explain_themselves(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: gptrs {command} [OPTIONS] ")
    assert f"  {command} " in run("--help")[1]


def test_embed_says_what_it_made_and_what_to_do_next(run, model, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in ANIMALS))
    out = tmp_path / "index"
    code, printed, _ = run(
        "embed", tmp_path / "a.jsonl", "--model", model, "--out", out, "--text-key", "body",
        "--pooling", "last", "--layer", "1", "--batch-tokens", "8",
    )  # fmt: skip
    assert code == 0
    assert re.match(r"3 passages x 16 are in \S+index \([\d,]+ passages a second\)\n", printed)
    assert f'gptrs search {out} "..."' in printed
    expected = embed(model, ANIMALS, pooling="last", layer=1)
    np.testing.assert_allclose(np.load(out / "vectors.npy"), expected, atol=1e-5)


def test_search_shows_passages_with_file_and_line_the_best_first(run, index):
    code, printed, _ = run("search", index, ANIMALS[1], "--top", 2)
    assert code == 0
    found = re.findall(r"^(-?\d\.\d{3})  (\S+):(\d+)\n    (.*)\n", printed, re.MULTILINE)
    assert len(found) == 2
    assert found[0] == ("1.000", str(index.parent / "1.txt"), "2", ANIMALS[1])
    assert float(found[1][0]) < 1
    assert run("search", index, ANIMALS[1], "--top", 2, "--exact")[1] == printed


def test_search_embeds_the_question_as_the_passages_were(run, model, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(ANIMALS))
    out = tmp_path / "index"
    options = ("--pooling", "max", "--layer", 0, "--passage-tokens", 6)
    assert run("embed", tmp_path / "a.txt", "--model", model, "--out", out, *options)[0] == 0
    printed = run("search", out, ANIMALS[2], "--top", 1)[1]
    assert printed.startswith(f"1.000  {tmp_path / 'a.txt'}:5\n")


def test_an_index_of_another_model_is_refused_by_name(run, index, tmp_path):
    torch.manual_seed(1)
    other = tmp_path / "other"
    gptrs.save_checkpoint(GPTModel(GPTConfig(emb_dim=16, n_heads=2, n_layers=1)), other)
    code, _, err = run("search", index, "cats", "--model", other)
    assert code == 2
    assert re.search(r"was made with \S*checkpoint \(.*the model here is \S*other \(", err)


def test_a_model_that_was_moved_is_found_by_the_option(run, index, model, tmp_path):
    moved = model.rename(tmp_path / "moved")
    try:
        code, _, err = run("search", index, "cats")
        assert code == 2
        assert "is gone: --model says where it is" in err
        assert run("search", index, "cats", "--model", moved)[0] == 0
    finally:
        moved.rename(model)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("search", "{index}", ""), 2, "QUESTION is empty"),
        (("search", "{index}/none", "cats"), 2, "no index here: there is no index.json"),
        (("search", "{index}", "cats", "--model", "none"), 2, "none: no such file or folder"),
        (("embed", "{index}/../none.txt", "--out", "{out}"), 2, "no such file or folder"),
        (("embed", "{index}/../blank.txt", "--out", "{out}"), 2, "there are no passages"),
        (("embed", "{index}/../0.txt", "--out", "{index}/.."), 2, "is no index, and has 0.txt"),
        (("embed", "{index}/../0.txt", "--out", "{out}", "--layer", "9"), 2, "layer is 9"),
    ],
)
def test_what_is_impossible_is_one_line_on_stderr(
    run, index, model, tmp_path, arguments, code, message
):
    (tmp_path / "blank.txt").write_text("\n \n")
    out = tmp_path / "out"
    arguments = [each.format(index=index, out=out) for each in arguments]
    options = ("--model", model) if arguments[0] == "embed" else ()
    found, printed, err = run(*arguments, *options)
    assert (found, printed) == (code, "")
    assert message in err.splitlines()[-1]
    assert not out.exists()


def test_the_commands_wait_for_torch_only_when_they_run():
    check = "import sys, gptrs.commands.embed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_an_interrupted_embed_goes_on_when_the_same_command_is_given(
    run, model, tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text("\n\n".join(ANIMALS * 20))
    command = ("embed", tmp_path / "a.txt", "--model", model, "--passage-tokens", 6)
    command += ("--batch-tokens", 8, "--out")
    assert run(*command, tmp_path / "whole")[0] == 0
    embed_block, blocks = Embedder.embed, []

    def interrupted(self, texts, **options):
        blocks.append(texts)
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return embed_block(self, texts, **options)

    monkeypatch.setattr(Embedder, "embed", interrupted)
    code, printed, err = run(*command, tmp_path / "index")
    assert (code, printed) == (130, "")
    assert err.endswith("gptrs: stopped; the same command goes on\n")
    code, _, err = run(*command, tmp_path / "index", "--pooling", "max")
    assert code == 1
    assert re.search(
        r"was begun otherwise: pooling was 'mean', now it is 'max'; .* --overwrite", err
    )
    code, printed, err = run(*command, tmp_path / "index")
    assert code == 0
    assert f"going on behind {len(blocks[0] + blocks[1])} passages\n" in err
    assert re.match(r"\d+ passages x 16 are in \S+index \(", printed)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "index" / path.name).read_bytes() == path.read_bytes()
