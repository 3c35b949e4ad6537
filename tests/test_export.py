"""Saving a model: whole or not at all, and over no other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_models import FORMATS, SHAPE, random_ours

from gptrs.errors import CheckpointError, ConfigError
from gptrs.model.gpt import GPTModel

load = GPTModel.from_pretrained


@pytest.mark.parametrize("step", ["writing", "renaming"])
def test_a_failed_save_leaves_the_old_model_or_none(tmp_path, monkeypatch, step):
    random_ours().save_pretrained(tmp_path, format="hf")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, renamed = Path.replace, []

    def fail(*_, **__):
        raise OSError("the disk is full")

    def fail_at_the_second(path, target):
        if target.parent == tmp_path:
            renamed.append(target)
        return fail() if len(renamed) == 2 else rename(path, target)

    if step == "writing":
        monkeypatch.setattr("gptrs.weights.export.save_file", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail_at_the_second)
    with pytest.raises(CheckpointError, match="the disk is full"):
        random_ours(1).save_pretrained(tmp_path, format="hf")
    if step == "writing":
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    else:
        assert not (tmp_path / "config.json").exists()
        assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("other", FORMATS[1:])
@pytest.mark.parametrize("first", FORMATS)
def test_a_model_is_saved_over_another_only_in_the_same_format(tmp_path, first, other):
    random_ours().save_pretrained(tmp_path, format=first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if other == first:
        random_ours(1).save_pretrained(tmp_path, format=other)
        assert torch.equal(load(tmp_path).tok_emb.weight, random_ours(1).tok_emb.weight)
    else:
        with pytest.raises(ConfigError, match="has a model in another format"):
            random_ours(1).save_pretrained(tmp_path, format=other)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_that_was_given_more_tokens_is_saved_once_its_config_says_so(tmp_path, kind):
    model = random_ours()
    model.tok_emb = torch.nn.Embedding(70, SHAPE["emb_dim"])
    model.out_head = torch.nn.Linear(SHAPE["emb_dim"], 70, bias=False)
    advice = r"For 70 token ids, (model\.cfg = dataclasses\.replace\(model\.cfg, vocab_size=70\))"
    with pytest.raises(ConfigError, match=advice):
        model.save_pretrained(tmp_path, format=kind)
    assert not list(tmp_path.iterdir())
    model.cfg = replace(model.cfg, vocab_size=70)
    model.save_pretrained(tmp_path, format=kind)
    assert torch.equal(load(tmp_path).tok_emb.weight, model.tok_emb.weight)


def test_an_unknown_format_and_a_model_that_gpt2_is_not_are_refused(tmp_path):
    ours = random_ours()
    with pytest.raises(ConfigError, match="format is 'onnx'"):
        ours.save_pretrained(tmp_path / "a", format="onnx")
    ours.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"cannot be saved for transformers: .*extra\.weight"):
        ours.save_pretrained(tmp_path / "a", format="hf")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_head_that_is_no_longer_tied_is_not_dropped(tmp_path, kind):
    model = random_ours(tie_embeddings=True, init="gpt2")
    model.out_head = torch.nn.Linear(128, 61, bias=False)
    with pytest.raises(ConfigError, match="the model would lose its out_head"):
        model.save_pretrained(tmp_path / "a", format=kind)
    assert not (tmp_path / "a").exists() or not any((tmp_path / "a").iterdir())
    model.cfg = replace(model.cfg, tie_embeddings=False)
    model.save_pretrained(tmp_path / "a", format=kind)
    assert torch.equal(load(tmp_path / "a").out_head.weight, model.out_head.weight)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_head_that_was_tied_by_hand_is_saved(tmp_path, kind):
    model = random_ours()
    model.out_head.weight = model.tok_emb.weight
    model.save_pretrained(tmp_path, format=kind)
    assert torch.equal(load(tmp_path).out_head.weight, model.tok_emb.weight)
