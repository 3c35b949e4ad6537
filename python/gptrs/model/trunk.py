"""The first blocks of a model as a model, and what tells two models apart."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import torch
from torch import nn

from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.text.named_tokenizers import own_tokenizer
from gptrs.text.prompts import PromptReader


def trunk_of(model: GPTModel, layer: int) -> GPTModel:
    """A view of `model` whose `hidden_states` are those of `layer`, 0 to n_layers.

    It shares all modules, hooks and weights, but has no more blocks than it takes.
    """
    if layer == len(model.trf_blocks):
        return model
    view = copy.copy(model)
    view._modules = model._modules | {
        "trf_blocks": model.trf_blocks[:layer],
        "final_norm": nn.Identity(),
    }
    return view


def fingerprint(trunk: GPTModel, tokenizer: Any) -> str:
    """16 hex digits: equal where texts get equal hidden states, but for rounding.

    Takes about a third of a second for GPT-2's 124M weights.
    """
    digest = hashlib.sha256()
    settings = trunk.cfg.to_dict()
    settings["n_layers"] = len(trunk.trf_blocks)
    for name in ("drop_rate", "tie_embeddings", "init"):  # They change no hidden states.
        del settings[name]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, weight in trunk.named_parameters():
        if not name.startswith("out_head."):
            digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
            digest.update(
                weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            )
    digest.update(_tokenizer_name(tokenizer).encode())
    return digest.hexdigest()[:16]


def _tokenizer_name(tokenizer: Any) -> str:
    try:
        return own_tokenizer(tokenizer)._core.fingerprint()
    except ConfigError:  # Somebody else's: as much as it says of itself.
        name = getattr(tokenizer, "name", type(tokenizer).__name__)
        return f"{name} {PromptReader(tokenizer).n_vocab}"
