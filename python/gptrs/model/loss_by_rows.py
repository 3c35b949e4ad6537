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

from gptrs import _core
from gptrs.model.forward_pass import check_targets
from gptrs.model.linear import matmul
from gptrs.model.operators import is_for_core

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
        # Zeros only where no first block overwrites them: they take time, too.
        new_like = torch.empty_like if len(hidden) else torch.zeros_like
        grad_weight_VD = new_like(weight_VD if wants_weight else weight_VD[:0])
        room_RV = hidden_ND.new_empty(min(BLOCK_ROWS, len(hidden)), len(weight))
        losses_N = torch.empty_like(row_weight_N)
        for first in range(0, len(hidden), BLOCK_ROWS):
            block = slice(first, first + BLOCK_ROWS)
            p_RV = room_RV[: len(hidden_ND[block])]
            matmul(hidden_ND[block], weight_VD.T, p_RV)
            _to_probabilities(p_RV, targets_N[block], losses_N[block])
            matmul(p_RV, weight_VD, grad_hidden_ND[block])
            if wants_weight:
                matmul(p_RV.T, scaled_ND[block], grad_weight_VD, adds=first > 0)
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


def _to_probabilities(logits_RV: Tensor, targets_R: Tensor, losses_R: Tensor) -> None:
    """The logits become probabilities, the losses minus the logarithms of the targets'."""
    if logits_RV.dtype == torch.float32 and is_for_core(logits_RV):
        threads = torch.get_num_threads()
        _core.softmax_and_losses(logits_RV, targets_R, losses_R, threads=threads)
        return
    log_p_RV = logits_RV.log_softmax(dim=1)
    losses_R.copy_(-log_p_RV.gather(1, targets_R[:, None])[:, 0])
    torch.exp(log_p_RV, out=logits_RV)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*inputs[:3])
    ctx.settings, ctx.gradients = inputs[3:], gradients


def _differentiate(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradients, wants_weight = ctx.gradients, ctx.settings[-1]
    if gradients is None:
        _, *gradients = loss_by_rows(*ctx.saved_tensors, *ctx.settings)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        gradients = [grad_loss * gradient for gradient in gradients]
    else:
        # Copies of what is as large as the table take time. Whoever comes again makes new ones.
        ctx.gradients = None
        gradients = [gradient.mul_(grad_loss) for gradient in gradients]
    to_hidden, to_weight = gradients
    return to_hidden, to_weight if wants_weight else None, None, None, None, None


loss_by_rows.register_autograd(_differentiate, setup_context=_keep)
