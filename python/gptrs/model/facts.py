"""What a model is: the ids it knows, the tokens it sees, where and which its weights are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.model.segment_cache import check_most_tokens

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By a number's bytes."""

NUM_SAMPLES = 64
NO_END = 2**40
"""The context length of a model with a memory: more tokens than anybody generates."""


def context_length_of(model: Any, asked: int | None) -> int:
    """Most tokens that a model sees: its own number, or as `asked`; NO_END where it has a memory.

    A GPTModel whose positions have no end may be asked for more than its own number, others for
    less only. What is too much for a model of transformers is cut to its own number.

    Raises:
        ConfigError: it does not say, or fewer than 1 were asked for, or more than a GPTModel takes.
    """
    if isinstance(model, GPTModel):
        if asked is None:
            return NO_END if model.cfg.memory_length else model.cfg.context_length
        check_most_tokens(model.cfg, "context_length", asked)
        return asked
    own = _of_config(model, "max_position_embeddings")
    if asked is not None and asked < 1:
        raise ConfigError(f"context_length is at least 1, found {asked}")
    if own is None and asked is None:
        raise ConfigError(
            f"context_length is needed for a {type(model).__name__}: it does not say how many "
            "tokens it sees"
        )
    return min(known for known in (own, asked) if known is not None)


def configured_vocab_size(model: Any) -> int | None:
    """How many ids the configuration of a model of transformers has; None if it does not say."""
    return _of_config(model, "vocab_size")


def device_of(model: object) -> torch.device:
    """Where a model's parameters are; the CPU if it has none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def weights_version(model: object) -> object:
    """Compares unequal after a weight was replaced, moved or written to.

    What is written through `parameter.data` nobody counts: it is seen if it is among the samples.
    """
    if not isinstance(model, nn.Module):
        return None
    weights = list(model.parameters())
    places = [(id(w), w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
    return places, [tuple(w.shape) for w in weights], samples_of(weights).tobytes()


def samples_of(tensors: Iterable[Tensor], *, every_row: bool = False) -> NDArray[Any]:
    """The bits of some numbers of each, some 64: which takes microseconds.

    Args:
        every_row: all of a vector, and of every row of a matrix one number, of neighbours in
            different columns. Takes a third of the time in which all would be read.
    """
    return together(sample_views(tensors, every_row=every_row))


def sample_views(tensors: Iterable[Tensor], *, every_row: bool = False) -> list[NDArray[Any]]:
    """As `samples_of`, but a CPU's as they lie in memory, to be looked at again."""
    views = []
    for tensor in filter(_lies_plainly, tensors):
        bits = tensor.detach().reshape(-1).view(_BITS[tensor.element_size()])
        # One less than a row's length comes into every row, each time a column further left.
        of_rows = tensor.shape[-1] - 1 if tensor.dim() > 1 else 1
        step = max(1, of_rows if every_row else len(bits) // NUM_SAMPLES)
        if tensor.device.type != "cpu":
            bits, step = bits[::step].cpu(), 1
        # NumPy has no threads that a forked child would wait for.
        views.append(np.from_dlpack(bits)[::step])
    return views


def together(samples: list[NDArray[Any]]) -> NDArray[Any]:
    """A copy of them all, one behind the other."""
    return np.concatenate(samples) if samples else np.empty(0, np.int32)


def _lies_plainly(tensor: Tensor) -> bool:
    """Whether its numbers are there, one after the other."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and tensor.is_contiguous()
        and tensor.element_size() in _BITS
        and tensor.numel() > 0
    )


def _of_config(model: Any, name: str) -> int | None:
    """A number of transformers' configuration; the text model's, where there are several."""
    config = getattr(model, "config", None)
    get_text_config = getattr(config, "get_text_config", None)
    value = getattr(get_text_config() if get_text_config else config, name, None)
    return value if isinstance(value, int) else None
