"""How likely a model finds texts: `Generator.score`. Tokens are read, none is drawn.

windows of 4, stride 2; each token counts once, in the first window that predicts it

ids      0 1 2 3 4 5 6
reads    0 1 2 3              predicts  1 2 3 4
             2 3 4 5          predicts      . . 5 6
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gptrs import _core
from gptrs.engines.choice import Engine, NativeEngine, PlainEngine
from gptrs.errors import ConfigError, TokenIdError
from gptrs.generation.runs import PREFILL_TOKENS, Backend
from gptrs.model.eval_mode import evaluating
from gptrs.sampling.constraints import token_bytes
from gptrs.text.prompts import PromptReader

# R rows of logits, V vocab_size.

MOST_LOGITS = 2**23
"""How many logits are asked for at once: 32 MB of them."""
A_CALL_S = 0.2
FIRST_CALL, LEAST_CALL = 64, 32
"""Tokens of a call before its time is known, and at least: each reads all weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model thinks of a text. The first token has nothing before it and does not count."""

    log_likelihood: float
    """Natural logarithm of the probability of the tokens behind the first."""
    num_tokens: int
    """How many these are."""
    num_bytes: int
    """How many bytes of text these are, in UTF-8."""
    engine: str
    """What computed the logits."""

    @property
    def perplexity(self) -> float:
        """exp(-log_likelihood / num_tokens); nan where nothing counts."""
        if self.num_tokens == 0:
            return math.nan
        loss = -self.log_likelihood / self.num_tokens
        return math.exp(loss) if loss < math.log(torch.finfo(torch.float64).max) else math.inf

    @property
    def bits_per_byte(self) -> float:
        """-log_likelihood / ln 2 / num_bytes: comparable between tokenizers; nan without bytes."""
        return -self.log_likelihood / math.log(2) / self.num_bytes if self.num_bytes else math.nan


class _Pace:
    """How many tokens a call takes: as many as are read while people wait without noticing.

    Ctrl-C is heard between two calls. A native model's logits do not depend on how texts are cut.
    """

    def __init__(self, first: int, most: int, *, is_measured: bool) -> None:
        self.most = min(first, most)
        self._limit = most
        self._is_measured = is_measured

    @staticmethod
    def of(engine: Engine) -> _Pace:
        """What an engine can take, and does not take too long for."""
        most = engine.context_length
        if not isinstance(engine, PlainEngine):
            num_logits = engine.vocab_size or MOST_LOGITS
            most = min(most, PREFILL_TOKENS, max(1, MOST_LOGITS // num_logits))
        if isinstance(engine, NativeEngine):
            return _Pace(FIRST_CALL, most, is_measured=True)
        return _Pace(most, most, is_measured=False)

    @contextmanager
    def timing(self, num_tokens: int) -> Iterator[None]:
        """Reads so many tokens inside."""
        start = time.perf_counter()
        yield
        if self._is_measured:
            factor = A_CALL_S / max(time.perf_counter() - start, 1e-6)
            # Slowly upwards: a short call says little of a long one.
            wanted = int(num_tokens * min(factor, 2.0))
            self.most = max(self.most, wanted) if factor > 1 else max(wanted, LEAST_CALL)
            self.most = min(self.most, self._limit)


class _Piece(NamedTuple):
    """Neighbouring tokens of a text's window."""

    text: int
    start: int
    """How many tokens of the window come before."""
    ids: list[int]
    targets: list[int]
    """What follows the last tokens of `ids`, where that counts."""


def score(
    backend: Backend, reader: PromptReader, texts: Any, *, stride: int | None = None
) -> list[Score]:
    """One score a text; see `Generator.score`."""
    rows = reader.many(texts)
    if not rows:
        return []
    window = min(backend.context_length, max(2, *map(len, rows)) - 1)
    stride = max(1, window // 2) if stride is None else _checked(stride, backend.context_length)
    with evaluating(backend.model):
        num_at_once = min(len(rows), backend.max_batch)
        engine = backend.engine(num_at_once, window, prefill_tokens=max(PREFILL_TOKENS, window))
        _check_ids(rows, engine.vocab_size)
        pace = _Pace.of(engine)
        sums = [0.0] * len(rows)
        for pieces in _calls(rows, window, stride, pace, engine.slots):
            with pace.timing(sum(len(piece.ids) for piece in pieces)):
                losses = list(_losses(engine, pieces))
            for piece, losses_R in zip(pieces, losses, strict=True):
                sums[piece.text] -= losses_R.sum(dtype=torch.float64).item()
    return [
        Score(
            log_likelihood=total,
            num_tokens=len(ids) - 1,
            num_bytes=_num_bytes(reader.tokenizer, ids[1:]),
            engine=engine.name,
        )
        for ids, total in zip(rows, sums, strict=True)
    ]


def _checked(stride: int, context_length: int) -> int:
    is_whole = isinstance(stride, Integral) and not isinstance(stride, bool)
    if not is_whole or not 1 <= stride <= context_length:
        raise ConfigError(f"stride is 1 to the context_length, {context_length}; found {stride!r}")
    return int(stride)


def _check_ids(rows: Sequence[list[int]], vocab_size: int | None) -> None:
    for number, ids in enumerate(rows):
        for place, token in enumerate(ids):
            if vocab_size is not None and not 0 <= token < vocab_size:
                raise TokenIdError(
                    f"token id {token} at [{number}, {place}] is outside 0..{vocab_size - 1}"
                )


def _calls(
    rows: Sequence[list[int]], window: int, stride: int, pace: _Pace, slots: int
) -> Iterator[list[_Piece]]:
    """What the engine reads in one call: pieces of several short windows, or of one long one."""
    waiting: list[_Piece] = []
    for number, ids in enumerate(rows):
        for pieces in _windows(number, ids, window, stride, pace):
            num_tokens = sum(len(piece.ids) for piece in waiting) + len(pieces[0].ids)
            if waiting and (num_tokens > pace.most or len(waiting) == slots or len(pieces) > 1):
                yield waiting
                waiting = []
            if len(pieces) > 1:
                yield from ([piece] for piece in pieces)
            else:
                waiting += pieces
    if waiting:
        yield waiting


def _windows(
    number: int, ids: list[int], window: int, stride: int, pace: _Pace
) -> Iterator[list[_Piece]]:
    """The windows of a text, each in pieces of at most so many tokens as a call takes."""
    num_counted = 0
    for first in range(0, len(ids) - 1, stride):
        if num_counted == len(ids) - 1:
            return
        end, most = min(first + window, len(ids) - 1), pace.most
        yield [
            _Piece(
                text=number,
                start=start - first,
                ids=ids[start : min(start + most, end)],
                targets=ids[max(start, num_counted) + 1 : min(start + most, end) + 1],
            )
            for start in range(first, end, most)
        ]
        num_counted = end


def _losses(engine: Engine, pieces: list[_Piece]) -> Iterator[Tensor]:
    """The cross entropy of each piece's targets, float32 [R]."""
    tokens = [token for piece in pieces for token in piece.ids]
    engine.tokens[: len(tokens)] = torch.tensor(tokens)
    engine.starts[: len(pieces)] = torch.tensor([piece.start for piece in pieces])
    counts = [len(piece.ids) for piece in pieces]
    wanted = [len(piece.targets) for piece in pieces]
    answer = engine.extend(list(range(len(pieces))), counts, wanted)
    losses_R = torch.empty(0)
    if answer is not None:
        logits_RV = cast(Tensor, answer).float()
        targets_R = torch.tensor([target for piece in pieces for target in piece.targets])
        if isinstance(engine, NativeEngine):
            # PyTorch's threads are not there after a fork, and it would wait for them.
            losses_R = torch.empty(len(logits_RV))
            _core.softmax_and_losses(logits_RV, targets_R, losses_R, threads=1)
        else:
            losses_R = F.cross_entropy(logits_RV, targets_R, reduction="none")
    yield from losses_R.split(wanted)


def _num_bytes(tokenizer: Any, ids: list[int]) -> int:
    if hasattr(tokenizer, "decode_bytes"):
        return len(tokenizer.decode_bytes(ids))
    try:
        bytes_of = token_bytes(tokenizer)
    except ConfigError:  # Of such a tokenizer only texts are known.
        return len(tokenizer.decode(ids).encode())
    known = range(len(bytes_of))
    ordinary = sum(len(bytes_of[token]) for token in ids if token in known)
    special = [token for token in ids if token not in known or not bytes_of[token]]
    return ordinary + len(tokenizer.decode(special).encode() if special else b"")
