"""The budget, computed from the config alone, is what the real modules have."""

import re
from dataclasses import asdict
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptrs.config import PRESETS, GPTConfig, Pos, get_config
from gptrs.costs.params import count_parameters, format_budget, parameter_budget
from gptrs.model.gpt import GPTModel


def meta_model(cfg):
    with torch.device("meta"):
        return GPTModel(cfg)


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


HAVE_DISTANCES = ("t5", "relative_key", "relative_key_query", "transformer_xl")


def counts(cfg):
    return {row.part: row.count for row in parameter_budget(cfg)}


def test_the_books_124m_has_these_parameters():
    assert counts(get_config("book-124m")) == {
        "token embedding": 38_597_376,
        "position embedding": 786_432,
        "12 blocks": 85_026_816,
        "each block": 7_085_568,
        "attention": 2_360_064,
        "feed-forward": 4_722_432,
        "norms": 3_072,
        "final norm": 1_536,
        "output head": 38_597_376,
        "total": 163_009_536,
    }


def test_tying_and_qkv_biases_lead_to_openais_count():
    tied = GPTConfig(tie_embeddings=True, init="gpt2")
    assert count_parameters(tied) == 124_412_160
    assert count_parameters(get_config("gpt2-124m")) == 124_439_808


@pytest.mark.parametrize(
    ("name", "paper_millions"),
    [("gpt2-124m", 124), ("gpt2-355m", 355), ("gpt2-774m", 774), ("gpt2-1558m", 1558)],
)
def test_gpt2_names_are_their_millions(name, paper_millions):
    assert round(count_parameters(get_config(name)) / 1e6) == paper_millions


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_counted_as_pytorch_counts_it(name):
    cfg = get_config(name)
    assert count_parameters(cfg) == numel(meta_model(cfg))


def test_gpt3_175b_is_built_on_the_meta_device_and_takes_no_memory():
    model = meta_model("gpt3-175b")
    assert numel(model) == 174_604_259_328
    assert all(parameter.is_meta for parameter in model.parameters())


configs = st.builds(
    lambda heads, head_dim, **rest: GPTConfig(emb_dim=heads * head_dim, n_heads=heads, **rest),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 8).map(lambda half: 2 * half),
    vocab_size=st.integers(1, 1000),
    context_length=st.integers(1, 100),
    n_layers=st.integers(1, 3),
    qkv_bias=st.booleans(),
    tie_embeddings=st.booleans(),
    init=st.just("gpt2"),
    pos=st.sampled_from(get_args(Pos)),
)


@settings(deadline=None, max_examples=60)
@given(configs)
def test_every_line_is_what_its_module_has(cfg):
    model = meta_model(cfg)
    block = model.trf_blocks[0]
    lines = list(parameter_budget(cfg))
    tied = 0 if cfg.tie_embeddings else numel(model.out_head)
    positions = [model.pos_emb] if cfg.pos == "learned" else [model.pos_bias]
    assert [line.count for line in lines] == [
        numel(model.tok_emb),
        *(numel(module) for module in positions if module is not None and numel(module)),
        numel(model.trf_blocks),
        numel(block),
        numel(block.att),
        numel(block.ff),
        numel(block.norm1) + numel(block.norm2),
        numel(model.final_norm),
        tied,
        numel(model),
    ]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(
    ("pos", "rel_max_distance"),
    [*((pos, None) for pos in get_args(Pos)), *((pos, 17) for pos in HAVE_DISTANCES)],
)
def test_every_kind_of_positions_is_counted(pos, rel_max_distance, qkv_bias, tied):
    choices = {"qkv_bias": qkv_bias, "tie_embeddings": tied, "init": "gpt2"}
    cfg = GPTConfig(
        vocab_size=50, context_length=20, emb_dim=24, n_heads=3, n_layers=2, pos=pos,
        rel_max_distance=rel_max_distance, **choices,
    )  # fmt: skip
    model = meta_model(cfg)
    found = counts(cfg)
    assert (found["attention"], found["total"]) == (numel(model.trf_blocks[0].att), numel(model))


@given(configs)
def test_a_printed_formula_gives_its_count(cfg):
    rows = parameter_budget(cfg)
    names = asdict(cfg) | {row.part.replace("-", "_"): row.count for row in rows if row.depth}
    names |= {"head_dim": cfg.head_dim, "num_distances": cfg.num_distances}
    for row in rows:
        if row.formula and not row.formula.startswith("tied"):
            expression = row.formula.replace("^", "**").replace("feed-forward", "feed_forward")
            assert eval(expression, {}, names) == row.count, row


@given(configs)
def test_the_parts_sum_to_the_total(cfg):
    *rows, total = parameter_budget(cfg)
    assert sum(row.count for row in rows if row.depth == 0) == total.count
    (block,) = (row.count for row in rows if row.depth == 1)
    assert sum(row.count for row in rows if row.depth == 2) == block


def test_the_text_shows_every_part_with_count_and_formula():
    cfg = get_config("book-124m")
    text = format_budget(cfg, "book-124m")
    for row in parameter_budget(cfg):
        pattern = rf"^ *{row.part} +{row.count:,} *{re.escape(row.formula)}$"
        assert re.search(pattern, text, re.MULTILINE), row
    assert "Beside the book's choices" not in text


def test_the_text_explains_why_gpt2_differs_from_the_book():
    text = format_budget(get_config("gpt2-124m"), "gpt2-124m")
    explanation = text.split("Beside the book's choices:\n")[1].splitlines()
    assert [line.split()[0] for line in explanation] == [
        "163,009,536",
        "-38,597,376",
        "+27,648",
        "124,439,808",
    ]
    assert "tying" in explanation[1]
    assert "QKV biases" in explanation[2]


def test_the_text_names_positions_and_what_they_change():
    cfg = GPTConfig(pos="t5")
    text = format_budget(cfg, "mine")
    assert text.startswith("mine: vocab_size 50,257")
    assert text.splitlines()[0].endswith("n_layers 12, pos t5")
    explanation = text.split("Beside the book's choices:\n")[1].splitlines()
    assert [line.split()[0] for line in explanation] == ["163,009,536", "-786,048", "162,223,488"]
    assert "pos learned" not in format_budget(GPTConfig(), "book-124m")


@given(configs)
def test_the_explained_difference_adds_up(cfg):
    text = format_budget(cfg, "mine")
    if not (cfg.tie_embeddings or cfg.qkv_bias or cfg.pos != "learned"):
        assert "Beside" not in text
        return
    explanation = text.split("Beside the book's choices:\n")[1].splitlines()
    *steps, total = [int(line.split()[0].replace(",", "")) for line in explanation]
    assert sum(steps) == total == count_parameters(cfg)
