"""`--model auto`: the size of model that learns most from so much data in so much time.

    time * FLOP/s / FLOPs a token      D tokens can be seen, of U that there are
    D, U                          ─►   D' tokens that count: those seen again teach less
    406.4 / N^0.34 + 410.7 / D'^0.28   what the size and the data leave unlearned: the least wins

The law and its numbers are those of Hoffmann et al. 2022 (Chinchilla, section D.2), without its
third term, which no choice changes; with N the weights of the blocks' matrices. How much less a
token teaches when it comes again is that of Muennighoff et al. 2023, equation 5: D' = U + 15.4 U
(1 - e^(-(D / U - 1) / 15.4)). They were fitted to far larger models than a few minutes train, and
serve as a guide: near the best sizes the sum is flat. So a size that leaves time for few steps is
passed over (`FEWEST_STEPS`). Imports torch only to measure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gptrs.config import GPTConfig
from gptrs.costs.flops import MATMULS, flops_per_token
from gptrs.errors import ConfigError
from gptrs.training.config import WINDOWS_PER_STEP, TrainingConfig

TOKENS_PER_PARAMETER = 20
"""What Hoffmann et al. found best where data is never short; told beside what comes out."""
STEPS_SHARE = 0.85
"""Of the time, what is left for forward and backward passes."""
MOST_WEIGHTS_PER_TOKEN = 30
"""Of the data: larger models would only learn it by heart."""
FEWEST_STEPS = 2000
"""A size that has time for fewer is passed over where a smaller one has that many: of Shakespeare,
ten minutes of one thread taught 4 layers, 128 wide, more in 4,000 steps than 6, 192 wide, in 691.
"""
DROPOUT_FROM = 25.0
"""From so many passes over the data on, dropout is given: before, it costs more than it gains."""
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 512, 16384
GPT2_TOKENS_FROM = 64_000_000
"""Bytes of text from which on GPT-2's own tokens, learned from far more, serve as well."""
_BYTES_PER_TOKEN_ID = 256
"""Of Python's help topics, the demo's model learned in 45 seconds to 2.20, 1.94, 1.96 and 1.94 bits
per byte with 512, 1,024, 2,048 and 4,096 tokens from 420 kB, and to 2.22 with GPT-2's, which are
the better ones from some minutes on: they were learned from far more text."""

_A, _ALPHA, _B, _BETA = 406.4, 0.34, 410.7, 0.28
_WORTH_OF_REPEATS = 15.4
_FEWEST_WINDOWS = 64


def _shape(n_layers: int, emb_dim: int, context_length: int) -> GPTConfig:
    return GPTConfig(
        n_layers=n_layers,
        emb_dim=emb_dim,
        context_length=context_length,
        n_heads=emb_dim // (32 if emb_dim < 384 else 64),
        drop_rate=0.0,
        tie_embeddings=True,
        init="gpt2",
    )


# From the demo's size on they grow in depth and width together; from 12 layers on they are GPT-2's.
SHAPES = (
    _shape(2, 64, 64),
    _shape(3, 96, 128),
    _shape(4, 128, 128),
    _shape(6, 192, 256),
    _shape(6, 256, 256),
    _shape(6, 384, 256),
    _shape(8, 512, 512),
    _shape(10, 640, 512),
    _shape(12, 768, 1024),
    _shape(24, 1024, 1024),
    _shape(36, 1280, 1024),
    replace(_shape(48, 1600, 1024), n_heads=25),
)
"""What `choose_model` chooses from, with the vocabulary of the data."""


_REFERENCE = SHAPES[4]
_USED_SHARE, _BYTES_PER_PARAMETER = 0.6, 16
"""In float32: weights, gradients and two moments, with room for activations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    cfg: GPTConfig
    seen: float
    """Tokens that fit into the time."""
    epochs: float
    unlearned: float

    @property
    def block_weights(self) -> int:
        return block_weights(self.cfg)

    @property
    def steps(self) -> float:
        return self.seen / (WINDOWS_PER_STEP * self.cfg.context_length)


def choose_model(
    num_tokens: int,
    vocab_size: int,
    minutes: float,
    flops_per_s: float,
    *,
    most_parameters: int | None = None,
) -> tuple[GPTConfig, str]:
    """The model to train from nothing on `num_tokens` tokens in `minutes`, and why, in words.

    Args:
        num_tokens: to train on; seen as often as the time allows.
        vocab_size: of the tokenizer.
        flops_per_s: what training reaches here, not the device's peak: see
            `gptrs.training.trial.measured_flops_per_s`.
        most_parameters: that there is memory for; None: any number.
    Raises:
        ConfigError: one of them is not above 0.
    """
    named = {"num_tokens": num_tokens, "vocab_size": vocab_size, "minutes": minutes}
    for name, value in (named | {"flops_per_s": flops_per_s}).items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}; to choose a model it must be above 0")
    budget = STEPS_SHARE * 60 * minutes * flops_per_s
    most_weights = min(MOST_WEIGHTS_PER_TOKEN * num_tokens, most_parameters or math.inf)
    shapes = [cfg for cfg in SHAPES if block_weights(cfg) <= most_weights] or SHAPES[:1]
    candidates = [_candidate(cfg, num_tokens, vocab_size, budget) for cfg in shapes]
    settled = [candidate for candidate in candidates if candidate.steps >= FEWEST_STEPS]
    best = min(settled or candidates[:1], key=lambda candidate: candidate.unlearned)
    dropout = 0.1 if best.epochs >= DROPOUT_FROM else 0.0
    return replace(best.cfg, drop_rate=dropout), _reason(
        best, len(settled), minutes, flops_per_s, num_tokens
    )


def choose_model_here(
    num_tokens: int, vocab_size: int, config: TrainingConfig
) -> tuple[GPTConfig, str]:
    """What `choose_model` chooses for `config`'s minutes on its device, whose speed is measured.

    Small models reach fewer FLOP/s than large ones: the first choice is timed, and chosen again.

    Raises:
        ConfigError: the device or dtype is not available here.
    """
    from gptrs.devices import choose_device
    from gptrs.memory import available_bytes
    from gptrs.training.trial import measured_flops_per_s

    device = choose_device(config.device)
    available = available_bytes(device)
    most = None if available is None else int(_USED_SHARE * available / _BYTES_PER_PARAMETER)
    cfg = replace(_REFERENCE, vocab_size=vocab_size)
    for _ in range(2):
        flops_per_s = measured_flops_per_s(replace(cfg, drop_rate=0.0), device, config.dtype)
        cfg, reason = choose_model(
            num_tokens, vocab_size, config.minutes, flops_per_s, most_parameters=most
        )
    return cfg, reason


def choose_vocab_size(num_bytes: int) -> tuple[int | None, str]:
    """How many tokens to learn from `num_bytes` of text, and why; None: take GPT-2's tokenizer.

    Fewer tokens are quicker to learn, and each says less: a text is longer in them.
    """
    if num_bytes >= GPT2_TOKENS_FROM:
        return None, f"{num_bytes:,} bytes of text are enough for GPT-2's 50,257 tokens"
    power = 2 ** round(math.log2(max(1.0, num_bytes / _BYTES_PER_TOKEN_ID)))
    size = min(LARGEST_VOCABULARY, max(SMALLEST_VOCABULARY, power))
    return size, (
        f"{size:,} tokens for {num_bytes:,} bytes of text: a power of two, about one for each "
        f"{_BYTES_PER_TOKEN_ID} bytes, from {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY:,}"
    )


def block_weights(cfg: GPTConfig) -> int:
    """N: the weights of the blocks' matrices, 12 L D^2."""
    return 12 * cfg.n_layers * cfg.emb_dim**2


def tokens_that_count(seen: float, num_tokens: int) -> float:
    """What `seen` tokens are worth, of which `num_tokens` are different ones (equation 5)."""
    repeats = max(0.0, seen / num_tokens - 1)
    worth = _WORTH_OF_REPEATS * (1 - math.exp(-repeats / _WORTH_OF_REPEATS))
    return min(seen, num_tokens) + num_tokens * worth


def _candidate(cfg: GPTConfig, num_tokens: int, vocab_size: int, budget: float) -> _Candidate:
    # Little data has few windows: these stay many by being short.
    context_length = max(8, min(cfg.context_length, num_tokens // _FEWEST_WINDOWS))
    cfg = replace(cfg, vocab_size=vocab_size, context_length=context_length)
    flops = next(row.training for row in flops_per_token(cfg) if row.part == MATMULS)
    seen = budget / flops
    left_by_size = _A / block_weights(cfg) ** _ALPHA
    left_by_data = _B / tokens_that_count(seen, num_tokens) ** _BETA
    return _Candidate(
        cfg=cfg, seen=seen, epochs=seen / num_tokens, unlearned=left_by_size + left_by_data
    )


def _reason(
    best: _Candidate, num_settled: int, minutes: float, flops_per_s: float, num_tokens: int
) -> str:
    cfg = best.cfg
    time = "1 minute" if minutes == 1 else f"{minutes:g} minutes"
    law = "the law of Hoffmann et al. 2022"
    if num_settled:
        choice = (
            f"Of the {num_settled} sizes that have time for {FEWEST_STEPS:,} steps it leaves the "
            f"least unlearned by {law}"
        )
    else:
        choice = f"It is the smallest size: {law} is for longer runs"
    return (
        f"{cfg.n_layers} layers, {cfg.emb_dim} wide, {cfg.context_length} tokens of context. In "
        f"{time} at {flops_per_s / 1e9:,.0f} GFLOP/s it sees {_short(best.seen)} "
        f"tokens: the {_short(num_tokens)} there are, {_short(best.epochs)} times; "
        f"{_short(best.seen / best.block_weights)} for each of the {_short(best.block_weights)} "
        f"weights of its blocks, where {TOKENS_PER_PARAMETER} are best if data is never short. "
        f"{choice}"
    )


def _short(count: float) -> str:
    """A count to about three digits, e.g. "12.3 million"."""
    for unit, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:,.0f}" if count >= 100 else f"{count:.2g}"
