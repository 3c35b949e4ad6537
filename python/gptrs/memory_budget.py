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
    at the end     final_norm's input  1 *     and output        1      =  2 times emb_dim

That is without checkpointing and dropout, with fused attention (it keeps no T x T scores) and with
`next_token_loss` (it keeps no logits). Left out are numbers that are few beside emb_dim: each
norm's mean and deviation, and the softmaxes' sums. Autocast also makes one copy of norm1's output
for each of W_query, W_key and W_value while they are multiplied one by one: a tenth more. What the
backward pass works with comes on top: 13 to 14 % in steps of the 124M model on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError
from gptrs.flops import checked_length
from gptrs.params import parameter_budget
from gptrs.tables import align, size

_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """One line of the memory budget, in bytes."""

    part: str
    """What is kept."""
    formula: str
    """How many numbers, in the config's field names, `parameters`, `length` and `batch_size`."""
    float32: int
    """Bytes when computing in float32."""
    bfloat16: int
    """Bytes when computing in bfloat16; what stays float32 then is counted as such."""


def generating_memory(cfg: GPTConfig, length: int | None = None) -> list[MemoryRow]:
    """Weights, the KV cache of one sequence of `length` tokens, and their total as the last row.

    Raises:
        ConfigError: length is not in 1..context_length.
    """
    length = checked_length(cfg, length)
    parameters = _count(cfg, "total")
    cached = 2 * cfg.n_layers * length * cfg.emb_dim
    return _with_total(
        [
            _row("weights", "parameters", parameters, as_float32=False),
            _row(
                "KV cache a sequence", "2 * n_layers * length * emb_dim", cached, as_float32=False
            ),
        ]
    )


def training_memory(
    cfg: GPTConfig, length: int | None = None, batch_size: int = 1
) -> list[MemoryRow]:
    """What a training step keeps, and the total as the last row.

    Args:
        length: tokens a sequence; None: context_length.
        batch_size: sequences in a forward pass.
    Raises:
        ConfigError: length is not in 1..context_length, or batch_size not 1 or more.
    """
    length = checked_length(cfg, length)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more")
    L, D = cfg.n_layers, cfg.emb_dim
    parameters = _count(cfg, "total")
    multiplied = L * (_count(cfg, "attention") + _count(cfg, "feed-forward")) + cfg.vocab_size * D
    tokens = batch_size * length
    norm_inputs = tokens * (2 * L + 1) * D
    activations = tokens * (16 * L + 2) * D
    return _with_total(
        [
            _row("weights", "parameters", parameters),
            MemoryRow(
                part="bfloat16 copies",
                formula="n_layers * (attention + feed-forward) + vocab_size * emb_dim",
                float32=0,
                bfloat16=_BFLOAT16 * multiplied,
            ),
            _row("gradients", "parameters", parameters),
            _row("AdamW's moments", "2 * parameters", 2 * parameters),
            MemoryRow(
                part="activations",
                formula="batch_size * length * (16 * n_layers + 2) * emb_dim",
                float32=_FLOAT32 * activations,
                bfloat16=_FLOAT32 * norm_inputs + _BFLOAT16 * (activations - norm_inputs),
            ),
        ]
    )


def format_memory(cfg: GPTConfig, length: int | None = None, batch_size: int = 1) -> str:
    """Both tables as text for a terminal, and what they assume."""
    length = checked_length(cfg, length)
    cells = [
        *_cells("Memory to generate", generating_memory(cfg, length)),
        ["", "", "", ""],
        *_cells("Memory to train", training_memory(cfg, length, batch_size)),
    ]
    return "\n".join(
        [
            *align(cells, "<>><"),
            f"length is {length:,}, batch_size {batch_size:,}. To train in bfloat16, weights, "
            "gradients and moments",
            "stay float32, and so do (2 * n_layers + 1) * emb_dim of a token's activations, the "
            "norms' inputs.",
            "Assumed: no checkpointing, no dropout, no attention scores and no logits kept. What",
            "the backward pass works with comes on top.",
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
