"""The README's code does what the README says."""

import re
from pathlib import Path

import pytest
import tokenizers
import torch

import gptrs
from gptrs.text import help_topics

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
TEN_LINES, GENERATOR_LINES, TOKENIZER_LINES = re.findall(
    r"```python\n(.*?)```", README, flags=re.DOTALL
)


@pytest.mark.parametrize("tokenizer", ["ours", "tiktoken"])
def test_the_ten_lines_write_the_books_ten_tokens(capsys, tokenizer):
    code = TEN_LINES
    assert len(code.splitlines()) <= 12
    if tokenizer == "tiktoken":
        # What `tiktoken.get_encoding("gpt2")` returns, without the network it needs.
        code = code.replace('get_tokenizer("gpt2")', 'get_tokenizer("gpt2").as_tiktoken()')
    names = {}
    exec(code, names)
    assert names["inputs"].shape == names["targets"].shape == (8, 4)
    printed = capsys.readouterr().out.rstrip("\n")
    promised = re.search(r"# (Hello, I am .*) \.\.\.", TEN_LINES)[1]
    assert printed.startswith(promised)
    assert printed == (
        "Hello, I am Featureiman Byeswickattribute argue logger Normandy Compton analogous"
    )


def test_a_trained_model_streams_as_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = gptrs.GPTModel({**gptrs.GPT_CONFIG_124M, "emb_dim": 12, "n_layers": 1})
    gptrs.save_checkpoint(
        model, Path("runs/train-001/checkpoint"), tokenizer=gptrs.get_tokenizer("gpt2")
    )
    names = {}
    exec(GENERATOR_LINES, names)
    assert capsys.readouterr().out
    assert len(names["completions"]) == 8


def test_the_tokenizer_does_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = help_topics()
    for name in ("corpus.txt", "my.txt"):
        Path(name).write_text(text, "utf-8")
    names = {"text": text, "texts": text.split("\n\n")}
    exec(TOKENIZER_LINES, names)
    expected = names["gpt2"].as_tiktoken().encode(text, disallowed_special=())
    assert names["part"].tolist() == expected
    assert names["offsets"][-1] == len(names["ids"])
    assert names["small"].n_vocab == 4096
    theirs = tokenizers.Tokenizer.from_file("tokenizer.json")
    assert theirs.encode(text[:1000]).ids == names["small"].encode(text[:1000])
