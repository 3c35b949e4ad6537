"""How many token ids a model has: what its own layers hold, for somebody may have replaced them.

tok_emb ── reads V ids ──┐
                         ├─► one number, or an error that has both
out_head ─ V logits ─────┘
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gptrs.errors import ConfigError
from gptrs.model.facts import configured_vocab_size
from gptrs.model.gpt import GPTModel


def vocab_size_of(model: Any) -> int | None:
    """How many ids a model reads and gives logits for; None if it does not say.

    A GPTModel's are those of its layers: whoever adds tokens replaces `tok_emb` and `out_head` by
    larger ones, and its config stays what it was.

    Raises:
        ConfigError: a GPTModel reads another number of ids than it gives logits for.
    """
    if not isinstance(model, GPTModel):
        return configured_vocab_size(model)
    if (reason := why_two_sizes(model)) is not None:
        raise ConfigError(
            f"{reason}: what is drawn is read again, so replace both by layers of one size"
        )
    sizes = (num_ids(model), num_logits(model), model.cfg.vocab_size)
    return next(size for size in sizes if size is not None)


def why_two_sizes(model: GPTModel) -> str | None:
    """In what the two layers differ; None where they do not, or do not say."""
    ids, logits = num_ids(model), num_logits(model)
    if ids == logits or ids is None or logits is None:
        return None
    return f"tok_emb reads {ids} token ids and out_head gives {logits} logits"


def num_ids(model: GPTModel) -> int | None:
    """The rows of `tok_emb`; None if it is something else than an embedding."""
    layer: nn.Module = model.tok_emb
    return len(layer.weight) if isinstance(layer, nn.Embedding) else None


def num_logits(model: GPTModel) -> int | None:
    """The rows of `out_head`; None if it is something else than a linear layer."""
    layer: nn.Module = model.out_head
    return len(layer.weight) if isinstance(layer, nn.Linear) else None
