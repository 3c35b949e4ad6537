"""The README's code does what the README says."""

import gzip
import json
import re
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

import gptrs
from gptrs.text.reading import help_topics

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
(
    TEN_LINES,
    GENERATOR_LINES,
    WEIGHTS_LINES,
    POSITION_LINES,
    SAMPLER_LINES,
    TOKENIZER_LINES,
    TRAINING_LINES,
    STORE_LINES,
) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


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
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", names["date"].text)
    assert len(names["best"].token_ids) == 30
    assert names["handle"].done()


def test_real_weights_come_and_go_as_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=12, n_layer=1, n_head=2))
    theirs.save_pretrained("gpt2-folder")
    exec(WEIGHTS_LINES, {})
    assert capsys.readouterr().out
    back = transformers.GPT2LMHeadModel.from_pretrained("out").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in theirs.state_dict().items())


def test_a_model_with_other_positions_goes_on_past_its_context_as_shown(capsys):
    names = {}
    exec(POSITION_LINES, names)
    assert capsys.readouterr().out in ("length\n", "eos\n", "stop\n")
    [completion] = names["longer"]("Hello, I am", 100, seed=1, eos_id=None)
    assert len(completion.token_ids) == 100 > names["cfg"].context_length


def test_the_sampler_works_alone_and_in_transformers_as_shown():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=12, n_layer=1, n_head=2)
    names = {
        "model": transformers.GPT2LMHeadModel(config).eval(),
        "input_ids": torch.tensor([[1, 2, 3]]),
        "logits": torch.randn(4, 50257),
        "written": [[1, 2], [3], [], [4]],
    }
    exec(SAMPLER_LINES, names)
    assert names["ids"].shape == (4,)


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


def test_a_model_is_trained_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpt2 = gptrs.get_tokenizer("gpt2")
    names = {"gpt2": gpt2, "ids": gpt2.encode_to_numpy(help_topics()[:20_000])}
    exec(TRAINING_LINES, names)
    result = names["result"]
    assert capsys.readouterr().out.endswith(f"{result.last.val_loss} runs/small/checkpoint\n")
    assert result.last.val_loss < result.evaluations[0].val_loss
    trained = gptrs.GPTModel.from_pretrained("runs/small")
    assert torch.equal(trained.tok_emb.weight, names["model"].tok_emb.weight)


def test_a_store_is_built_and_loaded_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("corpus", "more"):
        Path(folder).mkdir()
    text = help_topics()
    Path("corpus/topics.txt").write_text(text, "utf-8")
    with gzip.open("more/rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in ["one", "two", "one"])
    names = {}
    exec(STORE_LINES, names)
    store, gpt2 = names["store"], gptrs.get_tokenizer("gpt2")
    assert capsys.readouterr().out.startswith(f"{len(store)} 4 ")
    assert store[: store.document_range(0)[1]].tolist() == [*gpt2.encode_ordinary(text), 50256]
    assert names["inputs"].shape == names["targets"].shape == (8, 1024)
    assert names["state"]["position"] == 2 * 8
