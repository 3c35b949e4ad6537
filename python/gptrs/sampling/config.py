"""Sampling settings: what each does, and what it may be. Needs neither torch nor NumPy."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import UnionType
from typing import Any, Final

from gptrs import _core
from gptrs.errors import ConfigError, GptrsError

# Beyond any vocabulary and any length: larger numbers mean the same and need not fit 64 bits.
_MOST: Final = 2**62

_KINDS: Final = {
    "repetition_penalty": Real,
    "frequency_penalty": Real,
    "presence_penalty": Real,
    "no_repeat_ngram_size": Integral | None,
    "min_new_tokens": Integral,
    "temperature": Real,
    "top_k": Integral | None,
    "top_p": Real | None,
    "min_p": Real | None,
    "typical_p": Real | None,
}
"""What the settings that are numbers may be; the Rust half checks their ranges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next token is chosen. The defaults change nothing: the model's own distribution.

    The settings work in the order in which they are listed here. From top_k on, each leaves at
    least one token of those that the ones before it left.

    Raises:
        ConfigError: a setting is out of its range.
    """

    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    """Token id to what is added to its logit; -inf bans it."""
    repetition_penalty: float = 1.0
    """Divides the logits above 0, and multiplies the others, of the tokens in prompt and output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it is in the output."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of the tokens in the output."""
    no_repeat_ngram_size: int | None = None
    """No run of this many tokens comes twice in prompt and output. None: it may."""
    bad_words_ids: Sequence[Sequence[int]] | None = None
    """Runs of token ids that never come: the last of each is banned after the others. As in
    transformers, one of `eos_token_id` alone is not banned."""
    min_new_tokens: int = 0
    """`eos_token_id` is banned until the output has this many tokens."""
    eos_token_id: int | Sequence[int] | None = None
    """The tokens that `min_new_tokens` bans."""
    temperature: float = 1.0
    """Divides the logits. 0 takes the largest, the lowest id on a tie, and nothing is drawn."""
    top_k: int | None = None
    """Keep the k largest logits, and what ties with the k-th. None: all."""
    top_p: float | None = None
    """Keep the most probable tokens until their probabilities sum to this. None: all."""
    min_p: float | None = None
    """Keep the tokens with at least this share of the largest probability. None: all."""
    typical_p: float | None = None
    """Keep the tokens whose information is nearest to the distribution's entropy, until their
    probabilities sum to this (Meister et al. 2022). None: all."""
    seed: int | None = None
    """0 to 2^64 - 1; the same seed draws the same tokens. None: fresh entropy."""

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            _check_number(name, getattr(self, name), kind)
        if self.seed is not None:
            check_seed(self.seed)
        if self.logit_bias is not None:
            self._set("logit_bias", _biases(self.logit_bias))
        if self.bad_words_ids is not None:
            self._set("bad_words_ids", _words(self.bad_words_ids))
        if self.eos_token_id is not None and not isinstance(self.eos_token_id, Integral):
            self._set("eos_token_id", tuple(token_ids("eos_token_id", self.eos_token_id)))
        self.to_core()

    def _set(self, name: str, value: object) -> None:
        """Puts a copy of our own where the caller's was."""
        object.__setattr__(self, name, value)

    def to_core(self) -> _core.SamplingConfig:
        """The settings, but for the seed, as the Rust half takes them.

        Raises:
            ConfigError: a setting is out of its range.
        """
        ends = self.eos_token_id
        end_ids: Any = () if ends is None else (ends,) if isinstance(ends, Integral) else ends
        return _core.SamplingConfig(
            temperature=self.temperature,
            top_k=_bounded(self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            no_repeat_ngram_size=_bounded(self.no_repeat_ngram_size),
            logit_bias=list((self.logit_bias or {}).items()),
            bad_words=self.bad_words_ids or (),
            min_new_tokens=_bounded(self.min_new_tokens),
            end_ids=end_ids,
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


def token_ids(name: str, ids: Any, error: type[GptrsError] = ConfigError) -> list[int]:
    """Token ids of a list, an array or a tensor."""
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise error(f"{name} is a sequence of token ids, found {ids!r}")
    values = list(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise error(f"{name} has token ids, found {value!r}")
    return [_bounded(value) for value in values]


def _check_number(name: str, value: object, kind: type | UnionType) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a number" if isinstance(0.5, kind) else "a number without a fraction"
        raise ConfigError(f"{name} is {what}, found {value!r}")


def _bounded(value: Any) -> Any:
    return None if value is None else max(-_MOST, min(int(value), _MOST))


def _biases(logit_bias: object) -> dict[int, float]:
    if not isinstance(logit_bias, Mapping):
        raise ConfigError(f"logit_bias is a dict of token ids and numbers, found {logit_bias!r}")
    ids = token_ids("logit_bias", logit_bias)
    for bias in logit_bias.values():
        _check_number("a logit_bias", bias, Real)
    return dict(zip(ids, map(float, logit_bias.values()), strict=True))


def _words(bad_words_ids: object) -> tuple[tuple[int, ...], ...]:
    if isinstance(bad_words_ids, (str, bytes)) or not isinstance(bad_words_ids, Iterable):
        raise ConfigError(f"bad_words_ids is a list of lists of token ids, found {bad_words_ids!r}")
    return tuple(tuple(token_ids("bad_words_ids", word)) for word in bad_words_ids)
