"""The config of somebody else's weights: what their config says, and what their shapes give.

transformers' config.json, nanoGPT's `model_args`, the book's dictionary; without any of them,
shapes give all but the number of heads, which are then as wide as in every GPT-2: 64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError
from gptrs.manifest import FORMAT
from gptrs.weight_files import WeightFile
from gptrs.weight_names import Recipe

HEAD_DIM = 64
"""The width of a head in every GPT-2, and where nothing says otherwise."""

_SHAPE_FIELDS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "qkv_bias")
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
_NANOGPT_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "block_size",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
    "drop_rate": "dropout",
}


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


def config_of_file(file: WeightFile, recipe: Recipe, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are known: `stated`, else nanoGPT's own, else what the shapes give.

    Raises:
        CheckpointError: the shapes are not what is stated; every field that differs is listed.
    """
    args = file.settings
    theirs = {ours: args[name] for ours, name in _NANOGPT_FIELDS.items() if name in args}
    given, shapes = {**theirs, **stated}, _from_shapes(file, recipe)
    differ = [
        f"{name} is {given[name]!r} in its config, and the tensors give {shapes[name]!r}"
        for name in _SHAPE_FIELDS
        if name in given and name in shapes and given[name] != shapes[name]
    ]
    if differ:
        raise CheckpointError(f"{file.path}: not of its config:\n  " + "\n  ".join(differ))
    fields = {**shapes, **given}
    if args or fields["tie_embeddings"]:
        fields["init"] = "gpt2"
    return fields


def complete(found: Mapping[str, Any], path: Path) -> GPTConfig:
    """The config, with heads as wide as GPT-2's if their number is not known.

    Raises:
        CheckpointError: the weights do not say enough.
        ConfigError: what they say makes no sense.
    """
    fields = dict(found)
    emb_dim = fields.get("emb_dim")
    if "n_heads" not in fields and isinstance(emb_dim, int) and emb_dim % HEAD_DIM == 0:
        fields["n_heads"] = emb_dim // HEAD_DIM
    if missing := [name for name in _SHAPE_FIELDS if name not in fields]:
        raise CheckpointError(
            f"{path}: the weights do not say {' and '.join(missing)}: pass the model's config, cfg="
        )
    return GPTConfig.of(fields)


def check_fits(cfg: GPTConfig, found: Mapping[str, Any], path: Path) -> None:
    """Whether weights with the config `found` can become a model of `cfg`.

    Dropout, initialisation and tying are the caller's choice.

    Raises:
        ConfigError: other fields differ; all are listed.
    """
    differ = [
        f"{name} is {getattr(cfg, name)!r} in cfg, and {found[name]!r} in {path}"
        for name in _SHAPE_FIELDS
        if name in found and getattr(cfg, name) != found[name]
    ]
    if differ:
        raise ConfigError("cfg does not fit the weights:\n  " + "\n  ".join(differ))


def _from_shapes(file: WeightFile, recipe: Recipe) -> dict[str, Any]:
    entries = {ours: file.entries[source.name] for ours, source in recipe.sources.items()}
    blocks = {m[1] for m in map(re.compile(r"trf_blocks\.(\d+)\.").match, entries) if m}
    embedding, head = entries["tok_emb.weight"], entries.get("out_head.weight")
    is_shared = head is not None and head.storage is not None and head.storage == embedding.storage
    fields: dict[str, Any] = {
        "n_layers": max(1, len(blocks)),
        "qkv_bias": any(name.endswith("W_query.bias") for name in entries),
        "tie_embeddings": head is None or is_shared,
    }
    if len(embedding.shape) == 2:
        fields["vocab_size"], fields["emb_dim"] = embedding.shape
    if "pos_emb.weight" in entries and entries["pos_emb.weight"].shape:
        fields["context_length"] = entries["pos_emb.weight"].shape[0]
    return fields
