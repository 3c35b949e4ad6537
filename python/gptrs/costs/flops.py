"""What a token costs to compute, part by part and by both usual conventions, from the config alone.

    blocks' matrices    N = n_layers * 12 * emb_dim^2 weights       2 * N        Kaplan: 2 N, 6 N
    output head         vocab_size * emb_dim weights               + 2 each
    attention           two products with length tokens            + 4 * ...     PaLM, Megatron-LM
    relative positions  one product more, or two                   + 2 * ...

A multiplication and an addition are two FLOPs. Training takes three times the forward pass: the
backward pass has two matmuls for each of its own, by the weights and by the inputs. Embeddings are
looked up and cost none; norms, GELU, softmax and all other kinds of positions are few beside
matmuls, and nobody counts them. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError
from gptrs.tables import align

KAPLAN = "Kaplan et al. 2020"
MATMULS = "PaLM, Megatron-LM"


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopsRow:
    """FLOPs per token of one part, or by one convention."""

    part: str
    """What is counted, or who counts so."""
    formula: str
    """Of `inference`, in the config's field names and `length`, or in words."""
    inference: int
    """Of a forward pass."""
    training: int
    """Of a forward and a backward pass, nothing computed twice."""


def flops_per_token(cfg: GPTConfig, length: int | None = None) -> list[FlopsRow]:
    """FLOPs per token of `cfg`'s model: its parts, then the two usual conventions.

    KAPLAN (section 2.1): 2 N and 6 N, with N the weights of the blocks'
    matrices; no embeddings, no output head, no attention. MATMULS: all parts, so 6 N +
    12 L D T to train, with N all weights that are multiplied (Chowdhery et al. 2022, PaLM,
    appendix B; Narayanan et al. 2021, Megatron-LM, without its recomputation), and what relative
    positions multiply.

    The latter is what torch's FlopCounterMode counts: forward in any case, and to train with
    attention written out. Fused attention computes its scores again in the backward pass, which is
    2 * n_layers * length * emb_dim more; on a CPU, kinds of positions that learn what they add to
    the scores have no fused attention to train with. Masked scores are counted, as in the sources.

    Transformer-XL's W_r is applied once to each of `length` distances, whatever the batch: counted
    is one sequence, read as a whole. A batch shares it; a token that is generated alone pays all,
    length times as much.

    Args:
        length: tokens attended to: the sequence's when training or reading a prompt, those in the
            cache when generating. None: context_length.
    Raises:
        ConfigError: the model does not take so many tokens, or length is not 1 or more.
    """
    length = checked_length(cfg, length)
    V, D, L = cfg.vocab_size, cfg.emb_dim, cfg.n_layers
    blocks = _row("blocks' matrices", "2 * n_layers * 12 * emb_dim^2", 2 * L * 12 * D * D)
    parts = [
        blocks,
        _row("output head", "2 * vocab_size * emb_dim", 2 * V * D),
        _row("attention", "4 * n_layers * length * emb_dim", 4 * L * length * D),
        *_relative_positions(cfg, length),
    ]
    conventions = [
        replace(blocks, part=KAPLAN, formula="2 N, 6 N to train: blocks' matrices alone"),
        FlopsRow(
            part=MATMULS,
            formula="all parts; 6 N + 12 L D T to train",
            inference=sum(row.inference for row in parts),
            training=sum(row.training for row in parts),
        ),
    ]
    return [*parts, *conventions]


def _relative_positions(cfg: GPTConfig, length: int) -> list[FlopsRow]:
    """What queries, or keys, multiply besides each other."""
    L, D = cfg.n_layers, cfg.emb_dim
    product, formula = 2 * L * length * D, "2 * n_layers * length * emb_dim"
    if cfg.pos == "relative_key":
        return [_row("queries, distances", formula, product)]
    if cfg.pos == "relative_key_query":
        return [
            _row("queries, distances", formula, product),
            _row("keys, distances", formula, product),
        ]
    if cfg.pos == "transformer_xl":
        distances = 2 * L * D * D
        return [
            _row("queries, distances", formula, product),
            # Its inputs are fixed: the backward pass has one matmul.
            FlopsRow(
                part="W_r of distances",
                formula="2 * n_layers * emb_dim^2",
                inference=distances,
                training=2 * distances,
            ),
        ]
    return []


def _row(part: str, formula: str, inference: int) -> FlopsRow:
    return FlopsRow(part=part, formula=formula, inference=inference, training=3 * inference)


def checked_length(cfg: GPTConfig, length: int | None) -> int:
    """`length`, or context_length for None; raises ConfigError where the model has no such."""
    if length is None:
        return cfg.context_length
    if length < 1 or (cfg.max_tokens is not None and length > cfg.max_tokens):
        limit = "or more" if cfg.max_tokens is None else f"to context_length {cfg.max_tokens}"
        raise ConfigError(f"length is {length}; it must be 1 {limit}")
    return length


def format_flops(cfg: GPTConfig, length: int | None = None) -> str:
    """The rows as text for a terminal."""
    rows = flops_per_token(cfg, length)
    header = ["FLOPs per token", "inference", "training", "inference is"]
    cells = [[row.part, f"{row.inference:,}", f"{row.training:,}", row.formula] for row in rows]
    lines = align([header, *cells], "<>><")
    first_convention = next(i for i, row in enumerate(rows, start=1) if row.part == KAPLAN)
    rule = "-" * len(align([row[:3] for row in [header, *cells]], "<>>")[1])
    but_one = ", of W_r 2" if cfg.pos == "transformer_xl" else ""
    return "\n".join(
        [
            *lines[:first_convention],
            rule,
            *lines[first_convention:],
            f"length is {checked_length(cfg, length):,}; training is 3 times inference{but_one}. "
            "A multiplication and an addition are two.",
        ]
    )
