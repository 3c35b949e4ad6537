"""What callers ask of a Generator, checked and spread over sequences, before anything runs.

    prompts + options ─► RequestMaker ─► one Request a sequence ─► `_core.Generation.submit`

Options are named here, once, for calls, streams, submitted prompts and sessions alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, TypeVar

from gptrs import _core
from gptrs.errors import ConfigError
from gptrs.sampling.config import SamplingConfig, check_seed, fresh_seed
from gptrs.sampling.constraints import token_bytes
from gptrs.text.prompts import PromptReader

EngineName = Literal["auto", "native", "torch"]
"""What computes logits: Rust, PyTorch, or Rust on a CPU where it computes what the model does."""
Overflow = Literal["slide", "rebase", "stop"]
T = TypeVar("T")

# Compiled patterns that are kept: compiling one takes longer than using it.
GRAMMARS_KEPT = 32


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen, for all prompts alike; see `SamplingConfig` for each."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram_size: int | None
    logit_bias: Mapping[int, float] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    min_new_tokens: int
    eos_token_id: int | Sequence[int] | None


class Options(SamplingOptions, total=False):
    """What one sequence may be asked for; `Generator.__call__` says what each option means."""

    sampling: SamplingConfig | Sequence[SamplingConfig] | None
    seed: int | Sequence[int] | None
    sequences: Sequence[int] | None
    eos_id: int | Literal["auto"] | None
    stop: str | int | Sequence[str | int] | None
    logprobs: int | None
    choices: Sequence[str] | None
    regex: str | None
    overflow: Overflow


class CallOptions(Options, total=False):
    """What a call may be asked for besides."""

    num_samples: int
    best_of: int | None
    num_beams: int | None
    length_penalty: float
    early_stopping: bool | Literal["never"]
    progress: bool


SAMPLING_NAMES = SamplingOptions.__optional_keys__
OPTION_NAMES = Options.__optional_keys__
CALL_OPTION_NAMES = CallOptions.__optional_keys__


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue."""

    ids: list[int]
    prompt: int
    """The number of its prompt in the call."""
    seed: int
    sequence: int
    sampling: SamplingConfig
    settings: dict[str, Any]
    """The other keyword arguments of `_core.Generation.submit`."""

    @property
    def most_tokens(self) -> int:
        """How long it may become, with its prompt."""
        most: int = len(self.ids) + self.settings["max_new_tokens"]
        return most

    def submit_to(self, generation: _core.Generation) -> int:
        """Lets it wait in a loop; its number there."""
        return generation.submit(
            self.ids, seed=self.seed, sequence=self.sequence, row=self.prompt, **self.settings
        )


class RequestMaker:
    """Makes requests for one model and one tokenizer.

    Args:
        vocab_size: the model's; None if it does not say.
        context_length: most tokens the model sees.
    Raises:
        ConfigError: the tokenizer has ids that the model does not know.
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int | None, context_length: int) -> None:
        self.reader = PromptReader(tokenizer)
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._grammars: dict[tuple[str, ...], _core.Grammar] = {}
        n_vocab = self.reader.n_vocab
        if vocab_size is not None and n_vocab is not None and vocab_size < n_vocab:
            raise ConfigError(
                f"the model has vocab_size {vocab_size}, and the tokenizer has {n_vocab} ids: "
                f"{tokenizer!r}; give the tokenizer that the model was trained with"
            )

    def make(
        self, prompts: Any, max_new_tokens: int, options: Options, *, copies: int = 1
    ) -> list[Request]:
        """`copies` sequences of each prompt, prompt after prompt.

        Raises:
            ConfigError: an option is out of its range, or does not go with another.
            GenerationError: an empty prompt, or one that is no text and no ids.
        """
        rows = self.reader.many(prompts)
        configs = per_prompt("sampling", sampling_of(options), len(rows))
        seeds = _seeds(options.get("seed"), configs)
        sequences = _sequences(options.get("sequences"), len(rows), copies)
        shared = self._shared(max_new_tokens, options)
        completed: dict[int, tuple[SamplingConfig, _core.SamplingConfig]] = {}
        requests: list[Request] = []
        for number, (ids, config, seed) in enumerate(zip(rows, configs, seeds, strict=True)):
            if id(config) not in completed:
                whole = self._completed(config, shared["stop_ids"])
                completed[id(config)] = (whole, whole.to_core())
            sampling, core = completed[id(config)]
            settings = shared | {"sampling": core}
            first = number * copies
            requests += (
                Request(ids, number, seed, sequence, sampling, settings)
                for sequence in sequences[first : first + copies]
            )
        return requests

    def stop_ids(self, options: Options) -> list[int]:
        """The tokens that end a sequence: `eos_id`, and the ids among `stop`."""
        eos_id = options.get("eos_id", "auto")
        if eos_id == "auto":
            eos_id = self.reader.end_of_text
        ids = [] if eos_id is None else [self._stop_id("eos_id", eos_id)]
        return ids + [self._stop_id("stop", s) for s in _stops(options) if not isinstance(s, str)]

    def _shared(self, max_new_tokens: int, options: Options) -> dict[str, Any]:
        """What every sequence of a call has in common, but for the sampling."""
        logprobs = options.get("logprobs")
        return {
            "max_new_tokens": count("max_new_tokens", max_new_tokens, 0),
            "window": self._context_length,
            "overflow": options.get("overflow", "slide"),
            "stop_ids": self.stop_ids(options),
            "stop_strings": self._stop_strings(options),
            "grammar": self._grammar(options),
            "logprobs": None if logprobs is None else count("logprobs", logprobs, 0),
        }

    def _stop_id(self, name: str, value: Any) -> int:
        known = self._vocab_size or 2**32
        if not is_whole(value) or not 0 <= value < known:
            kinds = "a token id" if name == "eos_id" else "a text or a token id"
            raise ConfigError(f"{name} is {kinds} in 0..{known - 1}, found {value!r}")
        return int(value)

    def _stop_strings(self, options: Options) -> _core.StopStrings | None:
        texts = [stop for stop in _stops(options) if isinstance(stop, str)]
        return _core.StopStrings(texts, token_bytes(self.tokenizer)) if texts else None

    def _grammar(self, options: Options) -> _core.Grammar | None:
        choices, regex = options.get("choices"), options.get("regex")
        if choices is not None and regex is not None:
            raise ConfigError("choices and regex exclude each other")
        if regex is not None:
            return self._kept_grammar(("regex", regex))
        if choices is not None:
            if isinstance(choices, str):
                raise ConfigError(f"choices is a list of texts, found {choices!r}")
            return self._kept_grammar(("choices", *choices))
        return None

    def _kept_grammar(self, key: tuple[str, ...]) -> _core.Grammar:
        if (grammar := self._grammars.get(key)) is not None:
            return grammar
        kind, *texts = key
        tokens = token_bytes(self.tokenizer)
        grammar = (
            _core.Grammar.regex(texts[0], tokens)
            if kind == "regex"
            else _core.Grammar.choices(texts, tokens)
        )
        while len(self._grammars) >= GRAMMARS_KEPT:
            self._grammars.pop(next(iter(self._grammars)), None)
        self._grammars[key] = grammar
        return grammar

    def _completed(self, config: SamplingConfig, stop_ids: list[int]) -> SamplingConfig:
        """`config` with what the call knows: the stop tokens, and the ids that are no tokens."""
        changes: dict[str, Any] = {}
        if config.min_new_tokens and config.eos_token_id is None:
            changes["eos_token_id"] = stop_ids
        n_vocab = self.reader.n_vocab
        if self._vocab_size is not None and n_vocab is not None and n_vocab < self._vocab_size:
            # A vocabulary that was padded for speed: there is no text for the ids beyond.
            padding = dict.fromkeys(range(n_vocab, self._vocab_size), float("-inf"))
            changes["logit_bias"] = padding | dict(config.logit_bias or {})
        return replace(config, **changes) if changes else config


def check_names(options: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    """Refuses an option that does not exist, as Python refuses an unknown argument."""
    if unknown := sorted(options.keys() - known):
        raise TypeError(
            f"{what} has no option {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )


def sampling_of(options: Mapping[str, Any]) -> SamplingConfig | Sequence[SamplingConfig]:
    """The settings that were given by name, or as `sampling`, for all prompts or for each."""
    named = {name: options[name] for name in SAMPLING_NAMES & options.keys()}
    sampling = options.get("sampling")
    if sampling is None:
        return SamplingConfig(**named)
    if named:
        raise ConfigError(f"sampling and {min(named)} exclude each other")
    several = [sampling] if isinstance(sampling, SamplingConfig) else list(sampling)
    for config in several:
        if not isinstance(config, SamplingConfig):
            raise ConfigError(f"sampling is a SamplingConfig or a list of them, found {config!r}")
    return sampling if isinstance(sampling, SamplingConfig) else several


def per_prompt(name: str, values: T | Sequence[T], num_prompts: int) -> list[T]:
    """One value a prompt, from one for all or one for each."""
    if not isinstance(values, Sequence):
        return [values] * num_prompts
    if len(values) != num_prompts:
        raise ConfigError(f"there are {len(values)} {name} for {num_prompts} prompts")
    return list(values)


def count(name: str, value: Any, least: int) -> int:
    """`value`, if it is an int of at least `least`.

    Raises:
        ConfigError: it is not.
    """
    if not is_whole(value) or value < least:
        raise ConfigError(f"{name} is at least {least}, found {value!r}")
    return int(value)


def real(name: str, value: Any) -> float:
    """`value`, if it is a finite number.

    Raises:
        ConfigError: it is not.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not abs(float(value)) < float("inf"):
        raise ConfigError(f"{name} is a finite number, found {value!r}")
    return float(value)


def is_whole(value: Any) -> bool:
    """Whether `value` is an int, NumPy's too; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _stops(options: Options) -> list[Any]:
    stop = options.get("stop")
    if stop is None:
        return []
    if isinstance(stop, str) or not isinstance(stop, Sequence):
        return [stop]
    return list(stop)


def _seeds(seed: Any, configs: Sequence[SamplingConfig]) -> list[int]:
    """One a prompt: as asked, else its settings' own, else fresh entropy, the same for all."""
    if seed is None:
        fresh = fresh_seed()
        return [fresh if config.seed is None else config.seed for config in configs]
    # An array is one too, though no Sequence.
    several = seed.tolist() if hasattr(seed, "tolist") else seed
    return [check_seed(s) for s in per_prompt("seeds", several, len(configs))]


def _sequences(sequences: Sequence[int] | None, num_prompts: int, copies: int) -> list[int]:
    expected = num_prompts * copies
    if sequences is None:
        return list(range(expected))
    if len(sequences) != expected:
        raise ConfigError(
            f"there are {len(sequences)} sequences for {num_prompts} prompts with {copies} each"
        )
    return [check_seed(number) for number in sequences]
