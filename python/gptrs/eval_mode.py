"""Dropout off while a model generates, from any number of threads; then every mode comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn


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
        training = [module for module in model.modules() if module.training]
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
