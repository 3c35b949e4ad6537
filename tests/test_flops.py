"""FLOPs counted from the config are those that torch's counter sees in the real model."""

import random
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptrs.config import PRESETS, GPTConfig, get_config
from gptrs.errors import ConfigError
from gptrs.flops import KAPLAN, MATMULS, flops_per_token, format_flops
from gptrs.model import GPTModel


def random_config(seed):
    rng = random.Random(seed)
    n_heads = rng.randint(1, 4)
    return GPTConfig(
        vocab_size=rng.randint(2, 300),
        context_length=rng.randint(2, 24),
        emb_dim=n_heads * rng.choice([4, 8, 16]),
        n_heads=n_heads,
        n_layers=rng.randint(1, 3),
        drop_rate=0.0,
        qkv_bias=rng.random() < 0.5,
        tie_embeddings=rng.random() < 0.5,
        init="gpt2",
    )


def matmuls(cfg, length=None):
    return next(row for row in flops_per_token(cfg, length) if row.part == MATMULS)


def counted(compute):
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def random_batch(cfg, seed):
    rng = random.Random(-seed)
    shape = (rng.randint(1, 3), rng.randint(1, cfg.context_length))
    return torch.randint(cfg.vocab_size, shape)


@pytest.mark.parametrize("seed", range(25))
def test_a_forward_pass_takes_what_torch_counts(seed):
    cfg = random_config(seed)
    model, ids = GPTModel(cfg), random_batch(cfg, seed)
    per_token = matmuls(cfg, ids.shape[1]).inference
    assert counted(lambda: model(ids)) == ids.numel() * per_token


@pytest.mark.parametrize("seed", range(25))
def test_training_takes_what_torch_counts_where_attention_is_written_out(seed):
    cfg = random_config(seed)
    model, ids = GPTModel(cfg), random_batch(cfg, seed)

    def train():
        logits = model(ids, return_attention=True).logits
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    assert counted(train) == ids.numel() * matmuls(cfg, ids.shape[1]).training


@pytest.mark.parametrize("seed", range(25))
def test_fused_attention_computes_its_scores_once_more_in_the_backward_pass(seed):
    cfg = random_config(seed)
    model, ids = GPTModel(cfg), random_batch(cfg, seed)
    length = ids.shape[1]

    def train():
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()

    once_more = 2 * cfg.n_layers * length * cfg.emb_dim
    assert counted(train) == ids.numel() * (matmuls(cfg, length).training + once_more)


@pytest.mark.parametrize("seed", range(25))
def test_a_token_behind_a_cache_takes_what_torch_counts(seed):
    cfg = random_config(seed)
    model = GPTModel(cfg).eval()
    length = random_batch(cfg, seed).shape[1]
    cache = model.new_cache(1)
    if length > 1:
        model(torch.randint(cfg.vocab_size, (1, length - 1)), cache=cache)
    token = torch.randint(cfg.vocab_size, (1, 1))
    assert counted(lambda: model(token, cache=cache)) == matmuls(cfg, length).inference


@pytest.mark.parametrize("name", PRESETS)
def test_each_formula_gives_its_count_and_the_parts_sum_to_all_matmuls(name):
    cfg = get_config(name)
    *parts, kaplan, all_matmuls = flops_per_token(cfg, 512)
    for row in parts:
        expression = row.formula.replace("^", "**")
        assert eval(expression, {}, asdict(cfg) | {"length": 512}) == row.inference, row
        assert row.training == 3 * row.inference
    assert (kaplan.part, kaplan.inference) == (KAPLAN, parts[0].inference)
    assert all_matmuls.inference == sum(row.inference for row in parts)


def test_gpt3_took_the_compute_that_its_paper_names():
    # Brown et al. 2020, table D.1: 3.14e23 FLOPs for 300 billion tokens.
    kaplan = next(row for row in flops_per_token(get_config("gpt3-175b")) if row.part == KAPLAN)
    assert kaplan.training * 300e9 == pytest.approx(3.14e23, rel=0.005)


def test_the_length_is_the_context_unless_one_is_given():
    cfg = get_config("gpt2-124m")
    assert flops_per_token(cfg) == flops_per_token(cfg, 1024)
    assert flops_per_token(cfg, 1) != flops_per_token(cfg)


@pytest.mark.parametrize("length", [0, -1, 1025])
def test_a_length_that_the_model_cannot_have_is_refused(length):
    with pytest.raises(ConfigError, match=f"length is {length}; it must be 1 to context_length"):
        flops_per_token(get_config("gpt2-124m"), length)


@pytest.mark.parametrize("name", PRESETS)
def test_the_text_shows_every_count_in_100_columns(name):
    text = format_flops(get_config(name))
    for row in flops_per_token(get_config(name)):
        assert f"{row.inference:,}" in text
        assert f"{row.training:,}" in text
    assert max(map(len, text.splitlines())) <= 100
