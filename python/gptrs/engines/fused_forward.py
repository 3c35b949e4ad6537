"""GPT-2's forward pass over a cache, in few operators: what the torch engine computes.

    ids of all slots, packed ─► embed ─► layers ─► hidden states [N, D]
                                           │ attention, run by run

Functions of tensors: knows nothing of modules, slots that come and go, or logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gptrs.engines.decode_weights import DecodeWeights, Norm
from gptrs.engines.engine import Run
from gptrs.model.positions import Rotation, rotate, rotation

# N tokens of a call, D emb_dim, O outputs; in a run: B slots, T new tokens of each, S tokens
# attended to, H heads, K head_dim; L layers.

Attention = Callable[[int, Tensor], Tensor]
"""Appends a layer's keys and values and attends: (layer, qkv [N, 3 * D]) to [N, D]."""
MatMul = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`F.linear`, or something that computes the same."""


def hidden_states(
    weights: DecodeWeights, ids_N: Tensor, positions_N: Tensor, attention: Attention
) -> Tensor:
    """Everything before the last norm: [N, D], in the weights' dtype."""
    matmul = matmul_for(ids_N.numel(), weights.dtype, ids_N.device)
    x_ND = _embed(weights, ids_N, positions_N)
    turn: Rotation | None = None
    if weights.rotated_dim is not None:
        # One angle for the query's and the key's heads alike: [N, 1, 1, K].
        turn = rotation(positions_N[:, None], weights.rotated_dim)
    for index, layer in enumerate(weights.layers):
        qkv_ND = matmul(norm(x_ND, layer.norm1), *layer.qkv)
        if turn is not None:
            _turn(qkv_ND, turn)
        x_ND += matmul(attention(index, qkv_ND), *layer.out)
        hidden_ND = F.gelu(matmul(norm(x_ND, layer.norm2), *layer.up), approximate="tanh")
        x_ND += matmul(hidden_ND, *layer.down)
    return x_ND


def _embed(weights: DecodeWeights, ids_N: Tensor, positions_N: Tensor) -> Tensor:
    # Added in the wider of the two dtypes.
    x_ND = F.embedding(ids_N, weights.tokens).to(weights.embedding_dtype)
    if weights.positions is not None:
        x_ND = x_ND + F.embedding(positions_N, weights.positions)
    elif weights.sinusoids is not None:
        x_ND = x_ND + weights.sinusoids(positions_N, x_ND.dtype)
    return x_ND.to(weights.dtype)


def _turn(qkv_ND: Tensor, turn: Rotation) -> None:
    """Turns queries and keys, in place."""
    head_dim = turn.cos.shape[-1]
    qk_N2HK = qkv_ND.view(len(qkv_ND), 3, -1, head_dim)[:, :2]
    qk_N2HK.copy_(rotate(qk_N2HK, turn))


def norm(x_ND: Tensor, weights: Norm) -> Tensor:
    """Layer norm."""
    return torch.layer_norm(x_ND, weights.scale.shape, weights.scale, weights.shift, weights.eps)


def matmul_for(num_rows: int, dtype: torch.dtype, device: torch.device) -> MatMul:
    """The faster of two ways to multiply `num_rows` rows with a large matrix."""
    if device.type == "cpu" and num_rows in _WEIGHTS_FIRST_ROWS.get(dtype, ()):
        return weights_first
    return cast(MatMul, F.linear)


def weights_first(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.linear` as (weight @ x.T).T: [N, O], a view of [O, N]."""
    if bias_O is None:
        return torch.mm(weight_OD, x_ND.t()).t()
    return torch.addmm(bias_O[:, None], weight_OD, x_ND.t()).t()


_WEIGHTS_FIRST_ROWS = {torch.float32: range(5, 49), torch.bfloat16: range(2, 65)}
"""For how many rows MKL and oneDNN read a large matrix up to twice as fast where it comes first:
they share out its rows among threads and AMX tiles, and ours are too few for that."""


def attention_over(storage: Tensor, runs: Sequence[Run], weights: DecodeWeights) -> Attention:
    """Attention of a call's runs over the cache's storage, `[L, 2, slots, H, context, K]`."""
    if len(runs) == 1:
        return RunAttention(storage, runs[0], weights)
    parts = [(run.tokens, RunAttention(storage, run, weights)) for run in runs]

    def attend(layer: int, qkv_ND: Tensor) -> Tensor:
        return torch.cat([attend(layer, qkv_ND[tokens]) for tokens, attend in parts])

    return attend


class RunAttention:
    """The attention of one run.

    All views of the cache, and what is added to the scores, are made here, for all layers at once;
    a layer is then one copy and one attention.
    """

    def __init__(self, storage: Tensor, run: Run, weights: DecodeWeights) -> None:
        stored_L2BHSK = storage[:, :, run.slots]
        _, _, num_slots, num_heads, _, head_dim = stored_L2BHSK.shape
        self._split = (num_slots, run.count, 3, num_heads, head_dim)
        self._joined = (num_slots * run.count, num_heads * head_dim)
        self._layers = weights.layers
        start, end = run.starts[0], max(run.starts) + run.count
        self._mask: Tensor | None = None
        self._rows: tuple[Tensor, Tensor] | None = None
        if run.is_level:
            self._targets = stored_L2BHSK[:, :, :, :, start:end].unbind(0)
            if run.count > 1 and (start > 0 or weights.bias is not None):
                positions_T1 = torch.arange(start, end, device=storage.device)[:, None]
                self._mask = _mask(positions_T1, end, storage.dtype)
        else:
            self._targets = stored_L2BHSK.unbind(0)
            starts_B = torch.tensor(run.starts, device=storage.device)
            self._rows = (torch.arange(num_slots, device=storage.device), starts_B)
            self._mask = _mask(starts_B[:, None, None, None], end, storage.dtype)
        if weights.bias is not None:
            starts = None if self._rows is None else self._rows[1]
            bias = weights.bias(run.count, end, starts, storage)
            self._mask = bias if self._mask is None else bias + self._mask
        self._is_causal = run.count > 1 and self._mask is None
        seen_L2BHSK = stored_L2BHSK[:, :, :, :, :end]
        self._keys = seen_L2BHSK[:, 0].unbind(0)
        self._values = seen_L2BHSK[:, 1].unbind(0)

    def __call__(self, layer: int, qkv_ND: Tensor) -> Tensor:
        """What the run's tokens attend to, [B * T, D]."""
        qkv_BHTK = qkv_ND.view(self._split).permute(2, 0, 3, 1, 4)
        if self._rows is None:
            self._targets[layer].copy_(qkv_BHTK[1:])
        else:
            _store(self._targets[layer], self._rows, qkv_BHTK)
        q_BHTK = qkv_BHTK[0]
        if q_BHTK.stride(-1) != 1:
            # Behind `weights_first`. The attention kernel would fall back to a slower one.
            q_BHTK = q_BHTK.contiguous()
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            self._keys[layer],
            self._values[layer],
            self._mask,
            is_causal=self._is_causal,
            scale=self._layers[layer].scale,
        )
        return y_BHTK.transpose(1, 2).reshape(self._joined)


class FixedAttention:
    """One token for each of the first slots, in shapes that do not depend on how many they hold.

    So a compiler or a CUDA graph needs to see it once. The price: all of the cache is looked at.
    """

    def __init__(self, storage: Tensor, starts_B: Tensor, weights: DecodeWeights) -> None:
        num_seen = storage.shape[4]
        self._stored = storage[:, :, : len(starts_B)]
        self._rows = (torch.arange(len(starts_B), device=storage.device), starts_B)
        self._mask = _mask(starts_B[:, None, None, None], num_seen, storage.dtype)
        if weights.bias is not None:
            self._mask = self._mask + weights.bias(1, num_seen, starts_B, storage)
        self._layers = weights.layers

    def __call__(self, layer: int, qkv_ND: Tensor) -> Tensor:
        """What the tokens attend to, [B, D]."""
        stored_BHSK = self._stored[layer]
        _, num_slots, num_heads, _, head_dim = stored_BHSK.shape
        qkv_BHTK = qkv_ND.view(num_slots, 1, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
        _store(stored_BHSK, self._rows, qkv_BHTK)
        y_BHTK = F.scaled_dot_product_attention(
            qkv_BHTK[0].contiguous(),
            stored_BHSK[0],
            stored_BHSK[1],
            self._mask,
            scale=self._layers[layer].scale,
        )
        return y_BHTK.reshape(num_slots, -1)


def _store(stored_BHSK: Tensor, rows: tuple[Tensor, Tensor], qkv_BHTK: Tensor) -> None:
    """Writes one token's key and value into each row, where the row ends."""
    rows_B, starts_B = rows
    # Advanced indices with a slice between them: PyTorch puts theirs in front.
    stored_BHSK[:, rows_B, :, starts_B] = qkv_BHTK[1:, :, :, 0].transpose(0, 1)


def _mask(positions: Tensor, end: int, dtype: torch.dtype) -> Tensor:
    """0 where a token at a position sees slot s, -inf where not: [..., end]."""
    hidden = torch.arange(end, device=positions.device) > positions
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return zeros.masked_fill_(hidden, -torch.inf)
