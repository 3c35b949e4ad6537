"""What a training run is told: one frozen dataclass, checked where it is made. Imports no torch.

Each setting stands once, with its default, its help and what it may be; the command line and the
errors are made from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16"]

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


class _Allowed(NamedTuple):
    test: Callable[[Any], bool]
    description: str


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


_COUNT = _Allowed(lambda value: _is_whole(value) and value >= 1, "a whole number from 1 up")
_WHOLE = _Allowed(lambda value: _is_whole(value) and value >= 0, "a whole number from 0 up")
_POSITIVE = _Allowed(lambda value: _is_number(value) and value > 0, "a number above 0")
_NOT_NEGATIVE = _Allowed(lambda value: _is_number(value) and value >= 0, "a number from 0 up")
_DECAY = _Allowed(lambda value: _is_number(value) and 0 <= value < 1, "from 0 to below 1")
_SHARE = _Allowed(lambda value: _is_number(value) and 0 < value < 1, "between 0 and 1")


def _setting(default: Any, help: str, allowed: _Allowed) -> Any:  # noqa: A002
    return field(default=default, metadata={"help": help, "allowed": allowed})


def _optional(allowed: _Allowed) -> _Allowed:
    return _Allowed(
        lambda value: value is None or allowed.test(value), f"{allowed.description}, or None"
    )


def _one_of(names: Any) -> _Allowed:
    return _Allowed(lambda value: value in get_args(names), f"one of {', '.join(get_args(names))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How `gptrs.trainer.train` trains; `TrainingConfig.help("batch_size")` explains a field.

    Raises:
        ConfigError: a field has an impossible value; the message says which, and what is allowed.
    """

    minutes: float = _setting(
        2.5,
        "Time to train, evaluations included; the number of steps is fixed once it is known.",
        _POSITIVE,
    )
    steps: int | None = _setting(
        None, "Optimizer steps, instead of as many as fit into the minutes.", _optional(_COUNT)
    )
    batch_size: int = _setting(8, "Windows in a batch, each as long as the context.", _COUNT)
    learning_rate: float = _setting(
        2.5e-3, "The highest learning rate, reached after the warm-up.", _POSITIVE
    )
    final_learning_rate: float = _setting(
        2.5e-4, "The learning rate at the last step, reached along half a cosine.", _NOT_NEGATIVE
    )
    decay_fraction: float = _setting(
        0.6, "The last share of the run, over which the learning rate falls.", _SHARE
    )
    warmup_steps: int = _setting(
        20, "Steps over which the learning rate rises to its highest.", _WHOLE
    )
    weight_decay: float = _setting(
        0.1, "AdamW's weight decay, on matrices only: never on biases and norms.", _NOT_NEGATIVE
    )
    beta1: float = _setting(0.9, "AdamW's decay of the mean gradient.", _DECAY)
    beta2: float = _setting(0.95, "AdamW's decay of the mean squared gradient.", _DECAY)
    max_grad_norm: float = _setting(
        1.0, "Gradients that are longer, all together, are scaled down to this.", _POSITIVE
    )
    num_evaluations: int = _setting(
        10, "Evaluations, each with a checkpoint, evenly spread over the run.", _COUNT
    )
    validation_fraction: float = _setting(
        0.1, "Share of the tokens, from the end, held out to validate on.", _SHARE
    )
    max_validation_tokens: int = _setting(
        131_072, "Most tokens to validate on, from the start of the held-out part.", _COUNT
    )
    seed: int = _setting(123, "Fixes first weights, order of the batches and dropout.", _WHOLE)
    device: DeviceName = _setting(
        "auto", "Where to train; auto takes cuda, then mps, then cpu.", _one_of(DeviceName)
    )
    dtype: DtypeName = _setting(
        "auto",
        "What matmuls compute in; auto takes bfloat16 where the hardware has it.",
        _one_of(DtypeName),
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            allowed: _Allowed = setting.metadata["allowed"]
            value = getattr(self, setting.name)
            if not allowed.test(value):
                raise ConfigError(f"{setting.name} is {value!r}; it must be {allowed.description}")

    @classmethod
    def help(cls, name: str) -> str:
        """What the field called `name` means, in one sentence."""
        return next(str(f.metadata["help"]) for f in fields(cls) if f.name == name)
