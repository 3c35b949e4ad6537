"""The config of somebody else's weights: what is said of them, and what their shapes give.

A config.json, see `foreign_config`, or nanoGPT's `model_args`; without any of them, shapes give all
but the number of heads. Those are then as wide as in every GPT-2, 64: a guess, and where the model
is not as wide as a GPT-2 is, a warning says so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptrs.config import PRESETS, GPTConfig
from gptrs.errors import CheckpointError, ConfigError
from gptrs.weights.files import WeightFile
from gptrs.weights.names import Recipe

HEAD_DIM = 64
"""The width of a head in every GPT-2, and where nothing says otherwise."""

_SHAPE_FIELDS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "qkv_bias")
# What else weights were trained for, and compute nothing sensible without.
_FIXED_FIELDS = (*_SHAPE_FIELDS, "pos", "rel_max_distance")
_NANOGPT_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "block_size",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
    "drop_rate": "dropout",
}


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
        for name in _FIXED_FIELDS
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

    Warns where that is a guess: any number of heads fits the same weights.

    Raises:
        CheckpointError: the weights do not say enough.
        ConfigError: what they say makes no sense.
    """
    fields = dict(found)
    emb_dim = fields.get("emb_dim")
    if "n_heads" not in fields and isinstance(emb_dim, int) and emb_dim % HEAD_DIM == 0:
        fields["n_heads"] = emb_dim // HEAD_DIM
        _warn_of_guess(emb_dim, fields["n_heads"], path)
    if missing := [name for name in _SHAPE_FIELDS if name not in fields]:
        raise CheckpointError(
            f"{path}: the weights do not say {' and '.join(missing)}: pass the model's config, cfg="
        )
    return GPTConfig.of(fields)


def _warn_of_guess(emb_dim: int, n_heads: int, path: Path) -> None:
    if emb_dim in {cfg.emb_dim for name, cfg in PRESETS.items() if name.startswith("gpt2-")}:
        return
    warnings.warn(
        f"{path}: the weights do not say how many heads the model has; n_heads={n_heads} is a "
        f"guess, by GPT-2's {HEAD_DIM} numbers a head, and with a wrong one the model computes "
        'something else. Pass cfg={"n_heads": ...}, or put '
        f'{{"emb_dim": {emb_dim}, "n_heads": ...}} into a config.json beside the file',
        UserWarning,
        stacklevel=6,  # Where GPTModel.from_pretrained was called.
    )


def check_fits(cfg: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Whether weights with the config `found` can become a model with the fields in `cfg`.

    Dropout, initialisation, tying and memory_length are the caller's choice.

    Raises:
        ConfigError: other fields differ; all are listed.
    """
    differ = [
        f"{name} is {cfg[name]!r} in cfg, and {found[name]!r} in {path}"
        for name in _FIXED_FIELDS
        if name in found and name in cfg and cfg[name] != found[name]
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
        fields["context_length"], fields["pos"] = entries["pos_emb.weight"].shape[0], "learned"
    return fields
