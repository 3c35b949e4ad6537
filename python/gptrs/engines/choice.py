"""Which engine runs a model: the one that computes least, and still what calling the model would.

GPTModel, on a CPU ────► NativeEngine          Rust, where all layers are stock
  else ────────────────► TorchEngine           a KV cache, fused where its layers are stock
  with memory_length ──► SegmentEngine         a cache whose rows have no end
transformers' models ──► TransformersEngine    a KV cache
anything else ─────────► PlainEngine           the whole window at every step
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

import torch
from torch import nn

from gptrs.devices import choose_precision
from gptrs.engines.engine import Answer, Choose, Engine, Model, PlainEngine
from gptrs.engines.native_engine import NativeEngine
from gptrs.engines.native_weights import why_not_native
from gptrs.engines.segment_engine import SegmentEngine
from gptrs.engines.torch_engine import TorchEngine, why_no_cache
from gptrs.engines.vocabulary import vocab_size_of
from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.sampling.requests import EngineName

__all__ = [
    "Answer",
    "Choose",
    "Engine",
    "Model",
    "NativeEngine",
    "PlainEngine",
    "TorchEngine",
    "can_cache",
    "check_engine",
    "make_engine",
]

INT8 = ("int8", torch.int8)
"""The dtype that only the native engine has."""


class _Options(TypedDict):
    """What all of PyTorch's engines take."""

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
    engine: EngineName = "auto",
    dtype: torch.dtype | str | None = None,
    int8_file: Path | None = None,
    compile: bool = False,  # noqa: A002  # torch's name
    choose: Choose | None = None,
    candidates: int | None = None,
    former: Engine | None = None,
) -> Engine:
    """The engine for a model, as the model is now.

    Args:
        slots: sequences at once.
        context_size: the model sees this many of the newest tokens.
        prefill_tokens: most tokens of prompts in a call.
        engine: see EngineName.
        dtype: what is computed in, also "float32", "bfloat16" or "auto" (what the device likes);
            None: the weights' own. "int8": the native engine, with a byte a weight.
        int8_file: where the bytes are kept: mapped if the file is there, else written.
        compile: let `torch.compile` translate the step, where the engine has one of its own.
        choose: draws in place of the Rust sampler.
        candidates: on a GPU, how many of a row's largest logits the draws need; None: all.
        former: one that was made for this model with these settings, to be given again if it fits:
            a small model makes ten tokens in the time that an engine takes.
    Raises:
        ConfigError: context_size is below 1, an unknown engine or dtype, a GPTModel that gives
            another number of logits than it reads ids, or the native engine is asked for and
            cannot run this: the message says why.
        CheckpointError: `int8_file` is of another model, damaged, or cannot be written.
        GenerationError: there is no memory for the cache.
    """
    check_engine(engine)
    if context_size < 1:
        raise ConfigError(f"context_size is at least 1, found {context_size}")
    device, slots = _device(model), max(slots, 1)
    is_int8 = dtype in INT8
    if int8_file is not None and not is_int8:
        raise ConfigError(f'int8_file is for dtype="int8", found dtype={dtype!r}')
    if isinstance(dtype, str) and not is_int8:
        dtype = choose_precision(dtype, device).dtype
    why_torch = 'engine="torch" was asked for'
    if engine != "torch":
        own_dtype = None if is_int8 else cast("torch.dtype | None", dtype)
        reason = _why_torch(model, own_dtype, compile=compile, choose=choose)
        if reason is None:
            if isinstance(former, NativeEngine) and former.fits(
                slots=slots, context_size=context_size, int8=is_int8
            ):
                return former
            return NativeEngine(
                cast(GPTModel, model),
                slots=slots,
                context_size=context_size,
                prefill_tokens=prefill_tokens,
                int8=is_int8,
                int8_file=int8_file,
            )
        why_torch = reason
    if is_int8 or engine == "native":
        asked = 'dtype="int8"' if is_int8 else 'engine="native"'
        raise ConfigError(f"{asked}: the native engine cannot run this ({why_torch})")
    options = _Options(
        slots=slots,
        prefill_tokens=prefill_tokens,
        dtype=cast("torch.dtype | None", dtype),
        choose=choose,
        candidates=candidates,
    )
    made = _torch_engine(model, context_size, device, options, compile=compile)
    if engine == "auto" and isinstance(made, TorchEngine) and device.type == "cpu":
        made.name += f": {why_torch}"
    return made


def check_engine(name: str) -> None:
    """Raises ConfigError unless there is an engine of this name."""
    if name not in get_args(EngineName):
        raise ConfigError(f'engine is "auto", "native" or "torch", found {name!r}')


def can_cache(model: object) -> bool:
    """Whether a GPTModel is run with a cache."""
    return isinstance(model, GPTModel) and why_no_cache(model) is None


def _why_torch(
    model: Model,
    dtype: torch.dtype | None,
    *,
    compile: bool,  # noqa: A002
    choose: Choose | None,
) -> str | None:
    """Why a run with these settings is PyTorch's, or None where Rust computes the same."""
    if choose is not None:
        return "PyTorch draws"
    if compile:
        return "compile is for PyTorch's step"
    if not isinstance(model, nn.Module):
        return "it is no GPTModel"
    reason = why_not_native(model)
    if reason is None and dtype is not None:
        own = cast(GPTModel, model).tok_emb.weight.dtype
        if dtype != own:
            reason = f"its weights are {_short(own)}, not {_short(dtype)}"
    return reason


def _torch_engine(
    model: Model,
    context_size: int,
    device: torch.device,
    options: _Options,
    *,
    compile: bool,  # noqa: A002
) -> Engine:
    """The engine that PyTorch computes for."""
    name = "torch"
    reason: str | None = None
    vocab_size: int | None = None
    if isinstance(model, GPTModel):
        context_size = min(context_size, model.cfg.max_tokens or context_size)
        vocab_size = vocab_size_of(model)
        reason = why_no_cache(model)
        if reason is None:
            kind = SegmentEngine if model.cfg.memory_length else TorchEngine
            return kind(model, context_size=context_size, compile=compile, **options)
        if model.cfg.memory_length:
            # A memory is a cache: without one there is a window.
            context_size = min(context_size, model.cfg.context_length)
    elif _is_of_transformers(model):
        from gptrs.engines import transformers_engine  # Its package is optional.

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


def _is_of_transformers(model: Any) -> bool:
    # Whoever has such a model has imported its package.
    package = sys.modules.get("transformers")
    return package is not None and isinstance(model, package.PreTrainedModel)


def _device(model: Model) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
