"""What a training run is told: one frozen dataclass, from which the command line is made too. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from gptrs.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How `gptrs.trainer.train` trains.

    Raises:
        ConfigError: a field has an impossible value; the message says which, and what is allowed.
    """

    minutes: float = 3.0
    """Time to train, evaluations included: the first steps are measured, then the number of steps is fixed."""
    steps: int | None = None
    """Number of optimizer steps, instead of as many as fit into --minutes."""
    batch_size: int = 16
    """Windows in a batch, each as long as the model's context."""
    learning_rate: float = 1e-3
    """The highest learning rate, reached after the warm-up."""
    final_learning_rate: float = 1e-4
    """The learning rate at the last step, reached along a cosine."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises to its highest."""
    weight_decay: float = 0.1
    """AdamW's, on matrices only: biases and norms are never decayed."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    max_grad_norm: float = 1.0
    """Gradients longer than this, all together, are scaled down to it."""
    num_evaluations: int = 10
    """How often to evaluate and save between the first step and the last, evenly spread, the last included."""
    validation_fraction: float = 0.1
    """Share of the tokens, from the end, that is held out to validate on."""
    max_validation_tokens: int = 131_072
    """Most tokens to validate on, from the start of the held-out part."""
    seed: int = 123
    """Fixes the order of the batches and the dropout."""
    device: DeviceName = "auto"
    """Where to train; auto takes cuda, then mps, then cpu."""
    dtype: DtypeName = "auto"
    """What matmuls compute in; auto takes bfloat16 where the hardware multiplies it faster."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check, allowed = _ALLOWED.get(field.name, (None, ""))
            value = getattr(self, field.name)
            if check is not None and not check(value):
                raise ConfigError(f"{field.name} is {value!r}; it must be {allowed}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "minutes": (lambda value: 0 < value < float("inf"), "above 0"),
    "steps": (lambda value: value is None or _is_count(value), "a whole number from 1 up, or None"),
    "batch_size": (_is_count, "a whole number from 1 up"),
    "learning_rate": (lambda value: 0 < value < float("inf"), "above 0"),
    "final_learning_rate": (lambda value: 0 <= value < float("inf"), "0 or above"),
    "warmup_steps": (lambda value: value == 0 or _is_count(value), "a whole number from 0 up"),
    "weight_decay": (lambda value: 0 <= value < float("inf"), "0 or above"),
    "beta1": (lambda value: 0 <= value < 1, "in 0 <= beta1 < 1"),
    "beta2": (lambda value: 0 <= value < 1, "in 0 <= beta2 < 1"),
    "max_grad_norm": (lambda value: value > 0, "above 0"),
    "num_evaluations": (_is_count, "a whole number from 1 up"),
    "validation_fraction": (lambda value: 0 < value < 1, "between 0 and 1"),
    "max_validation_tokens": (_is_count, "a whole number from 1 up"),
    "device": (lambda value: value in ("auto", "cpu", "cuda", "mps"), "auto, cpu, cuda or mps"),
    "dtype": (lambda value: value in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
}
