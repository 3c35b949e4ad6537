"""The output layer's cross-entropy, a block of the vocabulary after the other.

    forward    for each block of the vocabulary:  p = exp(logits - logit of the target)
                                                  sum += p's row sums
               a row's loss = log(sum)
    backward   for each block again:              p = exp(logits - logit of the target)
                                                  grad_hidden += p @ weight[block]
                                                  grad_weight[block] = (hidden / sum).T @ p
               grad_hidden /= sum, and the targets' share of both, which needs no block

The subtraction is one more column of the matmul, [hidden, -shift] @ [weight, 1].T: it costs no pass
over the block, and a bfloat16 block holds differences, rounded finer than the logits would be. Both
passes round the same numbers, so that probabilities sum to 1. No maximum is looked for: the
target's own term keeps a sum at 1 or above, and where one grows too large (a target e^60 times too
unlikely) the pass is repeated with each row's largest logit in the target's place.

Plain torch operations, any device. Matmuls run in `dtype`, sums between blocks in float32 at least.
`torch.compile` calls both passes as operators and looks no further.
"""

# N rows (tokens), D emb_dim, V vocab_size, C columns in a block, A = D and the columns of the shift

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrs.model.forward_pass import check_targets

BLOCK_COLUMNS = 1024
"""Of 512, 1,024 and 2,048 the fastest on processors with 2 MiB of second-level cache a core."""
_SHIFT_COLUMNS = 8
"""Two are used, the others keep bfloat16's rows aligned to 16 bytes."""
_LARGEST_SUM = 1e26
"""Well inside what float32 and bfloat16 hold, as is its inverse times a gradient."""


@torch.library.custom_op("gptrs::linear_cross_entropy", mutates_args=())
def loss_by_columns(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    block_columns: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and for the backward pass each row's shift and sum(exp(logits - shift)), [N]."""
    check_targets(targets, ignore_index, vocab_size=len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        hidden_ND = hidden.to(dtype)
        counted_N = targets != ignore_index
        targets_N = targets.where(counted_N, 0)
        sum_dtype = torch.promote_types(dtype, torch.float32)
        target_weight_ND = weight[targets_N].to(dtype).to(sum_dtype)
        target_logits_N = (hidden_ND.to(sum_dtype) * target_weight_ND).sum(dim=1)

        shift_N = target_logits_N
        sum_N = _sum_exp(hidden_ND, weight, shift_N, block_columns)
        if (sum_N > _LARGEST_SUM).any():
            shift_N = _largest_logits(hidden_ND, weight, shift_N, block_columns)
            sum_N = _sum_exp(hidden_ND, weight, shift_N, block_columns)
        # Rounding may take a certain prediction's loss below zero.
        losses_N = (shift_N - target_logits_N + sum_N.log()).clamp_min(0.0)
        loss = losses_N.where(counted_N, 0.0).sum() / counted_N.sum()
        return loss, shift_N.clone(), sum_N


@torch.library.custom_op("gptrs::linear_cross_entropy_backward", mutates_args=())
def _backward(
    grad_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shift_N: Tensor,
    sum_N: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    block_columns: int,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of hidden, and of weight or, where that is not wanted, an empty tensor."""
    with torch.autocast(hidden.device.type, enabled=False):
        counted_N = targets != ignore_index
        targets_N = targets.where(counted_N, 0)
        # A row's weight in the mean, and what turns its exponentials into probabilities times that.
        row_weight_N1 = ((grad_loss / counted_N.sum()) * counted_N).unsqueeze(-1)
        factor_N1 = row_weight_N1 / sum_N.unsqueeze(-1)
        scaled_DN = (factor_N1 * hidden).to(dtype).T.contiguous()

        grad_hidden_ND = torch.zeros_like(hidden, dtype=sum_N.dtype)
        grad_weight_VD = torch.empty_like(weight if wants_weight else weight[:0])
        blocks = _shifted_logits(hidden.to(dtype), weight, shift_N, block_columns)
        for first, weight_CD, logits_NC in blocks:
            exp_NC = logits_NC.exp_()
            grad_hidden_ND += exp_NC @ weight_CD
            if wants_weight:
                # Half the time of exp.T @ hidden in bfloat16, whose kernels want rows.
                grad_DC = scaled_DN @ exp_NC
                grad_weight_VD[first : first + grad_DC.shape[1]] = grad_DC.T

        grad_hidden_ND = factor_N1 * grad_hidden_ND - row_weight_N1 * weight[targets_N]
        if wants_weight:
            grad_weight_VD.index_add_(0, targets_N, (-row_weight_N1 * hidden).to(weight.dtype))
        return grad_hidden_ND.to(hidden.dtype), grad_weight_VD


@loss_by_columns.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    block_columns: int,
) -> tuple[Tensor, Tensor, Tensor]:
    per_row = hidden.new_empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
    return per_row.new_empty(()), per_row, torch.empty_like(per_row)


@_backward.register_fake
def _(
    grad_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shift_N: Tensor,
    sum_N: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    block_columns: int,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight if wants_weight else weight[:0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, *ctx.settings = inputs
    _, *per_row = output
    ctx.mark_non_differentiable(*per_row)
    ctx.save_for_backward(hidden, weight, targets, *per_row)


def _differentiate(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wants_weight = ctx.needs_input_grad[1]
    grad_hidden, grad_weight = _backward(grad_loss, *ctx.saved_tensors, *ctx.settings, wants_weight)
    return grad_hidden, grad_weight if wants_weight else None, None, None, None, None


loss_by_columns.register_autograd(_differentiate, setup_context=_keep)


def _sum_exp(hidden_ND: Tensor, weight_VD: Tensor, shift_N: Tensor, block_columns: int) -> Tensor:
    """sum(exp(logits - shift)) of each row, [N]."""
    sum_N = torch.zeros_like(shift_N)
    for _, _, logits_NC in _shifted_logits(hidden_ND, weight_VD, shift_N, block_columns):
        sum_N += logits_NC.exp_().sum(dim=1)
    return sum_N


def _largest_logits(
    hidden_ND: Tensor, weight_VD: Tensor, shift_N: Tensor, block_columns: int
) -> Tensor:
    """The largest logit of each row, [N], rounded as a block's logits minus `shift_N` are."""
    blocks = _shifted_logits(hidden_ND, weight_VD, shift_N, block_columns)
    largest_BN = torch.stack([logits_NC.amax(dim=1) for _, _, logits_NC in blocks])
    return shift_N + largest_BN.amax(dim=0)


def _shifted_logits(
    hidden_ND: Tensor, weight_VD: Tensor, shift_N: Tensor, block_columns: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each block of the vocabulary its first id, its weights and its logits minus the shift.

    Computes in hidden's dtype. Both tensors are overwritten by the next block's, so that all blocks
    take the same place in the cache, and no memory is asked for in between.
    """
    num_rows, emb_dim = hidden_ND.shape
    vocab_size = len(weight_VD)
    block_columns = min(block_columns, vocab_size)
    # In bfloat16 the shift's first 8 bits and the next 8; else all of it, and zero.
    high_N = shift_N.to(hidden_ND.dtype)
    hidden_NA = F.pad(hidden_ND, (0, _SHIFT_COLUMNS))
    hidden_NA[:, emb_dim] = -high_N
    hidden_NA[:, emb_dim + 1] = high_N - shift_N

    weights = hidden_ND.new_ones(block_columns, emb_dim + _SHIFT_COLUMNS)
    logits = hidden_ND.new_empty(num_rows * block_columns)
    for first in range(0, vocab_size, block_columns):
        block_CD = weight_VD[first : first + block_columns]
        num_columns = len(block_CD)
        weight_CA = weights[:num_columns]
        weight_CA[:, :emb_dim] = block_CD
        logits_NC = logits[: num_rows * num_columns].view(num_rows, num_columns)
        torch.mm(hidden_NA, weight_CA.T, out=logits_NC)
        yield first, weight_CA[:, :emb_dim], logits_NC
