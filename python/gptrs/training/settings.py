"""Settings of a run from text: `--set key=value`, and a TOML file of the same keys. No torch.

    minutes = 10               keys of TrainingConfig and of GPTConfig, in any order; a table
    n_layers = 6               [training] or [model] may hold them too
    sample_prompts = ["The"]

    [run]                      what else the command line has: data, tokenizer, out, ...
    tokenizer = "char"

A key that is none is answered with the nearest; those of nanoGPT and transformers with ours.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from gptrs.config import FOREIGN_NAMES, GPTConfig
from gptrs.errors import ConfigError, SourceError
from gptrs.training.config import TrainingConfig

_ACCUMULATION = (
    "batch_tokens: tokens a step; how they are accumulated follows from memory and processes"
)
_STEPS = "steps: an epoch has as many as batch_tokens goes into the training tokens"
# What others call the same.
_FOREIGN = FOREIGN_NAMES | {
    "max_iters": "steps",
    "max_steps": "steps",
    "epochs": _STEPS,
    "n_epochs": _STEPS,
    "num_epochs": _STEPS,
    "num_train_epochs": _STEPS,
    "batch_size": "batch_tokens, which is batch_size * context_length",
    "gradient_accumulation_steps": _ACCUMULATION,
    "per_device_train_batch_size": _ACCUMULATION,
    "device_batch_size": "micro_batch",
    "total_batch_size": "batch_tokens",
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "min_lr": "final_learning_rate",
    "warmup_iters": "warmup_steps",
    "lr_decay_iters": "decay_fraction",
    "decay_lr": "schedule",
    "lr_scheduler_type": "schedule",
    "grad_clip": "max_grad_norm",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "eval_interval": "evaluate_every",
    "eval_freq": "evaluate_every",
    "eval_steps": "evaluate_every",
    "eval_iters": "max_validation_tokens",
    "eval_iter": "max_validation_tokens",
    "start_context": "sample_prompts",
    "save_steps": "checkpoint_minutes",
    "always_save_checkpoint": "keep_best",
    "save_total_limit": "keep_last",
    "gradient_checkpointing": "activation_checkpointing",
    "bf16": "dtype",
    "fp16": "dtype",
    "torch_compile": "compile",
    "backend": "parallel",
    "out_dir": "the option --out",
    "output_dir": "the option --out",
    "init_from": "the option --init",
    "dataset": "the argument DATA",
    "wandb_run_name": "the option --out",
}
# What others set, and what is so without being told.
_NEEDLESS = {
    "log_interval": "every step is written to metrics.jsonl",
    "logging_steps": "every step is written to metrics.jsonl",
    "eval_only": "a run is evaluated before its first step; `gptrs runs` shows what it has reached",
    "wandb_log": "nothing is sent anywhere: a run has report.html, and files of --tensorboard",
    "wandb_project": "nothing is sent anywhere: --runs names the folder of a project's runs",
}
# The options that are no settings, and what each is in the table [run] of a file.
_RUN: dict[str, tuple[type, str]] = {
    "data": (list, "a list of paths"),
    "model": (str, "a text"),
    "init": (str, "a text"),
    "tokenizer": (str, "a text"),
    "val": (str, "a text"),
    "lora": (int, "a whole number"),
    "out": (str, "a text"),
    "runs": (str, "a text"),
    "tensorboard": (bool, "true or false"),
}
_WORDS = {"true": True, "false": False, "none": None, "auto": None}


class Settings(NamedTuple):
    """What was set, of the run and of the model; all else has its default."""

    training: dict[str, Any]
    model: dict[str, Any]
    run: Mapping[str, Any] = MappingProxyType({})
    """Of a file: what else the command line has, by the names of its options."""

    def updated(self, other: Settings) -> Settings:
        """These, with those of `other` in their places."""
        return Settings(
            self.training | other.training, self.model | other.model, {**self.run, **other.run}
        )


_TRAINING = get_type_hints(TrainingConfig)
_MODEL = get_type_hints(GPTConfig)


def read_settings(file: str | Path) -> Settings:
    """The settings in a TOML file.

    Raises:
        SourceError: it cannot be read, or is not TOML.
        ConfigError: a key is none of ours, or its value is impossible.
    """
    try:
        content = tomllib.loads(Path(file).read_text("utf-8-sig"))
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # Not UTF-8, or not TOML.
        raise SourceError(f"{file}: not TOML: {error}") from error
    flat: dict[str, Any] = {}
    run = content.pop("run", {})
    for key, value in content.items():
        is_table = key in ("training", "model") and isinstance(value, Mapping)
        flat |= value if is_table else {key: value}
    try:
        found = sorted_settings({key: _from_toml(key, value) for key, value in flat.items()})
        TrainingConfig.of(found.training)  # Here the file can still be named.
        return found._replace(run=_checked_run(run))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def parse_settings(assignments: Iterable[str]) -> Settings:
    """The settings in texts such as "minutes=10".

    Raises:
        ConfigError: one is no such text, its key is none of ours, or its value has another type.
    """
    found: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise ConfigError(f"--set {assignment}: expected key=value")
        found[key] = _parsed(key, text)
    return sorted_settings(found)


def sorted_settings(values: Mapping[str, Any]) -> Settings:
    """The settings, each where it belongs.

    Raises:
        ConfigError: a key is none of ours; the message names the nearest.
    """
    for key in values:
        _check_known(key)
    return Settings(
        {key: value for key, value in values.items() if key in _TRAINING},
        {key: value for key, value in values.items() if key in _MODEL},
    )


def answer_option(option: str, options: Collection[str]) -> str | None:
    """What to say to an option that there is not, such as nanoGPT's `--block_size`; None: nothing.

    Args:
        options: the names of those there are, as keys are written: `batch_tokens`.
    """
    key = option.lstrip("-").replace("-", "_")
    if key in _NEEDLESS:
        return _NEEDLESS[key]
    name = key if key in _TRAINING or key in _MODEL else _FOREIGN.get(key)
    if name is None:
        return None
    first = re.split("[,: ]", name)[0]
    if first in options:
        return f"here it is --{first.replace('_', '-')}{name.removeprefix(first)}"
    is_key = first in _TRAINING or first in _MODEL
    return (
        f"here it is --set {first}=VALUE{name.removeprefix(first)}"
        if is_key
        else (f"here it is {name}")
    )


def describe_settings() -> list[tuple[str, str, str]]:
    """Every key of a run: its name, its default, its help."""
    return [(f.name, _text(f.default), str(f.metadata["help"])) for f in fields(TrainingConfig)]


def _check_known(key: str) -> None:
    if key in _TRAINING or key in _MODEL:
        return
    if key in _RUN:
        is_data = "the argument DATA" if key == "data" else f"the option --{key}"
        raise ConfigError(f"{key!r} is no setting: it is {is_data}, in a file a key of [run]")
    if key in _FOREIGN or key in _NEEDLESS:
        answer = _NEEDLESS.get(key) or f"here it is {_FOREIGN[key]}"
        raise ConfigError(f"unknown key {key!r}: {answer}")
    nearest = difflib.get_close_matches(key, [*_TRAINING, *_MODEL], n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "`gptrs train --help` lists them all"
    raise ConfigError(f"unknown key {key!r}: {hint}")


def _parsed(key: str, text: str) -> Any:
    """The value that a text stands for, by the type of the key's field; texts are as they are."""
    _check_known(key)
    kinds = _kinds(key)
    if get_origin(kinds[0]) is tuple:
        return _texts(text)
    text = text.strip()
    word = text.lower()
    if str in kinds and (word != "none" or NoneType not in kinds):
        return text
    if word in _WORDS and type(_WORDS[word]) in kinds:
        return _WORDS[word]
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text.replace("_", ""))
            except ValueError:
                continue
    raise ConfigError(f"{key} is {text!r}; it must be {_wanted(kinds)}")


def _texts(text: str) -> Any:
    """Several texts if they are written as TOML has them, `["a", "b"]`; else this one."""
    if not text.startswith(('["', "['")):
        return (text,) if text else ()
    try:
        return tuple(tomllib.loads(f"texts = {text}")["texts"])
    except ValueError as error:
        raise ConfigError(f"{text} is no list of texts: {error}") from error


def _kinds(key: str) -> list[Any]:
    """The types that a field's value may have; a name of several is a str."""
    hint = _TRAINING[key] if key in _TRAINING else _MODEL[key]
    if get_origin(hint) is tuple:
        return [hint]
    return [str if isinstance(part, str) else part for part in get_args(hint) or [hint]]


def _from_toml(key: str, value: Any) -> Any:
    """A TOML value as the key's field has it.

    Raises:
        ConfigError: the key is none of ours, or a field of the model has another type. Those of a
            run check their values themselves.
    """
    _check_known(key)
    kinds = _kinds(key)
    if get_origin(kinds[0]) is tuple:
        if isinstance(value, str):
            return (value,) if value else ()
        return tuple(value) if isinstance(value, list) else value
    # TOML has no null: "auto" or "none" is written in its place.
    is_word = isinstance(value, str) and value.lower() in ("none", "auto")
    if is_word and str not in kinds and NoneType in kinds:
        return None
    is_whole_number = type(value) is int and float in kinds
    if key in _MODEL and type(value) not in kinds and not is_whole_number:
        raise ConfigError(f"{key} is {value!r}; it must be {_wanted(kinds)}")
    return value


def _checked_run(table: Any) -> dict[str, Any]:
    """The table [run] of a file.

    Raises:
        ConfigError: it is no table, a key is no such option, or its value has another type.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"run is {table!r}; it must be a table, [run]")
    for key, value in table.items():
        if key not in _RUN:
            raise ConfigError(f"unknown key {key!r} in [run]; there are {', '.join(_RUN)}")
        kind, description = _RUN[key]
        is_good = type(value) is kind
        if isinstance(value, list):
            is_good = is_good and all(isinstance(path, str) for path in value)
        if not is_good:
            raise ConfigError(f"{key} is {value!r} in [run]; it must be {description}")
    return dict(table)


def _wanted(kinds: list[Any]) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        NoneType: "none",
    }
    return " or ".join(names.get(kind, str(kind)) for kind in kinds)


def _text(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(default) or "none"
    return str(default).lower() if isinstance(default, bool | NoneType) else str(default)
