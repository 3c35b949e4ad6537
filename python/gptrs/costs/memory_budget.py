"""What a model takes in memory, to generate and to train, from the config alone.

    generate     weights + a KV cache for each sequence
    train        weights + (bfloat16: their copies) + gradients + AdamW's two moments + activations

Two ways of computing: float32, and bfloat16. To generate in bfloat16 all weights are; to train in
it, as `gptrs train` does under autocast, weights, gradients and moments stay float32, and matmuls
read copies. Imports no torch.

Activations are what the forward pass keeps for the backward pass, in numbers per token:

    each block     norm1's input       1 *     norm2's input     1 *    * float32 in any case
                   norm1's output      1       norm2's output    1
                   query, key, value   3       GELU's input      4
                   context vectors     1       GELU's output     4      = 16 times emb_dim
    at the end     final_norm's input  1 *     and output        1 *    =  2 times emb_dim

Positions that learn what they add to the scores have no fused attention to train with on a CPU:

    each block     attention weights    n_heads * length
                   relative_key: queries 1;    relative_key_query: and keys 2;
                   transformer_xl: queries, and distances for each row of the batch, 2

On a CPU the loss keeps exp(logits) of few and wide rows in bfloat16, 256 MiB at most.

That is without checkpointing and dropout, with fused attention elsewhere (it keeps no T x T scores)
and with `next_token_loss` (it keeps no other logits). Left out are numbers that are few beside
emb_dim, each norm's mean and deviation and the softmaxes' sums, and those that all rows of a batch
share: masks, sines, vectors of distances. So are autocast's copies of norm1's output, one for each
of W_query, W_key and W_value while they are multiplied one by one (a tenth of the activations),
what the passes work with, and what the allocator cannot give to anybody else. These have a row of
their own, a measured share of all others: `WORKING_SHARE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptrs.config import KEPT_LOGITS_BYTES, KEPT_LOGITS_WIDTH, GPTConfig
from gptrs.costs.flops import checked_length
from gptrs.costs.params import parameter_budget
from gptrs.errors import ConfigError
from gptrs.tables import align, size

WORKING_SHARE = {"float32": 0.5, "bfloat16": 0.25}
"""What a step takes beside what it keeps, as a share of that, by what it computes in.

Measured in steps of the 124M model on a CPU, as the peak of what is resident, without what imports
take: bfloat16 0.07 with 4 x 256 tokens, 0.20 to 0.24 with 8 or 16 x 1024; float32 0.10 and 0.48.
A model of few layers that reads as many tokens takes more: 0.36 with 3 layers in bfloat16.
"""
WORKING_PART = "allocator and copies"
"""What that row is called."""

_FLOAT32, _BFLOAT16 = 4, 2
# Numbers for a token and block, in emb_dim, that are kept beside 16 and the attention weights.
_KEPT_BESIDE_WEIGHTS = {"t5": 0, "relative_key": 1, "relative_key_query": 2, "transformer_xl": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """One line of the memory budget, in bytes."""

    part: str
    """What is kept."""
    formula: str
    """How many numbers, in the config's field names, `parameters`, `length` and `batch_size`; of
    what was measured, in words."""
    float32: int
    """Bytes when computing in float32."""
    bfloat16: int
    """Bytes when computing in bfloat16; what stays float32 then is counted as such."""


def generating_memory(cfg: GPTConfig, length: int | None = None) -> list[MemoryRow]:
    """Weights, the KV cache of one sequence of `length` tokens, and their total as the last row.

    With a memory_length the cache has its size from the start, however long the sequence.

    Raises:
        ConfigError: the model does not take so many tokens, or length is not 1 or more.
    """
    length = checked_length(cfg, length)
    slots, formula = length, "2 * n_layers * length * emb_dim"
    if cfg.memory_length:
        slots = cfg.memory_length + 2 * cfg.context_length
        formula = "2 * n_layers * (memory_length + 2 * context_length) * emb_dim"
    cached = 2 * cfg.n_layers * slots * cfg.emb_dim
    return _with_total(
        [
            _row("weights", "parameters", _count(cfg, "total"), as_float32=False),
            _row("KV cache a sequence", formula, cached, as_float32=False),
        ]
    )


def training_memory(
    cfg: GPTConfig, length: int | None = None, batch_size: int = 1
) -> list[MemoryRow]:
    """What a training step keeps, what it takes beside that, and the total as the last row.

    Args:
        length: tokens a sequence; None: context_length.
        batch_size: sequences in a forward pass.
    Raises:
        ConfigError: the model does not take so many tokens, or length or batch_size is not 1 or
            more.
    """
    length = checked_length(cfg, length)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more")
    L = cfg.n_layers
    parameters = _count(cfg, "total")
    # Not the output layer: `next_token_loss` copies a block of it at a time.
    multiplied = L * (_count(cfg, "attention") + _count(cfg, "feed-forward"))
    kept = [
        _row("weights", "parameters", parameters),
        MemoryRow(
            part="bfloat16 copies",
            formula="n_layers * (attention + feed-forward)",
            float32=0,
            bfloat16=_BFLOAT16 * multiplied,
        ),
        _row("gradients", "parameters", parameters),
        _row("AdamW's moments", "2 * parameters", 2 * parameters),
        *_activations(cfg, length, batch_size),
        *_logits(cfg, length, batch_size),
    ]
    return _with_total([*kept, _working(kept)])


def _working(kept: Sequence[MemoryRow]) -> MemoryRow:
    """What comes on top of the parts that are kept."""
    shares = WORKING_SHARE
    return MemoryRow(
        part=WORKING_PART,
        formula=f"{shares['float32']:g} or {shares['bfloat16']:g} of the above, as measured",
        float32=int(shares["float32"] * sum(row.float32 for row in kept)),
        bfloat16=int(shares["bfloat16"] * sum(row.bfloat16 for row in kept)),
    )


def _logits(cfg: GPTConfig, length: int, batch_size: int) -> list[MemoryRow]:
    """What the loss keeps of them."""
    num_bytes = _BFLOAT16 * batch_size * length * cfg.vocab_size
    if cfg.emb_dim < KEPT_LOGITS_WIDTH or num_bytes > KEPT_LOGITS_BYTES:
        return []
    formula = "batch_size * length * vocab_size"
    return [MemoryRow(part="exp(logits)", formula=formula, float32=0, bfloat16=num_bytes)]


def _activations(cfg: GPTConfig, length: int, batch_size: int) -> list[MemoryRow]:
    """What the module's docstring lists."""
    L, H = cfg.n_layers, cfg.n_heads
    tokens = batch_size * length
    beside_weights = _KEPT_BESIDE_WEIGHTS.get(cfg.pos)
    in_a_block = 16 + (beside_weights or 0)
    activations = tokens * (in_a_block * L + 2) * cfg.emb_dim
    as_float32 = tokens * (2 * L + 2) * cfg.emb_dim
    bfloat16 = _FLOAT32 * as_float32 + _BFLOAT16 * (activations - as_float32)
    rows = [
        MemoryRow(
            part="activations",
            formula=f"batch_size * length * ({in_a_block} * n_layers + 2) * emb_dim",
            float32=_FLOAT32 * activations,
            bfloat16=bfloat16,
        )
    ]
    if beside_weights is not None:
        formula = "batch_size * n_layers * n_heads * length^2"
        rows.append(_row("attention weights", formula, tokens * L * H * length))
    return rows


def format_memory(cfg: GPTConfig, length: int | None = None, batch_size: int = 1) -> str:
    """Both tables as text for a terminal, and what they assume."""
    length = checked_length(cfg, length)
    cells = [
        *_cells("Memory to generate", generating_memory(cfg, length)),
        ["", "", "", ""],
        *_cells("Memory to train", training_memory(cfg, length, batch_size)),
    ]
    scores = "" if cfg.pos in _KEPT_BESIDE_WEIGHTS else " no attention scores and"
    return "\n".join(
        [
            *align(cells, "<>><"),
            f"length is {length:,}, batch_size {batch_size:,}. To train in bfloat16, weights, "
            "gradients and moments",
            "stay float32, and so do (2 * n_layers + 2) * emb_dim numbers of each token:",
            "norms' inputs, the last norm's output.",
            f"Assumed: no checkpointing, no dropout,{scores} no other logits kept.",
            f"How much {WORKING_PART} take was measured on a CPU, with the 124M model.",
        ]
    )


def _cells(title: str, rows: Sequence[MemoryRow]) -> list[list[str]]:
    return [
        [title, "float32", "bfloat16", "numbers"],
        *([row.part, size(row.float32), size(row.bfloat16), row.formula] for row in rows),
    ]


def _row(part: str, formula: str, count: int, *, as_float32: bool = True) -> MemoryRow:
    """`count` numbers; computing in bfloat16, they stay float32 if `as_float32`."""
    return MemoryRow(
        part=part,
        formula=formula,
        float32=_FLOAT32 * count,
        bfloat16=(_FLOAT32 if as_float32 else _BFLOAT16) * count,
    )


def _with_total(rows: list[MemoryRow]) -> list[MemoryRow]:
    total = MemoryRow(
        part="total",
        formula="",
        float32=sum(row.float32 for row in rows),
        bfloat16=sum(row.bfloat16 for row in rows),
    )
    return [*rows, total]


def _count(cfg: GPTConfig, part: str) -> int:
    return next(row.count for row in parameter_budget(cfg) if row.part == part)
