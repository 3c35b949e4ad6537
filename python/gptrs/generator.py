"""`Generator`: completions of prompts of any length, at once or as a stream.

    prompts ─► ids ─► Rust sampling loop ◄─► engine (PyTorch) ; ids ─► text

A call is one call into Rust for all new tokens; a stream is the same loop, a step a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from gptrs import _core
from gptrs.engines import Model
from gptrs.errors import ConfigError, GenerationError
from gptrs.generation import start_loop
from gptrs.model import GPTModel
from gptrs.sampling import SamplingConfig, check_seed, fresh_seed
from gptrs.stream_decoder import StreamDecoder
from gptrs.tokenizer import END_OF_TEXT, end_of_text_id, get_tokenizer

Prompt = str | Sequence[int] | Tensor
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What one sequence got, without its prompt and without the token that stopped it."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    """"stop": the end-of-text token was drawn. "length": max_new_tokens were."""
    seed: int
    """Draws the same tokens again, from the same prompt at the same place."""


class StreamOptions(TypedDict, total=False):
    """Keyword arguments of `Generator.stream`; see `Generator.__call__`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | Sequence[int] | None
    eos_id: int | Literal["auto"] | None


class Generator:
    """Continues prompts with a model.

    >>> gen = Generator(model)
    >>> gen("Hello, I am", 20, temperature=0.8, top_k=50, seed=1)[0].text

    Args:
        model: a GPTModel (with a KV cache where that computes the same), or any callable from ids,
            int64 [B, T], to logits [B, T, V].
        tokenizer: GPT-2's if None.
        context_length: most tokens the model sees; a GPTModel knows its own.
    Raises:
        ConfigError: the model does not say its context_length.
    """

    def __init__(
        self, model: Model, tokenizer: Any = None, *, context_length: int | None = None
    ) -> None:
        self.model = model
        self.tokenizer = get_tokenizer("gpt2") if tokenizer is None else tokenizer
        if context_length is None:
            if not isinstance(model, GPTModel):
                raise ConfigError(
                    f"context_length is needed for a {type(model).__name__}: it does not say how "
                    "many tokens it sees"
                )
            context_length = model.cfg.context_length
        self.context_length = context_length

    def __call__(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        eos_id: int | Literal["auto"] | None = "auto",
        num_samples: int = 1,
    ) -> list[Completion]:
        """Completions of one prompt or many, `num_samples` each, prompt after prompt.

        Args:
            prompts: a text, a sequence of ids, or a list of these; lengths may differ.
            max_new_tokens: how many tokens a sequence gets at most. Past the context the model
                sees the newest context_length tokens.
            temperature, top_k, top_p: see SamplingConfig.
            seed: one for all, or one a prompt. Sequence number and position go into each draw, so a
                sequence's tokens do not depend on its neighbours.
            eos_id: ends a sequence. "auto": end-of-text, if the tokenizer has it; None: nothing.
        Raises:
            ConfigError: a setting is out of its range.
            GenerationError: an empty prompt, or logits that nothing can be drawn from.
            TokenIdError: a prompt has an id outside the vocabulary.
        """
        run, seeds = self._start(
            prompts,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            eos_id=eos_id,
            num_samples=num_samples,
        )
        with _evaluating(self.model):
            results = run.run()
        return [
            Completion(self.tokenizer.decode(tokens), tokens, reason, seed)
            for (tokens, reason), seed in zip(results, seeds, strict=True)
        ]

    @overload
    def stream(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, prompts: str, max_new_tokens: int, **options: Unpack[StreamOptions]
    ) -> Iterator[str]: ...
    @overload
    def stream(
        self,
        prompts: Sequence[Prompt] | Tensor,
        max_new_tokens: int,
        **options: Unpack[StreamOptions],
    ) -> Iterator[tuple[int, str]]: ...
    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int,
        **options: Unpack[StreamOptions],
    ) -> Iterator[str] | Iterator[tuple[int, str]]:
        """The texts that a call would give, piece by piece, as soon as whole characters are there.

        Yields pieces of text for a single text, (prompt number, piece) otherwise. Options are those
        of a call, but for num_samples; they are checked at once. Closing the iterator ends the run.
        """
        run, seeds = self._start(prompts, max_new_tokens, **options)
        pieces = self._pieces(run, len(seeds))
        return (piece for _, piece in pieces) if isinstance(prompts, str) else pieces

    def _pieces(self, run: _core.Generation, num_sequences: int) -> Iterator[tuple[int, str]]:
        texts = [StreamDecoder(self.tokenizer) for _ in range(num_sequences)]
        while True:
            with _evaluating(self.model):
                events = run.step()
            if not events:
                return
            for index, token, reason in events:
                piece = "" if token is None else texts[index].push(token)
                if reason is not None:
                    piece += texts[index].finish()
                if piece:
                    yield index, piece

    def _start(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int,
        *,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        eos_id: int | Literal["auto"] | None = "auto",
    ) -> tuple[_core.Generation, list[int]]:
        """The loop, ready to run, and the seed of each of its sequences, prompt-major."""
        if num_samples < 1:
            raise ConfigError(f"num_samples is at least 1, found {num_samples}")
        many: Any = prompts if _has_many(prompts) else [prompts]
        sequences = [ids for ids in map(self._ids, many) for _ in range(num_samples)]
        seeds = _seeds(seed, len(sequences), num_samples)
        if eos_id == "auto":
            eos_id = end_of_text_id(self.tokenizer)
        # Inside: whether dropout is off decides whether a cache may be used.
        with _evaluating(self.model):
            run = start_loop(
                self.model,
                sequences,
                SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p),
                seeds=seeds,
                max_new_tokens=max_new_tokens,
                context_size=self.context_length,
                eos_id=eos_id,
                device=_device(self.model),
            )
        return run, seeds

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer.encode(prompt, allowed_special={END_OF_TEXT})
            return ids
        values = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
        if not all(isinstance(value, Integral) for value in values):
            raise GenerationError(f"a prompt is a text or a sequence of ids, found {prompt!r}")
        return values


def _seeds(seed: int | Sequence[int] | None, num_sequences: int, num_samples: int) -> list[int]:
    """One seed a sequence."""
    if seed is None:
        return [fresh_seed()] * num_sequences
    if not isinstance(seed, Sequence):
        return [check_seed(seed)] * num_sequences
    num_prompts = num_sequences // num_samples
    if len(seed) != num_prompts:
        raise ConfigError(f"there are {len(seed)} seeds for {num_prompts} prompts")
    return [check_seed(s) for s in seed for _ in range(num_samples)]


def _has_many(prompts: Any) -> bool:
    """Whether this is a list of prompts, not a text or one prompt's ids."""
    if isinstance(prompts, str):
        return False
    if hasattr(prompts, "ndim"):
        return bool(prompts.ndim > 1)
    return len(prompts) == 0 or not isinstance(prompts[0], Integral)


def _device(model: Model) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Dropout off for the duration; every submodule gets its own mode back."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
