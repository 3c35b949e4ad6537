"""The output layer's cross-entropy, a block of the vocabulary after the other.

    forward    for each block of the vocabulary:  p = exp(logits - logit of the target)
                                                  sum += p's row sums
               a row's loss = log(sum)
    backward   for each block:                    p again, or kept where they are few
                                                  grad_hidden += p @ weight[block]
                                                  grad_weight[block] = (hidden / sum).T @ p
               grad_hidden /= sum, and the targets' share of both, which needs no block

The subtraction is one more column of the matmul, [hidden, -shift] @ [weight, 1].T: it costs no pass
over the block, and a bfloat16 block holds differences, rounded finer than the logits would be. Both
passes round the same numbers, so that probabilities sum to 1. No maximum is looked for: the
target's own term keeps a sum at 1 or above, and where one grows too large (a target e^60 times too
unlikely) the pass is repeated with each row's largest logit in the target's place.

Torch's operations, any device; on a CPU two passes that the Rust core makes quicker. Matmuls run in
`dtype`, sums between blocks in float32 at least. `torch.compile` calls both passes as operators and
looks no further.
"""

# N rows (tokens), D emb_dim, V vocab_size, C columns in a block, A = D and the columns of the shift

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrs import _core
from gptrs.config import KEPT_LOGITS_BYTES, KEPT_LOGITS_WIDTH
from gptrs.model.forward_pass import check_targets
from gptrs.model.operators import is_for_core

BLOCK_COLUMNS = 1024
"""Of 512, 1,024 and 2,048 the fastest on processors with 2 MiB of second-level cache a core."""
KEPT_BLOCK_COLUMNS = 4096
"""The same where exponentials leave the cache anyway, to be kept."""
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
    keeps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and for the backward pass: each row's shift and sum(exp(logits - shift)), [N].

    And where `keeps`, exp(logits - shift), [blocks, N * C]; else an empty tensor.
    """
    check_targets(targets, ignore_index, vocab_size=len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        hidden_ND = hidden.to(dtype)
        counted_N = targets != ignore_index
        targets_N = targets.where(counted_N, 0)
        sum_dtype = torch.promote_types(dtype, torch.float32)
        target_weight_ND = weight[targets_N].to(dtype).to(sum_dtype)
        target_logits_N = (hidden_ND.to(sum_dtype) * target_weight_ND).sum(dim=1)

        kept = _room(hidden_ND, weight, block_columns, keeps)
        shift_N = target_logits_N
        sum_N = _sum_exp(hidden_ND, weight, shift_N, block_columns, kept)
        if (sum_N > _LARGEST_SUM).any():
            shift_N = _largest_logits(hidden_ND, weight, shift_N, block_columns)
            sum_N = _sum_exp(hidden_ND, weight, shift_N, block_columns, kept)
        # Rounding may take a certain prediction's loss below zero.
        losses_N = (shift_N - target_logits_N + sum_N.log()).clamp_min(0.0)
        loss = losses_N.where(counted_N, 0.0).sum() / counted_N.sum()
        return loss, shift_N.clone(), sum_N, kept


@torch.library.custom_op("gptrs::linear_cross_entropy_backward", mutates_args=())
def _backward(
    grad_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shift_N: Tensor,
    sum_N: Tensor,
    kept: Tensor,
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
        for first, weight_CD, exp_NC in _exponentials(
            hidden.to(dtype), weight, shift_N, block_columns, kept
        ):
            grad_hidden_ND += exp_NC @ weight_CD
            if wants_weight:
                # Half the time of exp.T @ hidden in bfloat16, whose kernels want rows.
                _turn(scaled_DN @ exp_NC, grad_weight_VD[first : first + exp_NC.shape[1]])

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
    keeps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Not `len`, here and below: it is an int, and fixes what the compiler knows as a symbol.
    per_row = hidden.new_empty(hidden.shape[0], dtype=torch.promote_types(dtype, torch.float32))
    kept = _room(hidden.new_empty(hidden.shape, dtype=dtype), weight, block_columns, keeps)
    return per_row.new_empty(()), per_row, torch.empty_like(per_row), kept


@_backward.register_fake
def _(
    grad_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shift_N: Tensor,
    sum_N: Tensor,
    kept: Tensor,
    ignore_index: int,
    dtype: torch.dtype,
    block_columns: int,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight if wants_weight else weight[:0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, *ctx.settings, _ = inputs
    _, *for_backward = output
    ctx.mark_non_differentiable(*for_backward)
    ctx.set_materialize_grads(False)  # No zeros for what has no gradient.
    ctx.save_for_backward(hidden, weight, targets, *for_backward)


def _differentiate(
    ctx: Any, grad_loss: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 7
    wants_weight = ctx.needs_input_grad[1]
    grad_hidden, grad_weight = _backward(grad_loss, *ctx.saved_tensors, *ctx.settings, wants_weight)
    return grad_hidden, grad_weight if wants_weight else None, None, None, None, None, None


loss_by_columns.register_autograd(_differentiate, setup_context=_keep)


def keeps_exponentials(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether what the gradient needs is better kept than computed again."""
    num_bytes = hidden.shape[0] * weight.shape[0] * dtype.itemsize
    return hidden.shape[1] >= KEPT_LOGITS_WIDTH and num_bytes <= KEPT_LOGITS_BYTES


def _room(hidden_ND: Tensor, weight_VD: Tensor, block_columns: int, keeps: bool) -> Tensor:
    """Where all exponentials are kept, [blocks, N * C], or nothing."""
    num_rows, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
    columns = min(block_columns, vocab_size)
    num_blocks = -(-vocab_size // columns)
    return hidden_ND.new_empty((num_blocks, num_rows * columns) if keeps else (0, 0))


def _sum_exp(
    hidden_ND: Tensor, weight_VD: Tensor, shift_N: Tensor, block_columns: int, kept: Tensor
) -> Tensor:
    """sum(exp(logits - shift)) of each row, [N]; the exponentials go where they are kept."""
    sum_N = torch.zeros_like(shift_N)
    for _, _, logits_NC in _shifted_logits(hidden_ND, weight_VD, shift_N, block_columns, kept):
        if is_for_core(logits_NC):
            _core.exp_and_sum(logits_NC, sum_N, threads=torch.get_num_threads())
        else:
            sum_N += logits_NC.exp_().sum(dim=1)
    return sum_N


def _exponentials(
    hidden_ND: Tensor, weight_VD: Tensor, shift_N: Tensor, block_columns: int, kept: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each block of the vocabulary its first id, its weights and exp(logits - shift)."""
    if len(kept):
        for first, weight_CA in _weights(hidden_ND, weight_VD, block_columns):
            exp_NC = _block(kept[first // block_columns], len(hidden_ND), len(weight_CA))
            yield first, weight_CA[:, : hidden_ND.shape[1]], exp_NC
        return
    unused_N = torch.zeros_like(shift_N)
    blocks = _shifted_logits(hidden_ND, weight_VD, shift_N, block_columns, kept)
    for first, weight_CD, logits_NC in blocks:
        # By the same operation as before, so that both passes round alike.
        if is_for_core(logits_NC):
            _core.exp_and_sum(logits_NC, unused_N, threads=torch.get_num_threads())
        else:
            logits_NC.exp_()
        yield first, weight_CD, logits_NC


def _turn(source_DC: Tensor, target_CD: Tensor) -> None:
    """The target becomes the source, turned."""
    if is_for_core(source_DC) and is_for_core(target_CD):
        _core.turn(source_DC, target_CD, threads=torch.get_num_threads())
    else:
        target_CD.copy_(source_DC.T)


def _largest_logits(
    hidden_ND: Tensor, weight_VD: Tensor, shift_N: Tensor, block_columns: int
) -> Tensor:
    """The largest logit of each row, [N], rounded as a block's logits minus `shift_N` are."""
    no_room = hidden_ND.new_empty(0, 0)
    blocks = _shifted_logits(hidden_ND, weight_VD, shift_N, block_columns, no_room)
    largest_BN = torch.stack([logits_NC.amax(dim=1) for _, _, logits_NC in blocks])
    return shift_N + largest_BN.amax(dim=0)


def _shifted_logits(
    hidden_ND: Tensor, weight_VD: Tensor, shift_N: Tensor, block_columns: int, kept: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each block of the vocabulary its first id, its weights and its logits minus the shift.

    Computes in hidden's dtype. Logits lie where they are kept; if nowhere, both tensors are
    overwritten by the next block's: all take the same place in the cache.
    """
    num_rows, emb_dim = hidden_ND.shape
    # In bfloat16 the shift's first 8 bits and the next 8; else all of it, and zero.
    high_N = shift_N.to(hidden_ND.dtype)
    hidden_NA = F.pad(hidden_ND, (0, _SHIFT_COLUMNS))
    hidden_NA[:, emb_dim] = -high_N
    hidden_NA[:, emb_dim + 1] = high_N - shift_N

    is_kept = len(kept) > 0
    place = (
        kept if is_kept else hidden_ND.new_empty(1, num_rows * min(block_columns, len(weight_VD)))
    )
    for first, weight_CA in _weights(hidden_ND, weight_VD, block_columns):
        block = place[first // block_columns if is_kept else 0]
        logits_NC = _block(block, num_rows, len(weight_CA))
        torch.mm(hidden_NA, weight_CA.T, out=logits_NC)
        yield first, weight_CA[:, :emb_dim], logits_NC


def _weights(
    hidden_ND: Tensor, weight_VD: Tensor, block_columns: int
) -> Iterator[tuple[int, Tensor]]:
    """For each block its first id and its weights, with ones behind them, in hidden's dtype.

    They are overwritten by the next block's.
    """
    emb_dim = hidden_ND.shape[1]
    weights = hidden_ND.new_ones(min(block_columns, len(weight_VD)), emb_dim + _SHIFT_COLUMNS)
    for first in range(0, len(weight_VD), block_columns):
        block_CD = weight_VD[first : first + block_columns]
        weight_CA = weights[: len(block_CD)]
        weight_CA[:, :emb_dim] = block_CD
        yield first, weight_CA


def _block(place: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """[N, C] at the beginning of a place that may be longer."""
    return place[: num_rows * num_columns].view(num_rows, num_columns)
