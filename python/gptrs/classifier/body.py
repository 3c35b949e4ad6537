"""The model of a classifier: a GPT of its own, with a new `out_head`, of which some layers learn.

    model ─► copy ─► out_head = nn.Linear(emb_dim, num_classes) ─► what `train` names learns

What stays frozen shares its memory with the caller's model; what learns is a copy. Knows nothing of
texts and labels.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import add_lora, has_lora, merge_lora
from gptrs.weights.pretrained import from_pretrained

Train = Literal["head", "last_block", "lora", "all"]
ModelLike = GPTModel | str | os.PathLike[str]


def read_model(model: ModelLike) -> GPTModel:
    """The model, or that in a folder or file.

    Raises:
        ConfigError: it is neither.
        CheckpointError: there is none, or it is damaged.
    """
    if isinstance(model, str | os.PathLike):
        return from_pretrained(model)
    if not isinstance(model, GPTModel):
        raise ConfigError(f"a classifier's model is a GPTModel or the path of one, found {model!r}")
    return model


def private_copy(model: GPTModel, train: Train, device: torch.device) -> GPTModel:
    """A copy in float32 on `device`, in eval mode, its adapters merged; nothing in it learns yet.

    Where dtype and device are right already, what `train` leaves as it is shares its memory with
    the caller's model.
    """
    weights = dict(model.named_parameters())
    if all(w.dtype == torch.float32 and w.device.type == device.type for w in weights.values()):
        last = f"trf_blocks.{len(model.trf_blocks) - 1}."
        learns = {"all": ("",), "last_block": (last, "final_norm.")}.get(train, ())
        shared = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False)
            for name, weight in weights.items()
            if not name.startswith(learns) or (name == "out_head.weight")
        }
        own: GPTModel = copy.deepcopy(model, shared)
    else:
        own = copy.deepcopy(model).to(device, torch.float32)
    if has_lora(own):
        merge_lora(own)
    return own.eval().requires_grad_(False)


def put_head(model: GPTModel, num_classes: int) -> nn.Linear:
    """Replaces `out_head`, as the book does, by a layer whose weights torch's generator draws."""
    device = model.tok_emb.weight.device
    head = nn.Linear(model.cfg.emb_dim, num_classes).to(device)
    model.out_head = head
    # A tied head would be given the embedding's matrix when weights are loaded.
    model.cfg = replace(model.cfg, tie_embeddings=False)
    return head


def layers_to_train(
    model: GPTModel, train: Train, rank: int, alpha: float, targets: Sequence[str] | str
) -> list[nn.Module]:
    """Lets what `train` names learn, besides `out_head`; returns what goes into training mode."""
    head: Any = model.out_head
    if train == "lora":
        model._modules["out_head"] = nn.Identity()  # It learns as a whole.
        add_lora(model, rank, alpha, targets)
        model.out_head = head
    head.requires_grad_(True)
    if train == "all":
        model.requires_grad_(True)
    if train == "last_block":
        layers = [model.trf_blocks[-1], model.final_norm]
        for layer in layers:
            layer.requires_grad_(True)
        return layers
    return [] if train == "head" else [model]
