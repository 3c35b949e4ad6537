"""The Rust sampler on its own: logits in, token ids out. Needs no torch.

logits ─► bias, penalties, bans ─► temperature ─► top-k ─► top-p ─► min-p ─► typical ─► one draw

The draw is by counter (seed, sequence, position), so a sequence gets the same tokens alone or in
any batch, on any number of threads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Integral
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from gptrs import _core
from gptrs.errors import ConfigError, GenerationError
from gptrs.sampling.config import SamplingConfig as SamplingConfig
from gptrs.sampling.config import check_seed as check_seed
from gptrs.sampling.config import fresh_seed as fresh_seed
from gptrs.sampling.config import token_ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    History = Sequence[int] | tuple[Sequence[int], Sequence[int]]
    """A sequence's output so far, or its prompt and its output; ids in a list, array or tensor."""


_PLAIN = SamplingConfig()
_LOOKS_BACK = (
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_new_tokens",
)
"""The settings that ask for a history, unless they are as in `_PLAIN`."""


class LogProbs(NamedTuple):
    """Natural logarithms of probabilities: arrays, or tensors if the logits were one."""

    chosen: Any
    """The chosen tokens', float32 [B]."""
    top_ids: Any
    """The likeliest tokens, int64 [B, top], the lowest id first on a tie."""
    top: Any
    """Theirs, float32 [B, top]."""


class Sampler:
    """Draws a token id for every row of logits.

    Rows are the sequences 0..B-1 and each call is the next position, counted from 0, unless
    `sequences` and `positions` say otherwise. The draw depends on (seed, sequence, position), the
    row and its history alone. Threads may share a sampler: their calls take turns. Before its
    first call it can be copied and pickled, and later if each was given `positions` and `history`.

    >>> Sampler(SamplingConfig(temperature=0.0))([[0.1, 2.0, 0.3]])
    array([1])

    Args:
        config: one for all rows, or a list of one a row. `seed` has the seeds they stand for.
        threads: the most that share a large batch; None is one for each processor. The tokens are
            the same.
    """

    def __init__(
        self,
        config: SamplingConfig | Sequence[SamplingConfig] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        configs = [SamplingConfig()] if config is None else _as_list(config)
        seeds = [fresh_seed() if c.seed is None else int(c.seed) for c in configs]
        self.config = configs[0] if config is None else config
        self.seed: int | list[int] = seeds if isinstance(config, Sequence) else seeds[0]
        self._looks_back = any(map(_looks_back, configs))
        self._keeps: str | None = None
        self._threads = threads
        self._core = self._new_core()

    def _new_core(self) -> _core.Sampler:
        seeds = [self.seed] if isinstance(self.seed, int) else self.seed
        configs = [config.to_core() for config in _as_list(self.config)]
        return _core.Sampler(configs, seeds, threads=self._threads)

    def __getstate__(self) -> dict[str, Any]:
        if self._keeps is not None:
            raise GenerationError(
                f"this sampler has drawn without {self._keeps}, and what it keeps of that cannot "
                "be copied: copy it before its first call, or give each call positions and history"
            )
        return {name: value for name, value in self.__dict__.items() if name != "_core"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._core = self._new_core()

    @overload
    def __call__(
        self,
        logits: Tensor,
        *,
        sequences: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        history: Sequence[History] | None = None,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        logits: ArrayLike,
        *,
        sequences: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        history: Sequence[History] | None = None,
    ) -> NDArray[np.int64]: ...
    def __call__(
        self,
        logits: ArrayLike | Tensor,
        *,
        sequences: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        history: Sequence[History] | None = None,
    ) -> NDArray[np.int64] | Tensor:
        """Token ids, int64 [B], for logits [B, V]: an array, or a tensor if logits are one.

        Args:
            logits: float32, float16 or bfloat16 are read in place, also where they are
                `logits[:, -1]`; other numbers are made float32. A tensor is on the CPU.
            sequences, positions: [B], each 0 to 2^64 - 1: the draws' counters.
            history: what each sequence has had: its output, or (prompt, output). The repetition
                penalty, n-grams and bad words look at both, the others at the output. None: the
                tokens that this sampler drew for that sequence (kept only if a setting asks).
        Raises:
            GenerationError: logits are not [B, V], or a row, whose number it says, has NaN, inf, or
                no token that may be drawn.
            TokenIdError: the history has an id outside the vocabulary.
        """
        rows, torch = _readable(logits)
        ids = self._core.sample(
            rows,
            sequences=_counters("sequences", sequences),
            positions=_counters("positions", positions),
            history=_histories(history),
        )
        if positions is None:
            self._keeps = "positions"
        elif history is None and self._looks_back:
            self._keeps = "history"
        return ids if torch is None else torch.from_numpy(ids)

    @overload
    def probabilities(
        self,
        logits: Tensor,
        *,
        sequences: Sequence[int] | None = None,
        history: Sequence[History] | None = None,
    ) -> Tensor: ...
    @overload
    def probabilities(
        self,
        logits: ArrayLike,
        *,
        sequences: Sequence[int] | None = None,
        history: Sequence[History] | None = None,
    ) -> NDArray[np.float32]: ...
    def probabilities(
        self,
        logits: ArrayLike | Tensor,
        *,
        sequences: Sequence[int] | None = None,
        history: Sequence[History] | None = None,
    ) -> NDArray[np.float32] | Tensor:
        """The distributions that a call would draw from: float32 [B, V], 0 for what is left out.

        Draws nothing: the next call's position stays what it is. Arguments and errors are those of
        a call.
        """
        rows, torch = _readable(logits)
        probabilities = self._core.probabilities(
            rows, sequences=_counters("sequences", sequences), history=_histories(history)
        )
        return probabilities if torch is None else torch.from_numpy(probabilities)

    def log_probs(
        self, logits: ArrayLike | Tensor, ids: Sequence[int] | Tensor, *, top: int = 0
    ) -> LogProbs:
        """Log-probabilities of `ids`, one a row of logits [B, V], and of the `top` likeliest.

        They are the model's own, before any setting; NaN where a row has NaN or inf.

        Raises:
            GenerationError: logits are not [B, V], or ids not [B].
            TokenIdError: an id is outside the vocabulary.
        """
        rows, torch = _readable(logits)
        found = self._core.log_probs(rows, token_ids("ids", ids, GenerationError), top=top)
        return LogProbs(*(found if torch is None else map(torch.from_numpy, found)))


def _as_list(config: object) -> list[SamplingConfig]:
    configs = [config] if isinstance(config, SamplingConfig) else config
    if not isinstance(configs, Sequence) or not all(
        isinstance(one, SamplingConfig) for one in configs
    ):
        raise ConfigError(f"config is a SamplingConfig or a list of them, found {config!r}")
    return list(configs)


def _looks_back(config: SamplingConfig) -> bool:
    """Whether a draw may depend on the tokens before it."""
    return any(getattr(config, name) != getattr(_PLAIN, name) for name in _LOOKS_BACK)


def _readable(logits: Any) -> tuple[Any, ModuleType | None]:
    """Logits as the Rust half reads them, and torch if they are a tensor."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(logits, torch.Tensor):
        if logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            logits = logits.float()
        return (logits if logits.ndim < 2 or logits.stride(-1) == 1 else logits.contiguous()), torch
    import numpy as np

    rows = np.asarray(logits)
    if rows.dtype not in (np.float32, np.float16):
        if rows.dtype.kind in "cOSUMm":
            raise GenerationError(f"logits are real numbers, found {rows.dtype}")
        rows = rows.astype(np.float32)
    in_place = rows.flags.aligned and rows.strides[-1:] == (rows.itemsize,)
    return (rows if in_place else np.array(rows, order="C")), None


def _counters(name: str, values: Any) -> list[int] | None:
    if values is None:
        return None
    numbers: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    for number in numbers:
        if not isinstance(number, Integral) or not 0 <= int(number) < 2**64:
            raise GenerationError(f"{name} are ints from 0 to 2^64 - 1, found {number!r}")
    return numbers


def _histories(history: Any) -> list[tuple[list[int], list[int]]] | None:
    """(prompt, output) of each row."""
    return None if history is None else [_prompt_and_output(tokens) for tokens in history]


def _prompt_and_output(tokens: Any) -> tuple[list[int], list[int]]:
    is_pair = isinstance(tokens, tuple) and len(tokens) == 2 and not isinstance(tokens[0], Integral)
    prompt, output = tokens if is_pair else ((), tokens)
    error = GenerationError
    return token_ids("history", prompt, error), token_ids("history", output, error)
