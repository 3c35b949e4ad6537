"""What a sequence got: `Completion`, and how it grows, event by event. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gptrs.text.stream import text_stream

if TYPE_CHECKING:
    from gptrs.sampling.requests import Request

FinishReason = Literal["stop", "length", "context", "cancelled"]

LogProbs = tuple[float, list[tuple[int, float]]]
Event = tuple[int, int | None, LogProbs | None, bytes | None, FinishReason | None, int | None]
"""What a step did to a sequence: its number, token, log-probabilities, text, end, tokens kept."""
Output = tuple[list[int], Sequence[LogProbs], bytes | None, FinishReason]
"""A sequence that has ended: its tokens, their log-probabilities, text, end."""


class TokenLogprobs(NamedTuple):
    """Natural logarithms of the model's own probabilities, before any setting, for one token."""

    chosen: float
    """The chosen token's."""
    top: list[tuple[int, float]]
    """(id, logarithm) of the likeliest tokens, the likeliest first, the lowest id on a tie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one sequence got, without its prompt and without what stopped it."""

    text: str
    token_ids: list[int]
    """With a stop string: the tokens that begin before it. The last may hold its first bytes."""
    finish_reason: FinishReason
    """"stop": a stop token or a stop string came, or nothing may follow in the pattern asked for.
    "length": max_new_tokens came. "context": the context is full, and overflow is "stop".
    "cancelled": somebody called `cancel` or `close`."""
    logprobs: list[TokenLogprobs] | None = None
    """One a token, where they were asked for."""
    prompt: int = 0
    """The number of its prompt in the call."""
    seed: int | None
    """Draws the same tokens again, from the same prompt with the same `sequence`. None with
    num_beams: nothing was drawn."""
    sequence: int = 0
    """Its number in the draws' counter: `sequences=[...]` asks for it again."""
    score: float | None = None
    """What it was chosen by. best_of: the mean log-probability of its tokens. num_beams: their sum,
    over the length to the power of length_penalty."""
    engine: str = "torch"
    """What computed the logits."""


class CompletionBuilder:
    """Follows one sequence while it runs; `engine` computes it."""

    def __init__(self, request: Request, tokenizer: Any, engine: str) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._engine = engine
        self._of_bytes = request.settings["stop_strings"] is not None
        self._stream = text_stream(tokenizer, of_bytes=self._of_bytes)
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._text = bytearray()
        self._finish: FinishReason | None = None

    @property
    def prompt(self) -> int:
        """The number of the sequence's prompt."""
        return self._request.prompt

    @property
    def has_ended(self) -> bool:
        """Whether the last event was the sequence's last."""
        return self._finish is not None

    def take(self, event: Event) -> str:
        """Adds what a step did; returns the text that became whole by it."""
        _, token, logprobs, text, finish, tokens_kept = event
        if token is not None:
            self._tokens.append(token)
        if logprobs is not None:
            self._logprobs.append(TokenLogprobs(*logprobs))
        piece = ""
        if self._of_bytes:
            # Token ids say nothing here: part of a token may belong to a stop string.
            if text is not None:
                self._text += text
                piece = self._stream.push(text)
        elif token is not None:
            piece = self._stream.push(token)
        if finish is not None:
            self._finish = finish
            piece += self._stream.finish()
            if tokens_kept is not None:
                del self._tokens[tokens_kept:], self._logprobs[tokens_kept:]
        return piece

    def completion(self) -> Completion:
        """What there is so far; before its end it counts as cancelled."""
        text = bytes(self._text) if self._of_bytes else None
        finish = self._finish or "cancelled"
        output = (self._tokens, self._logprobs, text, finish)
        return to_completion(self._request, output, self._tokenizer, self._engine)


def to_completion(request: Request, output: Output, tokenizer: Any, engine: str) -> Completion:
    """The completion of a sequence that has ended."""
    tokens, logprobs, text, finish = output
    has_logprobs = request.settings["logprobs"] is not None
    return Completion(
        text=tokenizer.decode(tokens) if text is None else text.decode("utf-8", "replace"),
        token_ids=list(tokens),
        finish_reason=finish,
        logprobs=[TokenLogprobs(*each) for each in logprobs] if has_logprobs else None,
        prompt=request.prompt,
        seed=request.seed,
        sequence=request.sequence,
        engine=engine,
    )
