"""The names of the ways to pool hidden states: how they are computed says `pooling`, with torch."""

from typing import Literal

Pooling = Literal["mean", "last", "max", "cls", "weighted_mean"]
"""What becomes of the hidden states of a text's tokens: their mean; the last one, which alone has
seen all of the text; the largest of each number; the first one; or the mean in which token i of n,
counted from 1, weighs i / (1 + ... + n)."""
