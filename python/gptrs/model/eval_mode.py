"""Dropout off while a model generates, from any number of threads; then every mode comes back.

Also after Ctrl-C, which may be heard anywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from gptrs.model.parts import modules_of

T = TypeVar("T")


class _Users:
    """How many generate with a model now, and which of its modules were in training mode."""

    def __init__(self) -> None:
        self.count = 0
        self.training: list[nn.Module] = []


_LOCK = threading.Lock()
_USERS: WeakKeyDictionary[nn.Module, _Users] = WeakKeyDictionary()


@contextmanager
def evaluating(model: object) -> Iterator[bool]:
    """Eval mode for the duration; the last to leave gives every submodule its own mode back.

    Yields whether anything was in training mode.
    """
    if not isinstance(model, nn.Module):
        yield False
        return
    with _LOCK:
        users = _USERS.setdefault(model, _Users())
        users.count += 1
        # Somebody may call `train` while others generate.
        training = [module for module in modules_of(model) if module.training]
        users.training += training
        for module in training:
            module.training = False
    try:
        yield bool(users.training)
    finally:
        with _LOCK:
            users.count -= 1
            if users.count == 0:
                for module in users.training:
                    module.training = True
                users.training.clear()


def grad_mode_kept(call: Callable[[], T]) -> T:
    """Calls a function that turns gradients off and on again, as PyTorch's `no_grad` does.

    Ctrl-C may raise in the middle of that, and no gradient would ever be recorded again.
    """
    was_enabled = torch.is_grad_enabled()
    try:
        return call()
    except BaseException:
        torch.set_grad_enabled(was_enabled)
        raise
