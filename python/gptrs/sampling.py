"""Sampling settings, and the Rust sampler on its own: logits in, token ids out. Needs no torch.

logits ─► temperature ─► top-k ─► top-p ─► one draw by counter (seed, sequence, position)
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from gptrs import _core
from gptrs.errors import ConfigError, GenerationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next token is chosen.

    Raises:
        ConfigError: a setting is out of its range.
    """

    temperature: float = 1.0
    """Divides the logits. 0 takes the most probable token, the lowest id on a tie."""
    top_k: int | None = None
    """Keep the k largest logits, and what ties with the k-th. None: all."""
    top_p: float | None = None
    """Keep the most probable tokens until their probabilities sum to this. None: all."""
    seed: int | None = None
    """0 to 2^64 - 1; the same seed draws the same tokens. None: fresh entropy."""

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, Real)
        if self.top_k is not None:
            _check_number("top_k", self.top_k, Integral)
        if self.top_p is not None:
            _check_number("top_p", self.top_p, Real)
        if self.seed is not None:
            check_seed(self.seed)
        _core.Sampler(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


class Sampler:
    """Draws a token id for every row of logits.

    Rows are the sequences 0..B-1 and each call is the next position, unless `sequences` and
    `positions` say otherwise. The draw depends on (seed, sequence, position) and the row alone.

    >>> Sampler(SamplingConfig(temperature=0.0))([[0.1, 2.0, 0.3]])
    array([1])
    """

    def __init__(self, config: SamplingConfig | None = None) -> None:
        self.config = config or SamplingConfig()
        self.seed = fresh_seed() if self.config.seed is None else self.config.seed
        self._next_position = 0
        self._sampler = _core.Sampler(
            temperature=self.config.temperature, top_k=self.config.top_k, top_p=self.config.top_p
        )

    def __call__(
        self,
        logits: ArrayLike,
        *,
        sequences: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> NDArray[np.int64]:
        """Token ids, int64 [B], for logits [B, V], computed in float32.

        Raises:
            GenerationError: logits are not [B, V], or a row has NaN, inf, or nothing but -inf.
        """
        import numpy as np

        rows: NDArray[Any] = np.ascontiguousarray(logits, dtype=np.float32)
        if rows.ndim != 2:
            raise GenerationError(f"logits have shape {list(rows.shape)}, expected [B, V]")
        batch_size = len(rows)
        if sequences is None:
            sequences = range(batch_size)
        if positions is None:
            positions = [self._next_position] * batch_size
            self._next_position += 1
        return self._sampler.sample(
            rows,
            np.full(batch_size, self.seed, dtype=np.uint64),
            np.array(sequences, dtype=np.uint64),
            np.array(positions, dtype=np.uint64),
        )


def check_seed(seed: object) -> int:
    """`seed`, if it is an int of 64 bits without a sign.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**64:
        raise ConfigError(f"a seed is an int from 0 to 2^64 - 1, found {seed!r}")
    return int(seed)


def fresh_seed() -> int:
    """A seed from the system's entropy."""
    return secrets.randbits(64)


def _check_number(name: str, value: object, kind: type[Real] | type[Integral]) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a number" if kind is Real else "a number without a fraction"
        raise ConfigError(f"{name} is {what}, found {value!r}")
