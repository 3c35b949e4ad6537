"""Models go out with their tokenizers, which are the same to everybody, and come in with them."""

import json
import logging

import pytest
import torch
import transformers
from random_models import random_ours
from transformers import AutoTokenizer, GenerationConfig, GPT2Config

import gptrs
from gptrs.errors import TokenizerError
from gptrs.text.named_tokenizers import get_tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("Hello, wörld! The quick brown fox said # # ## 12 'tis. " * 9, "utf-8")
    return {
        "gpt2": get_tokenizer("gpt2"),
        "bpe": gptrs.train_tokenizer(file, 290),
        "char": gptrs.train_tokenizer(file, None, kind="char"),
    }


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_transformers_pipeline_gives_our_greedy_text(tmp_path, tokenizers, kind):
    tokenizer = tokenizers[kind]
    ours = random_ours(vocab_size=tokenizer.n_vocab, context_length=64, emb_dim=24)
    with torch.no_grad():
        ours.tok_emb.weight *= 20  # Else a model of noise repeats one token.
    ours.save_pretrained(tmp_path, format="hf", tokenizer=tokenizer)
    pipeline = transformers.pipeline("text-generation", str(tmp_path))
    gen = gptrs.Generator(ours, tokenizer)
    for prompt in ("Hello", "The quick", "said # 12"):
        expected = gen(prompt, max_new_tokens=16, temperature=0)[0].text
        (found,) = pipeline(prompt, max_new_tokens=16)
        assert found["generated_text"] == prompt + expected
        assert len(set(expected)) > 1
    gen.close()


@pytest.mark.parametrize("length", [64, 300])
def test_transformers_pipeline_fills_a_short_context_where_nothing_else_is_said(
    tmp_path, caplog, length
):
    ours = random_ours(vocab_size=50257, context_length=length, emb_dim=8)
    ours.save_pretrained(tmp_path, format="hf")
    pipeline = transformers.pipeline("text-generation", str(tmp_path))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # Its messages go no further than its own.
    prompt = "Every effort moves you"
    found = [pipeline(prompt * times, return_tensors=True)[0] for times in (1, 8)]
    logger.removeHandler(caplog.handler)
    ends = [1 + ids.index(50256) if 50256 in ids else length for ids in map(token_ids, found)]
    assert [len(token_ids(ids)) for ids in found] == ends
    assert not caplog.messages


def token_ids(found):
    return found["generated_token_ids"]


def test_a_long_context_is_not_filled_by_transformers_pipeline(tmp_path):
    random_ours(context_length=1024).save_pretrained(tmp_path, format="hf")
    assert GenerationConfig.from_pretrained(tmp_path).max_length is None


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_the_tokenizer_of_an_exported_model_is_the_same_to_everybody(tmp_path, tokenizers, kind):
    tokenizer, text = tokenizers[kind], "Hello, wörld! ## 'tis"
    random_ours(vocab_size=tokenizer.n_vocab).save_pretrained(
        tmp_path, format="hf", tokenizer=tokenizer
    )
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.encode(text)
    assert get_tokenizer(tmp_path) == tokenizer
    assert (tmp_path / "vocab.json").exists() == (kind != "char")
    if kind != "char":
        (tmp_path / "tokenizer.json").unlink()
        assert get_tokenizer(tmp_path) == tokenizer


def test_vocab_and_merges_as_transformers_writes_them_are_read(tmp_path, tokenizers):
    tokenizers["gpt2"].save(tmp_path)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    theirs.backend_tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    assert get_tokenizer(tmp_path) is get_tokenizer("gpt2")


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_either_of_vocab_and_merges_stands_for_both(tmp_path, tokenizers, kind, name):
    tokenizer = tokenizers[kind]
    random_ours(vocab_size=tokenizer.n_vocab).save_pretrained(
        tmp_path, format="hf", tokenizer=tokenizer
    )
    # It is these two that were named, whatever else is there.
    (tmp_path / "tokenizer.json").write_text("{}")
    assert get_tokenizer(tmp_path / name) == tokenizer


@pytest.mark.parametrize(
    ("there", "missing"), [("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")]
)
def test_vocab_without_merges_says_what_is_missing(tmp_path, tokenizers, there, missing):
    tokenizer = tokenizers["bpe"]
    random_ours(vocab_size=tokenizer.n_vocab).save_pretrained(
        tmp_path / "model", format="hf", tokenizer=tokenizer
    )
    (tmp_path / there).write_bytes((tmp_path / "model" / there).read_bytes())
    for path in (tmp_path, tmp_path / there):
        with pytest.raises(TokenizerError, match=f"{missing} is missing, which {there} needs"):
            get_tokenizer(path)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_tokenizer_that_was_saved_as_vocab_json_is_read_from_there(tmp_path, tokenizers, kind):
    file = tokenizers[kind].save(tmp_path / "vocab.json")
    assert get_tokenizer(file) == tokenizers[kind]


@pytest.mark.parametrize(
    ("vocab", "merges"), [(b"{", b""), (b"[]", b""), (b'{"a": "b"}', b""), (b"{}", b"\xff")]
)
def test_damaged_vocab_and_merges_are_refused(tmp_path, vocab, merges):
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(TokenizerError):
        get_tokenizer(tmp_path)


def test_gpt2s_vocabulary_brings_gpt2s_tokenizer_and_another_brings_none(tmp_path):
    random_ours(vocab_size=50257).save_pretrained(tmp_path / "a", format="hf")
    assert get_tokenizer(tmp_path / "a") is get_tokenizer("gpt2")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["eos_token_id"] == 50256
    random_ours().save_pretrained(tmp_path / "b", format="hf")
    assert not (tmp_path / "b" / "tokenizer.json").exists()
    assert GPT2Config.from_pretrained(tmp_path / "b").eos_token_id is None
