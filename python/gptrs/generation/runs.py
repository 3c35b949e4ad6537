"""A run of the sampling loop: an engine of its own, with the model in eval mode while it computes.

Backend ─► start ─► Run: submit ─► run, or step until None ; cancel from any thread
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from gptrs import _core
from gptrs.engines.choice import Engine, Model, NativeEngine, make_engine
from gptrs.errors import GenerationError
from gptrs.generation.completions import Event, Output
from gptrs.model.eval_mode import evaluating, grad_mode_kept
from gptrs.model.facts import device_of, weights_version
from gptrs.sampling.requests import EngineName, Request

PREFILL_TOKENS = 2048
# From here on, whole rows travel as fast.
MOST_CANDIDATES = 1024
MOST_KEPT_BYTES = 64 << 20
"""Keys and values of an engine that is kept for the next call."""


class Run:
    """Sequences that an engine continues together.

    Attributes:
        model: whose engine it is.
        engine: what computes the logits, in words.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine,
        was_training: bool,
        *,
        queue: int | None = None,
        weights: object = None,
    ) -> None:
        self.model = model
        self.engine = engine.name
        self._engine = engine
        self._weights = weights
        self._generation = _core.Generation(engine, prefill_tokens=PREFILL_TOKENS, queue=queue)
        self._was_training = was_training

    def submit(self, request: Request) -> int:
        """Lets a sequence wait for a slot; its number, counted from 0."""
        return request.submit_to(self._generation)

    def run(self) -> Sequence[Output]:
        """Runs all to their ends, in the order in which they were submitted."""
        with evaluating(self.model):
            return grad_mode_kept(self._generation.run)

    def step(self) -> list[Event] | None:
        """One step of all, inside `evaluating`; None once there is nothing left to do."""
        return grad_mode_kept(self._generation.step)

    def evaluating(self) -> AbstractContextManager[object]:
        """Eval mode, unless the model is in it anyway: asking every module takes its time."""
        is_training = isinstance(self.model, nn.Module) and self.model.training
        return evaluating(self.model) if self._was_training or is_training else nullcontext()

    def is_current(self) -> bool:
        """Whether another run would compute the same as this one, which `Backend.start` made."""
        return weights_version(self.model) == self._weights and self._engine.is_current()

    def failed(self) -> list[int]:
        """The sequences that the error of the last step ended."""
        return self._generation.failed()

    def cancel(self, request: int | None = None) -> None:
        """Ends one sequence, or all, at the next step, with what it has."""
        self._generation.cancel(request)


@dataclass(frozen=True, slots=True)
class Backend:
    """How a Generator computes: its model, and what engines are made with.

    Attributes:
        context_length: most tokens the model sees.
        engine_name, dtype, int8_file, compile: see `make_engine`.
        max_batch: most sequences at once.
        is_fixed: somebody asked for `max_batch`: else fewer will do where memory is short.
    """

    model: Model
    context_length: int
    engine_name: EngineName
    dtype: torch.dtype | str | None
    int8_file: Path | None
    compile: bool
    max_batch: int
    is_fixed: bool
    _former: list[NativeEngine] = field(default_factory=list, compare=False)
    """The last run's, if it is small."""

    def engine(
        self,
        slots: int,
        context_size: int,
        *,
        candidates: int | None = None,
        least: int = 1,
        prefill_tokens: int = PREFILL_TOKENS,
        former: Engine | None = None,
    ) -> Any:
        """An engine; to be made inside `evaluating`, since with dropout there is no cache.

        Args:
            least: the fewest slots that will do.
            prefill_tokens: most tokens of prompts in a call.
            former: one that will do if it fits.
        Raises:
            ConfigError: the engine asked for cannot run the model.
            GenerationError: there is no memory for the cache.
        """
        slots = max(least, slots)
        while True:
            try:
                return make_engine(
                    self.model,
                    slots=slots,
                    context_size=max(1, min(context_size, self.context_length)),
                    prefill_tokens=prefill_tokens,
                    engine=self.engine_name,
                    dtype=self.dtype,
                    int8_file=self.int8_file,
                    compile=self.compile,
                    candidates=candidates,
                    former=former,
                )
            except GenerationError:
                if self.is_fixed or slots <= least:
                    raise
            slots = max(least, slots // 2)

    def start(self, slots: int, *, queue: int | None = None) -> Run:
        """A run that sequences may join at any time, each as long as the context."""
        with evaluating(self.model) as was_training:
            engine = self.engine(slots, self.context_length)
            weights = weights_version(self.model)
            return Run(self.model, engine, was_training, queue=queue, weights=weights)

    def start_with(self, requests: Sequence[Request]) -> Run:
        """A run of these requests, with a cache no larger than they need.

        Raises:
            GenerationError, TokenIdError: a prompt that the model cannot go on with.
        """
        slots = min(len(requests), self.max_batch)
        longest = max((request.most_tokens for request in requests), default=1)
        candidates = self._candidates(requests)
        with evaluating(self.model) as was_training:
            engine = self.engine(slots, longest, candidates=candidates, former=self._take_former())
            run = Run(self.model, engine, was_training)
        # Only now that the run has it: another thread would take it, too.
        if isinstance(engine, NativeEngine) and engine.cache_bytes <= MOST_KEPT_BYTES:
            self._former[:] = [engine]
        for request in requests:
            run.submit(request)
        return run

    def _take_former(self) -> Engine | None:
        """The engine of the last run, for nobody else."""
        with suppress(IndexError):
            return self._former.pop()
        return None

    def _candidates(self, requests: Sequence[Request]) -> int | None:
        """How many of the largest logits are enough to draw from; None: not known, or too many.

        Only where logits have a way to go.
        """
        if device_of(self.model).type == "cpu":
            return None
        counts = [_candidates_of(request) for request in requests]
        if any(count is None for count in counts):
            return None
        most = max((count for count in counts if count is not None), default=1)
        return most if most <= MOST_CANDIDATES else None


def _candidates_of(request: Request) -> int | None:
    """The k that a request draws from, if nothing else can change which tokens these are."""
    config, settings = request.sampling, request.settings
    untouched = (
        config.repetition_penalty == 1
        and config.frequency_penalty == 0
        and config.presence_penalty == 0
        and config.no_repeat_ngram_size is None
        and not config.logit_bias
        and not config.bad_words_ids
        and not config.min_new_tokens
        and settings["grammar"] is None
    )
    kept = 1 if config.temperature == 0 else config.top_k
    return max(kept, settings["logprobs"] or 0) if untouched and kept is not None else None


class ActiveRuns:
    """The runs of a Generator that others may cancel; those that ended go by themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: WeakSet[Run] = WeakSet()

    def add(self, run: Run) -> Run:
        """Remembers a run for as long as somebody has it."""
        with self._lock:
            self._runs.add(run)
        return run

    def cancel(self) -> None:
        """Ends all that they run, at their next steps."""
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.cancel()
