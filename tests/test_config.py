"""Configs are checked where they are made; messages say what is wrong and what is allowed."""

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptrs.config import GPT_CONFIG_124M, PRESETS, GPTConfig, get_config
from gptrs.errors import ConfigError


def test_the_defaults_are_the_books_dictionary():
    assert GPT_CONFIG_124M == {
        "vocab_size": 50257,
        "context_length": 1024,
        "emb_dim": 768,
        "n_heads": 12,
        "n_layers": 12,
        "drop_rate": 0.1,
        "qkv_bias": False,
    }
    assert type(GPT_CONFIG_124M) is dict
    assert GPTConfig() == GPTConfig.of(GPT_CONFIG_124M) == get_config("book-124m")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json_and_pickle(name):
    cfg = get_config(name)
    assert GPTConfig.of(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    assert GPTConfig.of(name) is cfg
    assert GPTConfig.of(cfg) is cfg


@pytest.mark.parametrize(
    ("name", "emb_dim", "n_layers", "n_heads"),
    [
        ("gpt2-124m", 768, 12, 12),
        ("gpt2-355m", 1024, 24, 16),
        ("gpt2-774m", 1280, 36, 20),
        ("gpt2-1558m", 1600, 48, 25),
    ],
)
def test_gpt2_presets_have_openais_shapes_and_choices(name, emb_dim, n_layers, n_heads):
    cfg = get_config(name)
    assert (cfg.emb_dim, cfg.n_layers, cfg.n_heads) == (emb_dim, n_layers, n_heads)
    assert (cfg.vocab_size, cfg.context_length) == (50257, 1024)
    assert cfg.qkv_bias
    assert cfg.tie_embeddings
    assert cfg.init == "gpt2"


@pytest.mark.parametrize(
    ("name", "n_layers", "emb_dim", "n_heads", "head_dim"),
    [
        ("gpt3-125m", 12, 768, 12, 64),
        ("gpt3-350m", 24, 1024, 16, 64),
        ("gpt3-760m", 24, 1536, 16, 96),
        ("gpt3-1.3b", 24, 2048, 16, 128),  # the paper's table: 24 heads, which is 3,072 wide
        ("gpt3-2.7b", 32, 2560, 32, 80),
        ("gpt3-6.7b", 32, 4096, 32, 128),
        ("gpt3-13b", 40, 5120, 40, 128),  # the paper's table: 5,140 wide, which 40 does not divide
        ("gpt3-175b", 96, 12288, 96, 128),
    ],
)
def test_gpt3_presets_have_the_papers_shapes(name, n_layers, emb_dim, n_heads, head_dim):
    cfg = get_config(name)
    assert (cfg.n_layers, cfg.emb_dim, cfg.n_heads, cfg.head_dim) == (
        n_layers,
        emb_dim,
        n_heads,
        head_dim,
    )
    assert cfg.context_length == 2048


@pytest.mark.parametrize(
    "field", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"]
)
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, "is 0; it must be 1 or more"),
        (-3, "is -3; it must be 1 or more"),
        (True, "is True (bool); it must be an int, 1 or more"),
        (12.0, "is 12.0 (float); it must be an int, 1 or more"),
        ("12", "is '12' (str); it must be an int, 1 or more"),
        (None, "is None (NoneType); it must be an int, 1 or more"),
    ],
)
def test_a_count_is_a_positive_int(field, value, found):
    with pytest.raises(ConfigError) as error:
        GPTConfig(**{field: value})
    assert str(error.value) == f"{field} {found}"


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), float("inf"), True, "0.1", None])
def test_a_drop_rate_is_a_number_from_0_to_below_1(value):
    with pytest.raises(ConfigError, match=r"drop_rate is .*; it must be .*0 <= drop_rate < 1"):
        GPTConfig(drop_rate=value)


@pytest.mark.parametrize("field", ["qkv_bias", "tie_embeddings"])
@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_a_flag_is_a_bool(field, value):
    with pytest.raises(ConfigError, match=rf"{field} is .*; it must be True or False"):
        GPTConfig(init="gpt2", **{field: value})


def test_an_unknown_init_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"init is 'xavier'; it must be \"book\" or \"gpt2\""):
        GPTConfig(init="xavier")


def test_tying_with_the_books_init_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"tie_embeddings=True needs init=\"gpt2\".*near 480"):
        GPTConfig(tie_embeddings=True)


@given(st.integers(1, 4096), st.integers(1, 128))
def test_heads_must_divide_the_width(emb_dim, n_heads):
    if emb_dim % n_heads == 0:
        cfg = GPTConfig(emb_dim=emb_dim, n_heads=n_heads)
        assert cfg.head_dim * n_heads == emb_dim
    else:
        with pytest.raises(ConfigError) as error:
            GPTConfig(emb_dim=emb_dim, n_heads=n_heads)
        assert f"emb_dim {emb_dim} is not a multiple of n_heads {n_heads}" in str(error.value)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("n_embd", "emb_dim"),
        ("block_size", "context_length"),
        ("n_layer", "n_layers"),
        ("n_head", "n_heads"),
        ("emb_dims", "emb_dim"),
        ("vocabsize", "vocab_size"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(key, ours):
    with pytest.raises(ConfigError) as error:
        GPTConfig.of({**GPT_CONFIG_124M, key: 12})
    assert str(error.value) == f"unknown config key {key!r}: did you mean {ours!r}?"


def test_a_key_near_nothing_is_answered_with_all_of_them():
    with pytest.raises(ConfigError, match=r"'rotary': known keys are vocab_size, .*, init"):
        GPTConfig.of({"rotary": True})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpt2-125m", "gpt2-124m"),
        ("GPT2-124M", "gpt2-124m"),
        ("gpt3-13", "gpt3-13b"),
        ("book", "book-124m"),
        ("llama-7b", "there are book-124m, gpt2-124m"),
        ("", "there are book-124m, gpt2-124m"),
    ],
)
def test_an_unknown_preset_is_answered_with_the_nearest(name, hint):
    with pytest.raises(ConfigError) as error:
        GPTConfig.of(name)
    assert f"unknown preset {name!r}: " in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize("thing", [124, None, ["emb_dim", 768]])
def test_what_is_no_config_is_refused_by_type(thing):
    with pytest.raises(ConfigError, match=rf"not {type(thing).__name__}"):
        GPTConfig.of(thing)


def test_a_config_does_not_change():
    with pytest.raises(FrozenInstanceError):
        GPTConfig().emb_dim = 1
    with pytest.raises(TypeError):
        PRESETS["mine"] = GPTConfig()


def test_a_changed_copy_is_checked_again():
    with pytest.raises(ConfigError, match="emb_dim 700 is not a multiple of n_heads 12"):
        replace(GPTConfig(), emb_dim=700)


def test_configs_and_budgets_need_no_torch():
    code = "import sys, gptrs.config, gptrs.params; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
