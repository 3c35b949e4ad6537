"""Configs are checked where they are made; messages say what is wrong and what is allowed."""

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptrs.config import GPT_CONFIG_124M, PRESETS, GPTConfig, Pos, get_config
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
        ("position_embedding_type", "pos"),
        ("relative_attention_max_distance", "rel_max_distance"),
        ("clamp_len", "rel_max_distance"),
        ("mem_len", "memory_length"),
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


# --- Positions ---

RELATIVE = ("t5", "relative_key", "relative_key_query", "transformer_xl")


@pytest.mark.parametrize("pos", get_args(Pos))
@pytest.mark.parametrize("rel_max_distance", [None, 40])
def test_a_config_with_positions_survives_json_and_pickle(pos, rel_max_distance):
    if pos not in RELATIVE:
        rel_max_distance = None
    memory_length = 64 if pos == "transformer_xl" else 0
    fields = {"pos": pos, "rel_max_distance": rel_max_distance, "memory_length": memory_length}
    cfg = GPTConfig(**fields)
    assert fields.items() <= cfg.to_dict().items()
    assert GPTConfig.of(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    assert cfg != GPTConfig() or pos == "learned"


@pytest.mark.parametrize("pos", ["rotary", "", "Learned", None, 1])
def test_an_unknown_kind_of_positions_is_refused_with_the_known_ones(pos):
    with pytest.raises(ConfigError) as error:
        GPTConfig(pos=pos)
    message = str(error.value)
    assert message.startswith(f"pos is {pos!r}; it must be ")
    assert all(repr(kind) in message for kind in get_args(Pos))


@given(st.sampled_from(get_args(Pos)), st.integers(1, 99), st.integers(1, 12))
def test_odd_widths_are_refused_where_numbers_come_in_pairs(pos, head_dim, n_heads):
    fields = {"pos": pos, "n_heads": n_heads, "emb_dim": head_dim * n_heads}
    odd_head = pos == "rope" and head_dim % 2
    odd_width = pos in ("sinusoidal", "transformer_xl") and head_dim * n_heads % 2
    if not odd_head and not odd_width:
        assert GPTConfig(**fields).head_dim == head_dim
        return
    with pytest.raises(ConfigError) as error:
        GPTConfig(**fields)
    message = str(error.value)
    assert f'pos="{pos}"' in message
    assert f"emb_dim {head_dim * n_heads}" in message
    assert "odd" in message
    assert not odd_head or f"n_heads {n_heads} gives heads {head_dim} wide" in message


@pytest.mark.parametrize("pos", sorted(set(get_args(Pos)) - set(RELATIVE)))
def test_a_largest_distance_is_refused_where_there_are_no_distances(pos):
    found = rf'rel_max_distance is 32, but pos="{pos}" has no such limit; "t5", "relative_key"'
    with pytest.raises(ConfigError, match=found):
        GPTConfig(pos=pos, rel_max_distance=32)


@pytest.mark.parametrize("pos", RELATIVE)
@pytest.mark.parametrize("value", [0, -1, True, 2.5, "32"])
def test_a_largest_distance_is_a_positive_int(pos, value):
    with pytest.raises(ConfigError, match=r"rel_max_distance is .*; it must be .*1 or more"):
        GPTConfig(pos=pos, rel_max_distance=value)


@pytest.mark.parametrize("value", [1, 15, 16])
def test_t5s_largest_distance_lies_beyond_the_buckets_of_one(value):
    with pytest.raises(ConfigError, match=rf'rel_max_distance is {value}, but pos="t5" .* 16: '):
        GPTConfig(pos="t5", rel_max_distance=value)
    assert GPTConfig(pos="t5", rel_max_distance=17).num_distances == 17


@pytest.mark.parametrize("pos", ["relative_key", "relative_key_query"])
def test_a_distance_that_no_training_window_has_is_refused(pos):
    with pytest.raises(ConfigError, match="rel_max_distance 65 is more than context_length 64"):
        GPTConfig(pos=pos, context_length=64, rel_max_distance=65)
    assert GPTConfig(pos=pos, context_length=64, rel_max_distance=64).num_distances == 64


@pytest.mark.parametrize("value", [-1, True, False, 2.0, "8", None])
def test_a_memory_length_is_an_int_from_0(value):
    with pytest.raises(ConfigError, match=r"memory_length is .*; it must be .*0 or more"):
        GPTConfig(pos="transformer_xl", memory_length=value)


@pytest.mark.parametrize("pos", sorted(set(get_args(Pos)) - {"transformer_xl"}))
def test_only_transformer_xl_has_a_memory(pos):
    with pytest.raises(ConfigError, match=rf'memory_length is 8, but pos is "{pos}": only'):
        GPTConfig(pos=pos, memory_length=8)
    assert GPTConfig(pos="transformer_xl", memory_length=8).memory_length == 8


@pytest.mark.parametrize(
    ("pos", "rel_max_distance", "num_distances", "max_tokens"),
    [
        ("learned", None, None, 1024),
        ("sinusoidal", None, None, None),
        ("rope", None, None, None),
        ("alibi", None, None, None),
        ("t5", None, 128, None),
        ("t5", 200, 200, None),
        ("relative_key", None, 1024, 1024),
        ("relative_key", 32, 32, None),
        ("relative_key_query", None, 1024, 1024),
        ("relative_key_query", 32, 32, None),
        ("transformer_xl", None, None, None),
        ("transformer_xl", 32, 32, None),
        ("none", None, None, None),
    ],
)
def test_an_input_may_be_as_long_as_the_positions_reach(
    pos, rel_max_distance, num_distances, max_tokens
):
    cfg = GPTConfig(pos=pos, rel_max_distance=rel_max_distance)
    assert (cfg.num_distances, cfg.max_tokens) == (num_distances, max_tokens)


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


def test_fields_are_read_like_the_books_dictionary():
    cfg = GPTConfig(emb_dim=96, n_heads=4, pos="rope")
    assert {name: cfg[name] for name in cfg.to_dict()} == cfg.to_dict()
    assert [cfg[key] for key in GPT_CONFIG_124M] == [getattr(cfg, key) for key in GPT_CONFIG_124M]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("emb_dims", "did you mean 'emb_dim'?"),
        ("n_embd", "did you mean 'emb_dim'?"),
        ("to_dict", "known keys are vocab_size, "),
        (0, "known keys are vocab_size, "),
    ],
)
def test_a_field_that_is_not_there_is_answered_with_the_nearest(key, hint):
    with pytest.raises(KeyError) as error:
        GPTConfig()[key]
    assert isinstance(error.value, ConfigError)
    assert str(error.value).startswith(f"unknown config key {key!r}: {hint}")


def test_a_changed_copy_is_checked_again():
    with pytest.raises(ConfigError, match="emb_dim 700 is not a multiple of n_heads 12"):
        replace(GPTConfig(), emb_dim=700)


def test_configs_and_budgets_need_no_torch():
    code = "import sys, gptrs.config, gptrs.costs.params; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_family_s_name_is_answered_with_its_sizes():
    with pytest.raises(ConfigError) as error:
        get_config("gpt2")
    sizes = [name for name in PRESETS if name.startswith("gpt2-")]
    assert len(sizes) == 4
    assert all(name in str(error.value) for name in sizes)
