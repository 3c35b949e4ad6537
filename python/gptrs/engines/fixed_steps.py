"""Steps of fixed shape: translated by `torch.compile`, or captured as a CUDA graph.

Either happens once a batch size, and needs shapes and addresses that stay: so a step attends to all
of the cache, masked. On a GPU that costs less than launching the kernels one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor

from gptrs.engines.decode_weights import DecodeWeights, Linear
from gptrs.engines.fused_forward import FixedAttention, hidden_states, matmul_for, norm

# B slots, V vocab_size.


class FixedSteps:
    """One token for each of the first slots.

    Args:
        weights: of a model with a stock output layer.
        storage: of the cache, `[L, 2, slots, H, context, K]`.
        tokens, starts: the engine's, which hold the ids and positions of a step.
    """

    def __init__(
        self, weights: DecodeWeights, storage: Tensor, tokens: Tensor, starts: Tensor
    ) -> None:
        self.weights = weights
        self._storage = storage
        self._tokens = tokens
        self._starts = starts
        self._graphs: dict[int, _Graph] = {}

    def __call__(self, num_slots: int) -> Tensor:
        """Logits [B, V]; valid until the next call."""
        ids_B, starts_B = self._tokens[:num_slots], self._starts[:num_slots]
        device = self._storage.device
        if device.type != "cuda":
            return _compiled_logits()(self.weights, self._storage, ids_B, starts_B)
        if num_slots not in self._graphs:
            compute = partial(_logits, self.weights, self._storage)
            self._graphs[num_slots] = _Graph(compute, ids_B, starts_B, device)
        return self._graphs[num_slots].replay(ids_B, starts_B)


def _logits(weights: DecodeWeights, storage: Tensor, ids_B: Tensor, starts_B: Tensor) -> Tensor:
    attention = FixedAttention(storage, starts_B, weights)
    x_BD = norm(hidden_states(weights, ids_B, starts_B, attention), weights.norm)
    head = cast(Linear, weights.head)
    return matmul_for(len(x_BD), x_BD.dtype, x_BD.device)(x_BD, *head)


@cache
def _compiled_logits() -> Callable[[DecodeWeights, Tensor, Tensor, Tensor], Tensor]:
    """One for all engines: what one has waited for, the next one of its shape finds."""
    # For any batch size at once, it could not choose between two ways to multiply.
    return torch.compile(_logits, dynamic=False)


class _Graph:
    """A captured step and the addresses that it reads."""

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor], Tensor],
        ids_B: Tensor,
        starts_B: Tensor,
        device: torch.device,
    ) -> None:
        # The real ones: a warm-up writes the keys that the replay will write again.
        self._ids, self._starts = ids_B.to(device), starts_B.to(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            compute(self._ids, self._starts)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = compute(self._ids, self._starts)

    def replay(self, ids_B: Tensor, starts_B: Tensor) -> Tensor:
        """Copies from pinned memory, runs, and waits for nothing."""
        self._ids.copy_(ids_B, non_blocking=True)
        self._starts.copy_(starts_B, non_blocking=True)
        self._graph.replay()
        return self._logits
