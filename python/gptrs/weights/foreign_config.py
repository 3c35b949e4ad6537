"""What a config.json says: transformers', the book's, or our checkpoint's. Imports no torch.

n_embd, n_head, ...  ─► emb_dim, n_heads, ...      what GPTModel cannot be told is refused
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError
from gptrs.weights.manifest import FORMAT

# transformers' names, and the defaults that its config.json leaves out.
_HF_FIELDS = {
    "vocab_size": ("vocab_size", 50257),
    "context_length": ("n_positions", 1024),
    "emb_dim": ("n_embd", 768),
    "n_heads": ("n_head", 12),
    "n_layers": ("n_layer", 12),
}
# What a GPTModel cannot be told: only these values compute what it computes.
_HF_FIXED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read_json(path: Path) -> dict[str, Any]:
    """A config.json's content; empty if it is no object.

    Raises:
        CheckpointError: it cannot be read, or is not JSON.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def is_known(content: Mapping[str, Any]) -> bool:
    """Whether a config.json is transformers', the book's or our checkpoint's."""
    return content.get("format") == FORMAT or "model_type" in content or "emb_dim" in content


def config_of_json(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields that a config.json gives: transformers', the book's, or our checkpoint's.

    Raises:
        CheckpointError: it is none of these, or of a model that computes something else; all that
            is different is listed.
    """
    if content.get("format") == FORMAT and isinstance(content.get("model"), Mapping):
        return dict(content["model"])
    if "emb_dim" in content:
        return dict(content)
    if not is_known(content):
        raise CheckpointError(f"{path}: expected the config of a GPT-2: it has no model_type")
    problems = [
        f"{name} is {content[name]!r}, expected {' or '.join(map(repr, expected))}"
        for name, expected in _HF_FIXED.items()
        if name in content and content[name] not in expected
    ]
    fields = {ours: content.get(name, usual) for ours, (name, usual) in _HF_FIELDS.items()}
    if (inner := content.get("n_inner")) is not None and inner != 4 * (fields["emb_dim"] or 0):
        problems.append(
            f"n_inner is {inner!r}, expected 4 * n_embd, and that is {fields['emb_dim']}"
        )
    if problems:
        raise CheckpointError(
            f"{path}: not a model that GPTModel can be:\n  " + "\n  ".join(problems)
        )
    # GPTModel has one rate for the three; it matters in training only.
    rates = [content.get(f"{place}_pdrop", 0.1) for place in ("embd", "attn", "resid")]
    drop_rate = max((rate for rate in rates if isinstance(rate, int | float)), default=0.0)
    tied = content.get("tie_word_embeddings", True)
    return {**fields, "drop_rate": drop_rate, "tie_embeddings": tied, "init": "gpt2"}


def config_without_weights(content: Mapping[str, Any], path: Path) -> GPTConfig:
    """The whole config that a config.json gives. transformers' GPT-2 has QKV biases, unsaid.

    Raises:
        CheckpointError, ConfigError: as `config_of_json`, or what it says makes no sense.
    """
    unsaid = {"qkv_bias": True} if "model_type" in content else {}
    return GPTConfig.of(unsaid | config_of_json(content, path))
