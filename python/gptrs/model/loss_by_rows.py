"""The output layer's cross-entropy, a few rows after the other, with the gradients at once.

    for each block of rows:  p = softmax(hidden[block] @ weight.T)
                             grad_hidden[block] = p @ weight
                             grad_weight += p.T @ hidden[block]

Three matmuls, where a block of columns needs four: no logit is computed twice. In exchange a block
is larger than any cache. Where matmuls are slow, as in float32, and rows wide, that is the better
bargain; bfloat16's are fast. For those who want gradients: they are made in the forward pass.
"""

# N rows (tokens), R rows in a block, D emb_dim, V vocab_size

from typing import Any

import torch
from torch import Tensor

from gptrs.model.forward_pass import check_targets

BLOCK_ROWS = 512
"""Of 128, 256 and 512 the fastest: grad_weight is read and written once a block."""


@torch.library.custom_op("gptrs::linear_cross_entropy_by_rows", mutates_args=())
def loss_by_rows(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients: of hidden, and of weight or an empty tensor."""
    check_targets(targets, ignore_index, vocab_size=len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        hidden_ND, weight_VD = hidden.to(dtype), weight.to(dtype)
        counted_N = targets != ignore_index
        targets_N = targets.where(counted_N, 0)
        row_weight_N = counted_N.to(dtype) / counted_N.sum()
        scaled_ND = row_weight_N[:, None] * hidden_ND
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD if wants_weight else weight_VD[:0])
        buffers = hidden_ND.new_empty(2, min(BLOCK_ROWS, len(hidden)), len(weight))
        losses_N = torch.empty_like(row_weight_N)
        for first in range(0, len(hidden), BLOCK_ROWS):
            block = slice(first, first + BLOCK_ROWS)
            logits_RV, log_p_RV = buffers[:, : len(hidden_ND[block])]
            torch.mm(hidden_ND[block], weight_VD.T, out=logits_RV)
            torch.log_softmax(logits_RV, dim=1, out=log_p_RV)
            losses_N[block] = -log_p_RV.gather(1, targets_N[block, None])[:, 0]
            p_RV = log_p_RV.exp_()
            torch.mm(p_RV, weight_VD, out=grad_hidden_ND[block])
            if wants_weight:
                grad_weight_VD.addmm_(p_RV.T, scaled_ND[block])
        grad_hidden_ND = row_weight_N[:, None] * (grad_hidden_ND - weight_VD[targets_N])
        if wants_weight:
            grad_weight_VD.index_add_(0, targets_N, -scaled_ND)
        loss = losses_N.where(counted_N, 0.0).sum() / counted_N.sum()
        return loss, grad_hidden_ND.to(hidden.dtype), grad_weight_VD.to(weight.dtype)


@loss_by_rows.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight = torch.empty_like(weight if wants_weight else weight[:0])
    return hidden.new_empty((), dtype=dtype), torch.empty_like(hidden), grad_weight


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*gradients)
    ctx.wants_weight = inputs[-1]


def _differentiate(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight = ctx.saved_tensors
    scaled_weight = grad_loss * grad_weight if ctx.wants_weight else None
    return grad_loss * grad_hidden, scaled_weight, None, None, None, None


loss_by_rows.register_autograd(_differentiate, setup_context=_keep)
