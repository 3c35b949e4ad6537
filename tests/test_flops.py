"""FLOPs counted from the config are those that torch's counter sees in the real model."""

import random
from dataclasses import asdict, replace
from typing import get_args

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptrs.config import PRESETS, GPTConfig, Pos, get_config
from gptrs.costs.flops import KAPLAN, MATMULS, flops_per_token, format_flops
from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel

KINDS = get_args(Pos)
EVERY_SIZE_AND_KIND = [*((name, "learned") for name in PRESETS), *(("gpt3-175b", k) for k in KINDS)]
LEARN_TO_ADD = ("t5", "relative_key", "relative_key_query", "transformer_xl")


def random_config(seed):
    """Seed by seed, every kind of positions comes up."""
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
        pos=KINDS[seed % len(KINDS)],
    )


def by_part(cfg, length=None):
    return {row.part: row for row in flops_per_token(cfg, length)}


def matmuls(cfg, ids, what):
    """What torch counts for a batch."""
    rows = by_part(cfg, ids.shape[1])
    total = ids.numel() * getattr(rows[MATMULS], what)
    if cfg.pos == "transformer_xl":  # W_r is applied once for all rows.
        total -= (ids.numel() - ids.shape[1]) * getattr(rows["W_r of distances"], what)
    if cfg.pos == "relative_key_query" and ids.shape[1] == 1:  # Summed up without a matmul.
        total -= ids.numel() * getattr(rows["keys, distances"], what)
    return total


def counted(compute):
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def random_batch(cfg, seed):
    rng = random.Random(-seed)
    shape = (rng.randint(1, 3), rng.randint(1, cfg.context_length))
    return torch.randint(cfg.vocab_size, shape)


@pytest.mark.parametrize("seed", range(27))
def test_a_forward_pass_takes_what_torch_counts(seed):
    cfg = random_config(seed)
    model, ids = GPTModel(cfg), random_batch(cfg, seed)
    assert counted(lambda: model(ids)) == matmuls(cfg, ids, "inference")


@pytest.mark.parametrize("seed", range(27))
def test_training_takes_what_torch_counts_where_attention_is_written_out(seed):
    cfg = random_config(seed)
    model, ids = GPTModel(cfg), random_batch(cfg, seed)

    def train():
        logits = model(ids, return_attention=True).logits
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    assert counted(train) == matmuls(cfg, ids, "training")


@pytest.mark.parametrize("seed", range(27))
def test_fused_attention_computes_its_scores_once_more_where_no_mask_is_learned(seed):
    cfg = random_config(seed)
    model, ids = GPTModel(cfg), random_batch(cfg, seed)
    length = ids.shape[1]

    def train():
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()

    once_more = 0 if cfg.pos in LEARN_TO_ADD else 2 * cfg.n_layers * length * cfg.emb_dim
    assert counted(train) == matmuls(cfg, ids, "training") + ids.numel() * once_more


@pytest.mark.parametrize("seed", range(27))
def test_a_token_behind_a_cache_takes_what_torch_counts(seed):
    cfg = random_config(seed)
    model = GPTModel(cfg).eval()
    length = random_batch(cfg, seed).shape[1]
    cache = model.new_cache(1)
    if length > 1:
        model(torch.randint(cfg.vocab_size, (1, length - 1)), cache=cache)
    token = torch.randint(cfg.vocab_size, (1, 1))
    rows = by_part(cfg, length)
    expected = rows[MATMULS].inference
    if cfg.pos == "transformer_xl":  # Nobody shares the distances with a single token.
        expected += (length - 1) * rows["W_r of distances"].inference
    if cfg.pos == "relative_key_query":  # Summed up without a matmul.
        expected -= rows["keys, distances"].inference
    assert counted(lambda: model(token, cache=cache)) == expected


@pytest.mark.parametrize(("name", "pos"), EVERY_SIZE_AND_KIND)
def test_each_formula_gives_its_count_and_the_parts_sum_to_all_matmuls(name, pos):
    cfg = replace(get_config(name), pos=pos)
    *parts, kaplan, all_matmuls = flops_per_token(cfg, 512)
    for row in parts:
        expression = row.formula.replace("^", "**")
        assert eval(expression, {}, asdict(cfg) | {"length": 512}) == row.inference, row
        assert row.training == (2 if "W_r" in row.part else 3) * row.inference
    assert (kaplan.part, kaplan.inference) == (KAPLAN, parts[0].inference)
    assert all_matmuls.inference == sum(row.inference for row in parts)
    assert all_matmuls.training == sum(row.training for row in parts)


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


@pytest.mark.parametrize("pos", KINDS)
def test_a_length_may_be_as_long_as_the_positions_allow(pos):
    cfg = GPTConfig(pos=pos)
    if cfg.max_tokens is None:
        assert flops_per_token(cfg, 2000) != flops_per_token(cfg, 1024)
        with pytest.raises(ConfigError, match="length is 0; it must be 1 or more"):
            flops_per_token(cfg, 0)
    else:
        with pytest.raises(ConfigError, match="it must be 1 to context_length 1024"):
            flops_per_token(cfg, 2000)


@pytest.mark.parametrize(("name", "pos"), EVERY_SIZE_AND_KIND)
def test_the_text_shows_every_count_in_100_columns(name, pos):
    cfg = replace(get_config(name), pos=pos)
    text = format_flops(cfg)
    for row in flops_per_token(cfg):
        assert f"{row.inference:,}" in text
        assert f"{row.training:,}" in text
    assert max(map(len, text.splitlines())) <= 100
