"""Dropout by random numbers that the Rust core makes, for training: torch's take most of a step.

The classes that the book's readers see stay `torch.nn.Dropout`, and draw torch's numbers; only
while `gptrs.train` runs do they draw these, which are a function of a seed and the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from gptrs.model.operators import dropout, is_for_core


class SeededDropout(nn.Dropout):
    """`torch.nn.Dropout` with the core's random numbers, on a CPU; elsewhere it is the same."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Any shape, kept."""
        if not (self.training and self.p) or not is_for_core(input):
            return super().forward(input)
        return dropout(input, self.p)


@contextmanager
def seeded_dropout(model: nn.Module) -> Iterator[None]:
    """Lets all dropout layers of `model` be of the seeded kind; they are as they were at the end.

    Modules stay the same objects, with their hooks and settings. Classes of somebody's own stay.
    """
    modules = [module for module in model.modules() if type(module) is nn.Dropout]
    for module in modules:
        module.__class__ = SeededDropout
    try:
        yield
    finally:
        for module in modules:
            module.__class__ = nn.Dropout
