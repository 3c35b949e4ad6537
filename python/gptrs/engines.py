"""Which engine runs a model: the one that computes least, and still what calling the model would.

GPTModel ──────────────► TorchEngine           a KV cache, fused where its layers are stock
  with memory_length ──► SegmentEngine         a cache whose rows have no end
transformers' models ──► TransformersEngine    a KV cache
anything else ─────────► PlainEngine           the whole window at every step
"""

from __future__ import annotations

import sys
from typing import Any, TypedDict, cast

import torch
from torch import nn

from gptrs.devices import choose_precision
from gptrs.engine import Answer, Choose, Engine, Model, PlainEngine
from gptrs.errors import ConfigError
from gptrs.model import GPTModel
from gptrs.segment_engine import SegmentEngine
from gptrs.torch_engine import TorchEngine, why_no_cache

__all__ = [
    "Answer",
    "Choose",
    "Engine",
    "Model",
    "PlainEngine",
    "TorchEngine",
    "can_cache",
    "make_engine",
]


class _Options(TypedDict):
    """What all engines take."""

    slots: int
    prefill_tokens: int
    dtype: torch.dtype | None
    choose: Choose | None
    candidates: int | None


def make_engine(
    model: Model,
    *,
    slots: int,
    context_size: int,
    prefill_tokens: int = 2048,
    dtype: torch.dtype | str | None = None,
    compile: bool = False,  # noqa: A002  # torch's name
    choose: Choose | None = None,
    candidates: int | None = None,
) -> Engine:
    """The engine for a model, as the model is now.

    Args:
        slots: sequences at once.
        context_size: the model sees this many of the newest tokens.
        prefill_tokens: most tokens of prompts in a call.
        dtype: what is computed in, also "float32", "bfloat16" or "auto" (what the device likes);
            None: the weights' own.
        compile: let `torch.compile` translate the step, where the engine has one of its own.
        choose: draws in place of the Rust sampler.
        candidates: on a GPU, how many of a row's largest logits the draws need; None: all.
    Raises:
        ConfigError: context_size is below 1, or an unknown dtype.
        GenerationError: there is no memory for the cache.
    """
    if context_size < 1:
        raise ConfigError(f"context_size is at least 1, found {context_size}")
    device = _device(model)
    options = _Options(
        slots=max(slots, 1),
        prefill_tokens=prefill_tokens,
        dtype=choose_precision(dtype, device).dtype if isinstance(dtype, str) else dtype,
        choose=choose,
        candidates=candidates,
    )
    name = "torch"
    reason: str | None = None
    vocab_size: int | None = None
    if isinstance(model, GPTModel):
        context_size = min(context_size, model.cfg.max_tokens or context_size)
        vocab_size = model.cfg.vocab_size
        reason = why_no_cache(model)
        if reason is None:
            kind = SegmentEngine if model.cfg.memory_length else TorchEngine
            return kind(model, context_size=context_size, compile=compile, **options)
        if model.cfg.memory_length:
            # A memory is a cache: without one there is a window.
            context_size = min(context_size, model.cfg.context_length)
    elif _is_of_transformers(model):
        from gptrs import transformers_engine  # Its package is optional.

        theirs = cast(Any, model)
        name, reason = "transformers", transformers_engine.why_no_cache(theirs)
        vocab_size = theirs.config.get_text_config().vocab_size
        if reason is None:
            return transformers_engine.TransformersEngine(
                theirs, context_size=context_size, **options
            )
    return PlainEngine(
        model,
        name=f"{name}, no cache: {reason or 'a callable has none'}",
        context_length=context_size,
        device=device,
        vocab_size=vocab_size,
        **options,
    )


def can_cache(model: object) -> bool:
    """Whether a GPTModel is run with a cache."""
    return isinstance(model, GPTModel) and why_no_cache(model) is None


def _is_of_transformers(model: Any) -> bool:
    # Whoever has such a model has imported its package.
    package = sys.modules.get("transformers")
    return package is not None and isinstance(model, package.PreTrainedModel)


def _device(model: Model) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
