"""The matmuls of a training step and nothing else, each in its shape and dtype.

linear layer    x @ W.T            and backward   g @ W,  g.T @ x
attention       q @ k.T,  p @ v    and backward   four more
output layer    what `gptrs.model.loss` multiplies, block by block: in bfloat16 logits twice
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gptrs.config import GPTConfig
from gptrs.model.loss import ROWS_FROM_WIDTH
from gptrs.model.loss_by_columns import BLOCK_COLUMNS, KEPT_BLOCK_COLUMNS, keeps_exponentials
from gptrs.model.loss_by_rows import BLOCK_ROWS

Matmul = Callable[[], object]


def matmuls_of_a_step(cfg: GPTConfig, batch_size: int, dtype: torch.dtype) -> list[Matmul]:
    """Calls that multiply once each. Every layer has weights of its own, as in a model."""
    num_rows, width = batch_size * cfg.context_length, cfg.emb_dim
    shapes = 4 * [(width, width)] + [(width, 4 * width), (4 * width, width)]
    calls: list[Matmul] = []
    for _ in range(cfg.n_layers):
        for d_in, d_out in shapes:
            calls += _linear(num_rows, d_in, d_out, dtype)
        calls += _attention(cfg, batch_size, dtype)
    return calls + _output_layer(num_rows, width, cfg.vocab_size, dtype)


def _linear(num_rows: int, d_in: int, d_out: int, dtype: torch.dtype) -> list[Matmul]:
    x, g = _matrix(num_rows, d_in, dtype), _matrix(num_rows, d_out, dtype)
    weight = _matrix(d_out, d_in, dtype)
    return [_product(x, weight.T), _product(g, weight), _product(g.T, x)]


def _attention(cfg: GPTConfig, batch_size: int, dtype: torch.dtype) -> list[Matmul]:
    heads, length = batch_size * cfg.n_heads, cfg.context_length
    q = _matrix(heads * length, cfg.head_dim, dtype).view(heads, length, cfg.head_dim)
    p = _matrix(heads * length, length, dtype).view(heads, length, length)
    forward = [_product(q, q.mT), _product(p, q)]
    return [*forward, *[_product(q, q.mT), _product(p.mT, q), _product(p, q), _product(p.mT, q)]]


def _output_layer(num_rows: int, width: int, vocab_size: int, dtype: torch.dtype) -> list[Matmul]:
    calls: list[Matmul] = []
    hidden = _matrix(num_rows, width, dtype)
    weight = _matrix(vocab_size, width, dtype)
    if dtype != torch.bfloat16 and width >= ROWS_FROM_WIDTH:
        for rows in hidden.split(BLOCK_ROWS):
            p = _matrix(len(rows), vocab_size, dtype)
            calls += [_product(rows, weight.T), _product(p, weight), _product(p.T, rows)]
        return calls
    hidden_T = hidden.T.contiguous()
    keeps = keeps_exponentials(hidden, weight, dtype)
    for block in weight.split(KEPT_BLOCK_COLUMNS if keeps else BLOCK_COLUMNS):
        p = _matrix(num_rows, len(block), dtype)
        calls += (1 if keeps else 2) * [_product(hidden, block.T)]
        calls += [_product(p, block), _product(hidden_T, p)]
    return calls


def _matrix(num_rows: int, num_columns: int, dtype: torch.dtype) -> Tensor:
    return torch.full((num_rows, num_columns), 0.01, dtype=dtype)


def _product(left: Tensor, right: Tensor) -> Matmul:
    """Into memory that is there already."""
    return partial(torch.matmul, left, right, out=left @ right)
