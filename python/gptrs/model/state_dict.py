"""What a GPTModel's plain, strict `load_state_dict` takes besides the model's own keys.

Saved by a compiled model (`_orig_mod.` in the keys), tied under one name only, or untied by
`assign=True`: each is set right by a hook. The mask that the book keeps is dropped in `layers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gptrs.errors import ConfigError

if TYPE_CHECKING:
    from gptrs.model.gpt import GPTModel


def register_hooks(model: GPTModel) -> None:
    """Makes `model.load_state_dict` take all that this module is about."""
    model.register_load_state_dict_pre_hook(_strip_compile_prefix)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(_complete_tied_pair)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]


def _strip_compile_prefix(
    model: GPTModel, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """A compiled model, or one with compiled blocks, saves its keys with `_orig_mod.` in them."""
    compiled = [key for key in state_dict if key.startswith(prefix) and "_orig_mod." in key]
    if not compiled:
        return
    own_keys = {prefix + key for key in model.state_dict()}
    for key in compiled:
        if key not in own_keys:
            plain = prefix + key.removeprefix(prefix).replace("_orig_mod.", "")
            state_dict[plain] = state_dict.pop(key)


def _complete_tied_pair(
    model: GPTModel, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """A tied model takes either of its two names, or both when they hold the same numbers."""
    if not is_tied(model):
        return
    embedding, head = prefix + "tok_emb.weight", prefix + "out_head.weight"
    if embedding in state_dict and head in state_dict:
        one, other = state_dict[embedding], state_dict[head]
        if one.data_ptr() != other.data_ptr() and not torch.equal(one, other):
            raise ConfigError(
                f"tie_embeddings is True, but {embedding} and {head} differ in the state_dict: "
                "it is an untied model's; nothing was loaded"
            )
    elif embedding in state_dict:
        state_dict[head] = state_dict[embedding]
    elif head in state_dict:
        state_dict[embedding] = state_dict[head]


def _tie_again(model: GPTModel, incompatible_keys: object) -> None:
    """`load_state_dict(assign=True)`, or `to_empty` before it, makes two parameters of the one."""
    if is_tied(model):
        model.out_head.weight = model.tok_emb.weight


def is_tied(model: GPTModel) -> bool:
    """Whether `out_head` is still the tied one, not a classifier put in its place."""
    if not model.cfg.tie_embeddings:
        return False
    head: nn.Module = model.out_head
    return isinstance(head, nn.Linear) and head.weight.shape == model.tok_emb.weight.shape
