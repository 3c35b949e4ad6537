"""The best of several sequences: by drawing many (`best_of`), or by beam search."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from gptrs import _core
from gptrs.errors import ConfigError
from gptrs.generation.completions import Completion
from gptrs.generation.runs import PREFILL_TOKENS, Backend
from gptrs.model.eval_mode import evaluating, grad_mode_kept
from gptrs.sampling.requests import OPTION_NAMES, CallOptions, RequestMaker, count, real

# A search draws nothing, so what only shapes the draws changes nothing, as with transformers. The
# other settings would change its scores, and are refused.
_OF_DRAWS = frozenset(("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "sequences"))
_UNKNOWN = (OPTION_NAMES | {"best_of"}) - _OF_DRAWS - {"eos_id", "stop", "overflow"}


def best_of(
    completions: list[Completion], drawn: int, wanted: int, *, keep_logprobs: bool
) -> list[Completion]:
    """Of each `drawn` completions the `wanted` best by mean log-probability, the best first.

    A sequence without tokens is the worst of all; of equals the first drawn comes first.
    """
    best: list[Completion] = []
    for first in range(0, len(completions), drawn):
        scored = [(_mean(each), each) for each in completions[first : first + drawn]]
        scored.sort(key=lambda pair: -pair[0])
        best += (replace(completion, score=score) for score, completion in scored[:wanted])
    return best if keep_logprobs else [replace(each, logprobs=None) for each in best]


def _mean(completion: Completion) -> float:
    chosen = [logprob.chosen for logprob in completion.logprobs or ()]
    return sum(chosen) / len(chosen) if chosen else float("-inf")


def search_beams(
    backend: Backend,
    maker: RequestMaker,
    prompts: Any,
    max_new_tokens: int,
    options: CallOptions,
    num_return: int,
) -> list[Completion]:
    """The `num_return` best sequences that beam search finds for each prompt, the best first."""
    num_beams = _checked(options, num_return)
    rows = maker.reader.many(prompts)
    if not rows:
        return []
    most_new = count("max_new_tokens", max_new_tokens, 0)
    longest = max(map(len, rows)) + most_new
    slots = min(len(rows), max(1, backend.max_batch // num_beams)) * num_beams
    with evaluating(backend.model):
        engine = backend.engine(slots, longest, least=num_beams)
        find = partial(
            _core.beam_search,
            engine,
            rows,
            num_beams=num_beams,
            num_return=num_return,
            max_new_tokens=most_new,
            window=backend.context_length,
            length_penalty=real("length_penalty", options.get("length_penalty", 1.0)),
            early_stopping=options.get("early_stopping", False),
            stop_ids=maker.stop_ids(options),
            prefill_tokens=PREFILL_TOKENS,
        )
        found = grad_mode_kept(find)
    return [
        Completion(
            text=maker.tokenizer.decode(tokens),
            token_ids=tokens,
            finish_reason=finish,
            prompt=prompt,
            seed=None,
            sequence=prompt * num_return + place,
            score=score,
            engine=engine.name,
        )
        for prompt, beams in enumerate(found)
        for place, (tokens, score, finish) in enumerate(beams)
    ]


def _checked(options: CallOptions, num_return: int) -> int:
    """How many beams, if the other options go with them."""
    num_beams = count("num_beams", options.get("num_beams"), 1)
    if num_return > num_beams:
        raise ConfigError(f"num_samples is at most num_beams, {num_beams}; found {num_return}")
    values: dict[str, Any] = dict(options)
    if given := sorted(name for name in _UNKNOWN & values.keys() if values[name] is not None):
        raise ConfigError(
            f"{given[0]} does not go with num_beams: beams go by the model's own scores"
        )
    if options.get("overflow", "slide") != "slide":
        raise ConfigError('overflow is "slide" with num_beams')
    if any(isinstance(stop, str) for stop in _texts(options.get("stop"))):
        raise ConfigError("stop has ids only with num_beams, found a text")
    return num_beams


def _texts(stop: Any) -> list[Any]:
    return list(stop) if isinstance(stop, list | tuple) else [stop]
