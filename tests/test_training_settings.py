"""What a run can be told: fields, their checks, `--set` and TOML files."""

import dataclasses
import math
import tomllib

import pytest

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, SourceError
from gptrs.training.config import TrainingConfig
from gptrs.training.settings import (
    answer_option,
    describe_settings,
    parse_settings,
    read_settings,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 up, or None"),
        ({"minutes": math.nan}, "minutes is nan; it must be a number above 0"),
        ({"minutes": -1}, "minutes is -1"),
        ({"minutes": True}, "minutes is True"),
        ({"batch_tokens": 2.5}, "batch_tokens is 2.5"),
        ({"beta2": 1.0}, r"beta2 is 1.0; it must be from 0 to below 1"),
        ({"validation_fraction": 0}, "validation_fraction is 0; it must be between 0 and 1"),
        ({"device": "tpu"}, "device is 'tpu'; it must be one of auto, cpu, cuda, mps"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; it must be one of adamw, muon"),
        ({"compile": 1}, "compile is 1; it must be true or false, or None"),
        ({"sample_prompts": "The"}, "sample_prompts is 'The'; it must be a list or tuple"),
    ],
)
def test_an_impossible_setting_is_named_with_what_is_allowed(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**change)


def test_every_setting_explains_itself():
    for field in dataclasses.fields(TrainingConfig):
        assert TrainingConfig.help(field.name).endswith(".")
    assert {name for name, _, _ in describe_settings()} == {
        field.name for field in dataclasses.fields(TrainingConfig)
    }


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("minutes=10", "minutes", 10.0),
        ("steps = 300", "steps", 300),
        ("steps=none", "steps", None),
        ("batch_tokens=auto", "batch_tokens", None),
        ("batch-tokens=16_384", "batch_tokens", 16384),
        ("learning_rate=6e-4", "learning_rate", 6e-4),
        ("compile=true", "compile", True),
        ("compile=auto", "compile", None),
        ("decay_1d=FALSE", "decay_1d", False),
        ("dtype=auto", "dtype", "auto"),
        ("sample_prompts=Once upon = ", "sample_prompts", ("Once upon = ",)),
        ("sample_prompts=", "sample_prompts", ()),
        ('sample_prompts=["The", "[a]"]', "sample_prompts", ("The", "[a]")),
        ("sample_prompts=[a] = b", "sample_prompts", ("[a] = b",)),
    ],
)
def test_a_text_becomes_a_value_of_its_fields_type(text, key, value):
    found = parse_settings([text])
    assert found.training == {key: value}
    assert type(found.training[key]) is type(value)
    TrainingConfig(**found.training)


def test_keys_of_the_model_are_sorted_out_and_later_ones_come_before_earlier():
    found = parse_settings(["emb_dim=64", "minutes=1", "qkv_bias=true", "pos=rope", "minutes=2"])
    assert found.model == {"emb_dim": 64, "qkv_bias": True, "pos": "rope"}
    assert found.training == {"minutes": 2.0}
    later = parse_settings(["emb_dim=32"])
    assert found.updated(later).model["emb_dim"] == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minutes", "--set minutes: expected key=value"),
        ("=3", "expected key=value"),
        ("batch_tokns=3", "unknown key 'batch_tokns': did you mean 'batch_tokens'"),
        ("emb_dims=3", "did you mean 'emb_dim'"),
        ("xyzzy=3", "lists them all"),
        ("n_embd=384", "unknown key 'n_embd': here it is emb_dim"),
        ("n_layer=6", "here it is n_layers"),
        ("n_head=6", "here it is n_heads"),
        ("block_size=256", "here it is context_length"),
        ("dropout=0.2", "here it is drop_rate"),
        ("batch_size=64", r"here it is batch_tokens, which is batch_size \* context_length"),
        ("gradient_accumulation_steps=8", "here it is batch_tokens: tokens a step"),
        ("max_iters=5000", "here it is steps"),
        ("lr=1e-3", "here it is learning_rate"),
        ("min_lr=1e-4", "here it is final_learning_rate"),
        ("steps=many", "steps is 'many'; it must be a whole number or none"),
        ("steps=2.5", "steps is '2.5'"),
        ("learning_rate=fast", "it must be a number or none"),
        ("compile=maybe", "it must be true or false or none"),
    ],
)
def test_what_is_no_setting_is_answered_with_the_nearest_or_with_our_name(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings([text])


def test_every_foreign_name_is_answered_with_a_key_there_is():
    from gptrs.training.settings import _FOREIGN

    known = {field.name for cls in (TrainingConfig, GPTConfig) for field in dataclasses.fields(cls)}
    for name, answer in _FOREIGN.items():
        assert name not in known
        first = answer.split()[0].rstrip(",:")
        assert first in known or first == "the", name


# What its train.py lets one set, but for device, dtype and the others that have our names.
NANOGPT = """
    out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from
    wandb_log wandb_project wandb_run_name dataset gradient_accumulation_steps batch_size
    block_size n_layer n_head n_embd dropout bias max_iters grad_clip decay_lr warmup_iters
    lr_decay_iters min_lr backend
"""


def test_every_setting_of_nanogpt_has_an_answer():
    for name in NANOGPT.split():
        with pytest.raises(ConfigError, match=f"unknown key '{name}': (?!did you mean|`gptrs)"):
            parse_settings([f"{name}=1"])
        assert answer_option(f"--{name}", []), name


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--block_size", "here it is --context-length"),
        ("--max-iters", "here it is --steps"),
        ("--batch_size", "here it is --batch-tokens, which is batch_size * context_length"),
        ("--weight-decay", "here it is --set weight_decay=VALUE"),
        ("--grad_clip", "here it is --set max_grad_norm=VALUE"),
        ("--dataset", "here it is the argument DATA"),
        ("--log_interval", "every step is written to metrics.jsonl"),
        ("--xyzzy", None),
    ],
)
def test_an_option_of_others_is_answered_with_ours(option, answer):
    assert answer_option(option, ["steps", "context_length", "batch_tokens"]) == answer


@pytest.mark.parametrize("key", ["tokenizer", "model", "val", "lora", "out", "tensorboard"])
def test_what_is_an_option_is_no_setting_and_the_answer_says_so(key):
    with pytest.raises(ConfigError, match=rf"{key!r} is no setting: it is the option --{key}, in "):
        parse_settings([f"{key}=x"])


def test_a_toml_file_has_the_same_keys_flat_or_in_tables(tmp_path):
    flat = (
        'minutes = 3\nn_layers = 2\nsample_prompts = ["a", "b"]\nsteps = "none"\ndtype = "auto"\n'
    )
    tables = (
        '[training]\nminutes = 3\nsample_prompts = ["a", "b"]\nsteps = "none"\ndtype = "auto"\n'
        "[model]\nn_layers = 2\n"
    )
    for number, text in enumerate((flat, tables)):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        found = read_settings(file)
        assert found.model == {"n_layers": 2}
        assert found.training == {
            "minutes": 3, "sample_prompts": ("a", "b"), "steps": None, "dtype": "auto",
        }  # fmt: skip
        TrainingConfig(**found.training)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("minutes = ", SourceError, "not TOML"),
        ("n_embd = 3", ConfigError, r"file\.toml: unknown key 'n_embd': here it is emb_dim"),
        ("[model]\nminuets = 3", ConfigError, "did you mean 'minutes'"),
        ('steps = "ten"', ConfigError, r"file\.toml: steps is 'ten'; it must be a whole number"),
        ('n_layers = "six"', ConfigError, r"file\.toml: n_layers is 'six'; it must be a whole"),
        ("n_layers = true", ConfigError, r"file\.toml: n_layers is True; it must be a whole"),
        ("qkv_bias = 1", ConfigError, r"file\.toml: qkv_bias is 1; it must be true or false"),
        ("sample_prompts = [3]", ConfigError, r"file\.toml: sample_prompts is \(3,\)"),
        ('tokenizer = "char"', ConfigError, r"file\.toml: 'tokenizer' is no setting.* of \[run\]"),
        ("[run]\nsteps = 3", ConfigError, r"file\.toml: unknown key 'steps' in \[run\]; there are"),
        ("[run]\nlora = true", ConfigError, r"lora is True in \[run\]; it must be a whole number"),
        ("[run]\ndata = [1]", ConfigError, r"data is \[1\] in \[run\]; it must be a list of paths"),
        ("run = 1", ConfigError, r"run is 1; it must be a table, \[run\]"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, text, error, message):
    file = tmp_path / "file.toml"
    file.write_text(text)
    with pytest.raises(error, match=message):
        read_settings(file)
    with pytest.raises(SourceError, match="cannot be read"):
        read_settings(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("text", "prompts"), [('"The"', ("The",)), ('""', ()), ("[]", ()), ('["a", "b"]', ("a", "b"))]
)
def test_a_text_alone_is_a_prompt_in_a_file_too(tmp_path, text, prompts):
    file = tmp_path / "file.toml"
    file.write_text(f"sample_prompts = {text}\n")
    assert read_settings(file).training == {"sample_prompts": prompts}


def test_a_file_may_have_numbers_of_the_model_as_whole_ones(tmp_path):
    file = tmp_path / "file.toml"
    file.write_text('drop_rate = 0\npos = "rope"\nrel_max_distance = "none"\n')
    assert read_settings(file).model == {"drop_rate": 0, "pos": "rope", "rel_max_distance": None}


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    file = tmp_path / "file.toml"
    file.write_text("steps = 3\n", "utf-8-sig")
    assert read_settings(file).training == {"steps": 3}


def test_what_else_a_run_is_told_stands_in_a_table_of_its_own(tmp_path):
    file = tmp_path / "file.toml"
    file.write_text('steps = 3\n[run]\ndata = ["a.txt"]\nlora = 2\ntensorboard = true\n')
    found = read_settings(file)
    assert found.training == {"steps": 3}
    assert found.run == {"data": ["a.txt"], "lora": 2, "tensorboard": True}
    assert found.updated(parse_settings(["steps=4"])).run == found.run


def test_the_defaults_as_toml_are_the_defaults(tmp_path):
    lines = []
    for name, default, _ in describe_settings():
        value = default if default in ("true", "false") or _is_number(default) else f'"{default}"'
        lines.append(f"{name} = {'[]' if name == 'sample_prompts' else value}")
    file = tmp_path / "file.toml"
    file.write_text("\n".join(lines))
    assert tomllib.loads(file.read_text())
    assert TrainingConfig(**read_settings(file).training) == TrainingConfig()


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_what_is_left_to_choose_follows_from_the_model():
    config = TrainingConfig()
    assert config.tokens_per_step(128) == 1024
    assert config.peak_learning_rate(64) == config.peak_learning_rate(128) == 2.5e-3
    assert config.peak_learning_rate(768) == pytest.approx(6e-4, rel=0.01)
    assert config.last_learning_rate(6e-4) == pytest.approx(6e-5)
    told = TrainingConfig(batch_tokens=64, learning_rate=1e-3, final_learning_rate=0.0)
    assert told.tokens_per_step(8) == 64
    assert (told.peak_learning_rate(768), told.last_learning_rate(1e-3)) == (1e-3, 0.0)
    assert told.peak_learning_rate(768, fine_tunes=True) == 1e-3


@pytest.mark.parametrize("emb_dim", [768, 1024])
def test_weights_that_have_learned_get_about_the_books_learning_rate(emb_dim):
    # Chapters 6 and 7 fine-tune GPT-2's 124 and 355 million parameters with 5e-5.
    found = TrainingConfig().peak_learning_rate(emb_dim, fine_tunes=True)
    assert found == pytest.approx(5e-5, rel=0.25)
