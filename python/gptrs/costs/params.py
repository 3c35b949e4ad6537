"""Where a GPT's parameters are: a count and a formula for every part, from the config alone.

Builds no model and imports no torch, so the 175 billion parameters of GPT-3 are counted in no time
and no memory. The tests hold every line to the real modules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptrs.config import T5_BUCKETS, GPTConfig
from gptrs.tables import align


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRow:
    """One line of the budget."""

    part: str
    """What is counted, e.g. "attention"."""
    formula: str
    """How, in names of the config's fields and properties, e.g. "4 * emb_dim^2 + emb_dim"."""
    count: int
    """Number of parameters."""
    depth: int = 0
    """0: adds to the total; 1: of one block; 2: a part of that block."""


def parameter_budget(cfg: GPTConfig) -> list[BudgetRow]:
    """Every part of `cfg`'s model, in the order of the forward pass, and the total as the last row.

    The rows of depth 0 before the last sum to it; the rows of depth 2 sum to the one of depth 1.
    """
    V, D, L = cfg.vocab_size, cfg.emb_dim, cfg.n_layers
    attention, attention_formula = _attention(cfg)
    feed_forward = 8 * D * D + 5 * D
    norms = 4 * D
    block = attention + feed_forward + norms
    head, head_formula = V * D, "emb_dim * vocab_size"
    if cfg.tie_embeddings:
        head, head_formula = 0, "tied: it is the token embedding"
    positions = _positions(cfg)
    total = V * D + sum(row.count for row in positions) + L * block + 2 * D + head
    return [
        BudgetRow(part="token embedding", formula="vocab_size * emb_dim", count=V * D),
        *positions,
        BudgetRow(
            part=f"{L} blocks" if L > 1 else "1 block",
            formula="n_layers * (attention + feed-forward + norms)",
            count=L * block,
        ),
        BudgetRow(
            part="each block", formula="attention + feed-forward + norms", count=block, depth=1
        ),
        BudgetRow(part="attention", formula=attention_formula, count=attention, depth=2),
        BudgetRow(
            part="feed-forward", formula="8 * emb_dim^2 + 5 * emb_dim", count=feed_forward, depth=2
        ),
        BudgetRow(part="norms", formula="2 * (2 * emb_dim)", count=norms, depth=2),
        BudgetRow(part="final norm", formula="2 * emb_dim", count=2 * D),
        BudgetRow(part="output head", formula=head_formula, count=head),
        BudgetRow(part="total", formula="", count=total),
    ]


def _positions(cfg: GPTConfig) -> list[BudgetRow]:
    """What all blocks share to know places; most kinds have no weights for that."""
    if cfg.pos == "learned":
        count, formula = cfg.context_length * cfg.emb_dim, "context_length * emb_dim"
        return [BudgetRow(part="position embedding", formula=formula, count=count)]
    if cfg.pos == "t5":
        count, formula = T5_BUCKETS * cfg.n_heads, f"{T5_BUCKETS} * n_heads"
        return [BudgetRow(part="position bias", formula=formula, count=count)]
    return []


def _attention(cfg: GPTConfig) -> tuple[int, str]:
    """One block's attention, with what it has of its own to know places."""
    D = cfg.emb_dim
    count = 4 * D * D + (4 * D if cfg.qkv_bias else D)
    formula = "4 * emb_dim^2 + " + ("4 * emb_dim" if cfg.qkv_bias else "emb_dim")
    if cfg.pos == "transformer_xl":
        return count + D * D + 2 * D, f"{formula} + emb_dim^2 + 2 * emb_dim"
    if cfg.pos.startswith("relative_key") and cfg.num_distances is not None:
        return count + cfg.num_distances * cfg.head_dim, f"{formula} + num_distances * head_dim"
    return count, formula


def count_parameters(cfg: GPTConfig) -> int:
    """Number of parameters of `cfg`'s model; a matrix that is used twice counts once."""
    return parameter_budget(cfg)[-1].count


def format_budget(cfg: GPTConfig, name: str) -> str:
    """The budget as text for a terminal, `name` in its title.

    Where `cfg` ties its embeddings, has QKV biases or other positions than a learned table, it ends
    with what each of these choices changes against the book's, which makes none of them.
    """
    rows = parameter_budget(cfg)
    lines = align(
        [["  " * row.depth + row.part, f"{row.count:,}", row.formula] for row in rows], "<><"
    )
    rule = "-" * len(lines[-1])
    return "\n".join(
        [
            f"{name}: {shape(cfg)}",
            "",
            *lines[:-1],
            rule,
            lines[-1],
            *_difference_to_the_book(cfg, name),
        ]
    )


def _difference_to_the_book(cfg: GPTConfig, name: str) -> list[str]:
    """What tying, QKV biases and positions change, line by line; empty where nothing does."""
    untied = replace(cfg, tie_embeddings=False, qkv_bias=False, init="book")
    plain = replace(untied, pos="learned", rel_max_distance=None, memory_length=0)
    steps: list[tuple[int, str]] = []
    if cfg.pos != "learned":
        difference = count_parameters(untied) - count_parameters(plain)
        steps.append((difference, f'pos "{cfg.pos}": no table of positions'))
    if cfg.tie_embeddings:
        steps.append((-cfg.vocab_size * cfg.emb_dim, "tying: no output head of its own"))
    if cfg.qkv_bias:
        num_biases = cfg.n_layers * 3 * cfg.emb_dim
        steps.append((num_biases, "QKV biases: n_layers * 3 * emb_dim"))
    if not steps:
        return []
    start = "book-124m" if plain == GPTConfig() else "untied, no QKV biases, learned positions"
    table = [
        (f"{count_parameters(plain):,}", start),
        *((f"{count:+,}", reason) for count, reason in steps),
        (f"{count_parameters(cfg):,}", name),
    ]
    return ["", "Beside the book's choices:", *("  " + line for line in align(table, "><"))]


def shape(cfg: GPTConfig) -> str:
    """The five numbers that make a model's size, in a line, and its positions if not learned."""
    sizes = (
        f"vocab_size {cfg.vocab_size:,}, context_length {cfg.context_length:,}, "
        f"emb_dim {cfg.emb_dim:,}, n_heads {cfg.n_heads}, n_layers {cfg.n_layers}"
    )
    return sizes if cfg.pos == "learned" else f"{sizes}, pos {cfg.pos}"
