"""What a token costs to compute, part by part and by both usual conventions, from the config alone.

    blocks' matrices    N = n_layers * 12 * emb_dim^2 weights       2 * N        Kaplan: 2 N, 6 N
    output head         vocab_size * emb_dim weights               + 2 each
    attention           two products with length tokens            + 4 * ...     PaLM, Megatron-LM

A multiplication and an addition are two FLOPs. Training takes three times the forward pass: the
backward pass has two matmuls for each of its own, by the weights and by the inputs. Embeddings are
looked up and cost none; norms, GELU and softmax are few beside matmuls, and nobody counts them.
Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def training(self) -> int:
        """Of a forward and a backward pass, nothing computed twice."""
        return 3 * self.inference


def flops_per_token(cfg: GPTConfig, length: int | None = None) -> list[FlopsRow]:
    """FLOPs per token of `cfg`'s model: three parts, then the two usual conventions.

    KAPLAN (section 2.1): 2 N and 6 N, with N the weights of the blocks'
    matrices; no embeddings, no output head, no attention. MATMULS: all three parts, so 6 N +
    12 L D T to train, with N all weights that are multiplied (Chowdhery et al. 2022, PaLM,
    appendix B; Narayanan et al. 2021, Megatron-LM, without its recomputation).

    The latter is what torch's FlopCounterMode counts: forward in any case, and to train with
    attention written out. Fused attention computes its scores again in the backward pass, which is
    2 * n_layers * length * emb_dim more. Masked scores are counted, as in the sources.

    Args:
        length: tokens attended to: the sequence's when training or reading a prompt, those in the
            cache when generating. None: context_length.
    Raises:
        ConfigError: length is not in 1..context_length.
    """
    length = checked_length(cfg, length)
    V, D, L = cfg.vocab_size, cfg.emb_dim, cfg.n_layers
    blocks, head, attention = 2 * L * 12 * D * D, 2 * V * D, 4 * L * length * D
    return [
        FlopsRow(
            part="blocks' matrices", formula="2 * n_layers * 12 * emb_dim^2", inference=blocks
        ),
        FlopsRow(part="output head", formula="2 * vocab_size * emb_dim", inference=head),
        FlopsRow(part="attention", formula="4 * n_layers * length * emb_dim", inference=attention),
        FlopsRow(
            part=KAPLAN, formula="2 N, 6 N to train: blocks' matrices alone", inference=blocks
        ),
        FlopsRow(
            part=MATMULS,
            formula="all three; 6 N + 12 L D T to train",
            inference=blocks + head + attention,
        ),
    ]


def checked_length(cfg: GPTConfig, length: int | None) -> int:
    """`length`, or context_length for None; raises ConfigError where the model has no such."""
    if length is None:
        return cfg.context_length
    if not 1 <= length <= cfg.context_length:
        raise ConfigError(
            f"length is {length}; it must be 1 to context_length {cfg.context_length}"
        )
    return length


def format_flops(cfg: GPTConfig, length: int | None = None) -> str:
    """The rows as text for a terminal."""
    rows = flops_per_token(cfg, length)
    header = ["FLOPs per token", "inference", "training", "inference is"]
    cells = [[row.part, f"{row.inference:,}", f"{row.training:,}", row.formula] for row in rows]
    lines = align([header, *cells], "<>><")
    first_convention = next(i for i, row in enumerate(rows, start=1) if row.part == KAPLAN)
    rule = "-" * len(align([row[:3] for row in [header, *cells]], "<>>")[1])
    return "\n".join(
        [
            *lines[:first_convention],
            rule,
            *lines[first_convention:],
            f"length is {checked_length(cfg, length):,}; training is 3 times inference. "
            "A multiplication and an addition are two.",
        ]
    )
