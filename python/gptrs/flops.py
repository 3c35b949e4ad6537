"""What a token costs to compute, by both usual conventions, from the config alone.

    blocks     N = n_layers * (4 + 8) * emb_dim^2     weights of a block's matrices, all blocks
    matmuls    M = N + vocab_size * emb_dim           and those of the output head

               one token, forward                                 to train
    Kaplan     2 * N                                              3 times that, 6 * N
    PaLM       2 * M + 4 * n_layers * length * emb_dim            3 times that, 6 * M + 12 * ...

A multiplication and an addition are two FLOPs. The backward pass has two matmuls for each one of
the forward pass: by the weights, and by the inputs. Embeddings are looked up and cost none; norms,
GELU and softmax cost under a hundredth, and nobody counts them. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError
from gptrs.tables import align


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopsRow:
    """FLOPs per token by one convention."""

    convention: str
    """What is counted."""
    source: str
    """Who counts so."""
    formula: str
    """Of `inference`, in the config's field names, with `length` for the number of tokens."""
    inference: int
    """Of a forward pass."""

    @property
    def training(self) -> int:
        """Of a forward and a backward pass, nothing computed twice."""
        return 3 * self.inference


def flops_per_token(cfg: GPTConfig, length: int | None = None) -> list[FlopsRow]:
    """FLOPs per token of `cfg`'s model by two conventions: without attention, and all matmuls.

    The second is what torch's FlopCounterMode counts forward, and to train with attention written
    out; fused attention computes its scores again in the backward pass, 2 * n_layers * length *
    emb_dim more. Half of the attention is masked and counted all the same, as in the sources.

    Args:
        length: tokens attended to: the sequence's when training or reading a prompt, those in the
            cache when generating. None: context_length.
    Raises:
        ConfigError: length is not in 1..context_length.
    """
    length = checked_length(cfg, length)
    V, D, L = cfg.vocab_size, cfg.emb_dim, cfg.n_layers
    blocks = 2 * L * 12 * D * D
    attention = 4 * L * length * D
    return [
        FlopsRow(
            convention="blocks' weights only",
            source="Kaplan et al. 2020, section 2.1: 2 N and 6 N, N without embeddings and head",
            formula="2 * n_layers * 12 * emb_dim^2",
            inference=blocks,
        ),
        FlopsRow(
            convention="all matmuls",
            source="PaLM (Chowdhery et al. 2022), appendix B: 6 N + 12 L H Q T, with the N weights "
            "that are multiplied; Megatron-LM (Narayanan et al. 2021) counts the same",
            formula="... + 2 * vocab_size * emb_dim + 4 * n_layers * length * emb_dim",
            inference=blocks + 2 * V * D + attention,
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
    """The two rows as text for a terminal."""
    rows = flops_per_token(cfg, length)
    header = ["FLOPs per token", "inference", "training", "inference is"]
    cells = [
        [row.convention, f"{row.inference:,}", f"{row.training:,}", row.formula] for row in rows
    ]
    return "\n".join(
        [
            *align([header, *cells], "<>><"),
            f"length is {checked_length(cfg, length):,}; training is 3 times inference. A "
            "multiplication and an addition are two.",
            "The first is 2 N and 6 N (Kaplan et al. 2020), N without embeddings and head; the "
            "second adds",
            "head and attention: 6 N + 12 L D T (PaLM, 2022, appendix B; Megatron-LM, 2021).",
        ]
    )
