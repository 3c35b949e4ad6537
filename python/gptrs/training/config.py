"""What a training run is told: one frozen dataclass, checked where it is made. Imports no torch.

Each setting stands once, with its default, its help and what it may be; the command line, the keys
of `training_settings` and the errors are made from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16", "pure-bfloat16"]
OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["wsd", "cosine"]
ParallelName = Literal["auto", "none", "ddp", "fsdp"]

SMALL_GPT = GPTConfig(
    context_length=128,
    emb_dim=128,
    n_heads=4,
    n_layers=4,
    drop_rate=0.0,
    tie_embeddings=True,
    init="gpt2",
)
"""What the demo, and `gptrs train` unless told otherwise, train: 7 million parameters, most of them
the 50,257 token embeddings. The settings below fit it."""

WINDOWS_PER_STEP = 8
"""What `batch_tokens` is by default, in windows."""

FINE_TUNING_SHARE = 0.1
"""Of the learning rate from nothing, for weights that have learned. Brown et al. 2020 train a width
of 1,024 with 3e-4, and the book fine-tunes that model of GPT-2 with 5e-5, as it does one of 768."""


class _Allowed(NamedTuple):
    test: Callable[[Any], bool]
    description: str


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_COUNT = _Allowed(lambda value: _is_whole(value) and value >= 1, "a whole number from 1 up")
_WHOLE = _Allowed(lambda value: _is_whole(value) and value >= 0, "a whole number from 0 up")
_SEED = _Allowed(
    lambda value: _is_whole(value) and 0 <= value < 1 << 63, "a whole number from 0 to below 2^63"
)
_POSITIVE = _Allowed(lambda value: _is_number(value) and value > 0, "a number above 0")
_NOT_NEGATIVE = _Allowed(lambda value: _is_number(value) and value >= 0, "a number from 0 up")
_DECAY = _Allowed(lambda value: _is_number(value) and 0 <= value < 1, "from 0 to below 1")
_SHARE = _Allowed(lambda value: _is_number(value) and 0 < value < 1, "between 0 and 1")
_FLAG = _Allowed(lambda value: isinstance(value, bool), "true or false")
_TEXTS = _Allowed(
    lambda value: isinstance(value, tuple) and all(isinstance(t, str) and t for t in value),
    "a list or tuple of texts that are not empty",
)


def _setting(
    default: Any,
    help: str,  # noqa: A002
    allowed: _Allowed,
    *,
    is_common: bool = False,
) -> Any:
    """A field; the common ones are options of `gptrs train`, all are keys of `--set`."""
    metadata = {"help": help, "allowed": allowed, "is_common": is_common}
    return field(default=default, metadata=metadata)


def _optional(allowed: _Allowed) -> _Allowed:
    return _Allowed(
        lambda value: value is None or allowed.test(value), f"{allowed.description}, or None"
    )


def _one_of(names: Any) -> _Allowed:
    return _Allowed(lambda value: value in get_args(names), f"one of {', '.join(get_args(names))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How `gptrs.train` trains; `TrainingConfig.help("batch_tokens")` explains a field.

    Raises:
        ConfigError: a field has an impossible value; the message says which, and what is allowed.
    """

    # How long
    minutes: float = _setting(
        2.5,
        "Time to train, evaluations included; the number of steps is fixed once it is known.",
        _POSITIVE,
        is_common=True,
    )
    steps: int | None = _setting(
        None,
        "Optimizer steps, instead of as many as fit into the minutes.",
        _optional(_COUNT),
        is_common=True,
    )
    early_stopping: int | None = _setting(
        None,
        "Stop after so many evaluations, one after the other, without a new lowest loss.",
        _optional(_COUNT),
    )

    # What a step learns from
    batch_tokens: int | None = _setting(
        None,
        "Tokens an optimizer step, a multiple of the context; None is 8 windows. What memory does "
        "not hold at once is accumulated, with the same gradient.",
        _optional(_COUNT),
        is_common=True,
    )
    micro_batch: int | None = _setting(
        None,
        "Most windows in a forward pass; None takes what fits into memory.",
        _optional(_COUNT),
    )
    validation_fraction: float = _setting(
        0.1,
        "Share of the tokens, from the end, held out to validate on, if no others are given.",
        _SHARE,
    )

    # How weights move
    optimizer: OptimizerName = _setting(
        "adamw",
        "AdamW for all, or Muon for the blocks' matrices and AdamW for the rest.",
        _one_of(OptimizerName),
    )
    learning_rate: float | None = _setting(
        None,
        "The highest learning rate, reached after the warm-up; None is 2.5e-3 up to a width of "
        "128, and falls with the width to the power 0.8 beyond (6e-4 for 768); a tenth of that if "
        "all of a model goes on from weights that have learned (--init without --lora).",
        _optional(_POSITIVE),
        is_common=True,
    )
    final_learning_rate: float | None = _setting(
        None, "The learning rate at the last step; None is a tenth.", _optional(_NOT_NEGATIVE)
    )
    schedule: ScheduleName = _setting(
        "wsd",
        "How the learning rate falls, along half a cosine: from the end of the warm-up (cosine), "
        "or after a level stretch (wsd: warm-up, stable, decay).",
        _one_of(ScheduleName),
    )
    decay_fraction: float = _setting(
        0.6, "With wsd, the last share of the run, over which the learning rate falls.", _SHARE
    )
    warmup_steps: int = _setting(
        20, "Steps over which the learning rate rises to its highest.", _WHOLE
    )
    weight_decay: float = _setting(
        0.1, "Weight decay, of matrices, and of the rest as the next two say.", _NOT_NEGATIVE
    )
    decay_1d: bool = _setting(False, "Whether biases and norms decay too.", _FLAG)
    decay_embeddings: bool = _setting(
        True, "Whether the tables of tokens, positions and distances decay.", _FLAG
    )
    beta1: float = _setting(0.9, "AdamW's decay of the mean gradient.", _DECAY)
    beta2: float = _setting(0.95, "AdamW's decay of the mean squared gradient.", _DECAY)
    max_grad_norm: float = _setting(
        1.0, "Gradients that are longer, all together, are scaled down to this.", _POSITIVE
    )
    max_skipped_steps: int = _setting(
        5,
        "A step whose loss or gradient is NaN or infinite changes nothing; one more such step in "
        "a row than this ends the run.",
        _WHOLE,
    )

    # What is looked at and kept
    num_evaluations: int = _setting(10, "Evaluations, evenly spread over the run.", _COUNT)
    evaluate_every: int | None = _setting(
        None, "Steps between evaluations, instead of a number of them.", _optional(_COUNT)
    )
    max_validation_tokens: int = _setting(
        131_072, "Most tokens to validate on, from the start of what is held out.", _COUNT
    )
    sample_prompts: tuple[str, ...] = _setting(
        (), "What the model continues after each evaluation.", _TEXTS
    )
    sample_tokens: int = _setting(40, "Tokens in each of those texts.", _COUNT)
    checkpoint_minutes: float = _setting(
        5.0, "Minutes from one checkpoint to the next, the most that a crash can cost.", _POSITIVE
    )
    keep_last: int = _setting(2, "How many of the newest checkpoints stay.", _COUNT)
    keep_best: bool = _setting(
        True, "Whether the checkpoint with the lowest validation loss stays too.", _FLAG
    )

    # On what
    seed: int = _setting(
        123, "Fixes first weights, order of the batches and dropout.", _SEED, is_common=True
    )
    device: DeviceName = _setting(
        "auto",
        "Where to train; auto takes cuda, then mps, then cpu.",
        _one_of(DeviceName),
        is_common=True,
    )
    dtype: DtypeName = _setting(
        "auto",
        "What matmuls compute in: bfloat16 by autocast, or with weights in bfloat16 and masters "
        "in float32 (pure-bfloat16); auto measures which of the first two is faster.",
        _one_of(DtypeName),
        is_common=True,
    )
    compile: bool | None = _setting(
        None, "Whether torch.compile translates the blocks; None does on a GPU.", _optional(_FLAG)
    )
    activation_checkpointing: bool = _setting(
        False, "Compute activations twice instead of keeping them: less memory, more time.", _FLAG
    )
    parallel: ParallelName = _setting(
        "auto",
        "Under torchrun: a copy of the model on each process (ddp), or shards of it (fsdp); auto "
        "is ddp where there are several.",
        _one_of(ParallelName),
    )

    def __post_init__(self) -> None:
        if isinstance(self.sample_prompts, list):
            object.__setattr__(self, "sample_prompts", tuple(self.sample_prompts))
        for setting in fields(self):
            allowed: _Allowed = setting.metadata["allowed"]
            value = getattr(self, setting.name)
            if not allowed.test(value):
                raise ConfigError(f"{setting.name} is {value!r}; it must be {allowed.description}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """The config with these settings; a list, as JSON has it, is a tuple.

        Raises:
            ConfigError: a key is none of the fields, or a value is impossible.
        """
        known = [setting.name for setting in fields(cls)]
        if unknown := [key for key in settings if key not in known]:
            raise ConfigError(f"unknown key {unknown[0]!r}; there are {', '.join(known)}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in settings.items()
        }
        return cls(**values)

    @classmethod
    def help(cls, name: str) -> str:
        """What the field called `name` means, in one sentence or two."""
        return next(str(f.metadata["help"]) for f in fields(cls) if f.name == name)

    def tokens_per_step(self, context_length: int) -> int:
        """`batch_tokens`, or what None stands for."""
        return self.batch_tokens or WINDOWS_PER_STEP * context_length

    def peak_learning_rate(self, emb_dim: int, *, fine_tunes: bool = False) -> float:
        """`learning_rate`, or what None stands for.

        Through 6e-4 for GPT-3's 768 (Brown et al. 2020, table 2.1) and what the demo learns best
        with, 2.5e-3 for 128.

        Args:
            fine_tunes: whether the weights have learned already: they get `FINE_TUNING_SHARE`.
                Adapters beside them have not; Hu et al. 2021 train GPT-2's with 2e-4.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        ratio = min(1.0, SMALL_GPT.emb_dim / emb_dim)
        share = FINE_TUNING_SHARE if fine_tunes else 1.0
        return float(f"{share * 2.5e-3 * ratio**0.8:.3g}")

    def last_learning_rate(self, peak: float) -> float:
        """`final_learning_rate`, or what None stands for beside this `peak_learning_rate`."""
        return peak / 10 if self.final_learning_rate is None else self.final_learning_rate
