"""The output layer and its cross-entropy in one step, without a [N, V] tensor of logits.

With GPT-2's 50,257 ids the logits of one batch are larger than a whole small model, and moving them
through memory costs more than computing them. So they are made a block of columns at a time, small
enough to stay in the processor's cache, and thrown away:

    forward    for each block of the vocabulary:  logits = hidden @ weight[block].T
                                                  block_lse[block] = logsumexp(logits)
               lse = logsumexp(block_lse);  loss = mean(lse - logit of the target)
    backward   for each block again:              p = softmax(logits) * exp(block_lse[block] - lse)
                                                  grad_hidden += p @ weight[block]
                                                  grad_weight[block] = p.T @ hidden
               and the targets' share of both gradients, which needs no block

Plain torch operations, any device. Matmuls run in `dtype`, sums between blocks in float32 at least.
"""

# N rows (tokens), D emb_dim, V vocab_size, C columns in a block

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrs.errors import ConfigError, TokenIdError

if TYPE_CHECKING:
    from gptrs.model import GPTModel

IGNORE_INDEX = -100
BLOCK_COLUMNS = 1024
"""Of 512, 1,024 and 2,048 the fastest on processors with 2 MiB of second-level cache a core."""


def next_token_loss(
    model: "GPTModel", in_idx: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Mean cross-entropy of `model`'s next-token predictions, a scalar: what `train` minimises.

    Equal to `F.cross_entropy(model(in_idx).flatten(0, 1), targets.flatten())` to rounding. An
    `out_head` that is no plain, bias-free `nn.Linear`, or has hooks, is called like any module.

    Args:
        in_idx: int64 [B, T].
        targets: int64 [B, T]; `ignore_index` where a position does not count.
    """
    hidden_ND = model.hidden_states(in_idx).flatten(0, 1)
    targets_N = targets.flatten()
    if _is_plain_projection(model.out_head) and _matmul_dtype(hidden_ND) != torch.float16:
        return linear_cross_entropy(
            hidden_ND, model.out_head.weight, targets_N, ignore_index=ignore_index
        )
    logits_NV = model.out_head(hidden_ND)
    return F.cross_entropy(logits_NV.float(), targets_N, ignore_index=ignore_index)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    dtype: torch.dtype | None = None,
    block_columns: int = BLOCK_COLUMNS,
) -> Tensor:
    """`F.cross_entropy(hidden @ weight.T, targets)` in little memory: mean over the counted rows.

    Args:
        hidden: [N, D], floating point.
        weight: [V, D], the output layer's.
        targets: int64 [N], each in 0..V, or `ignore_index`. With no row counted the loss is nan.
        dtype: of the matmuls: float64, float32 or bfloat16. By default autocast's where autocast is
            on, else the inputs'.
        block_columns: how many ids' logits exist at a time.
    Returns:
        A scalar, float64 for float64 matmuls, else float32; differentiable once.
    Raises:
        ConfigError: the shapes do not fit together, or dtype is not one of the three.
        TokenIdError: a target is outside the vocabulary.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ConfigError(
            "linear_cross_entropy needs hidden [N, D] and weight [V, D]; "
            f"found {list(hidden.shape)} and {list(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1]:
        raise ConfigError(
            f"linear_cross_entropy needs one target a row: {hidden.shape[0]} rows, "
            f"targets {list(targets.shape)}"
        )
    if block_columns < 1:
        raise ConfigError(f"block_columns must be at least 1, found {block_columns}")
    dtype = dtype or _matmul_dtype(hidden)
    if dtype not in (torch.float64, torch.float32, torch.bfloat16):
        # float16 would round most probabilities of a large vocabulary to zero.
        raise ConfigError(
            f"linear_cross_entropy computes in float64, float32 or bfloat16, not {dtype}"
        )
    _check_targets(targets, ignore_index, vocab_size=weight.shape[0])
    loss: Tensor = _LinearCrossEntropy.apply(
        hidden, weight, targets, ignore_index, dtype, block_columns
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The two passes of the module's header."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        dtype: torch.dtype,
        block_columns: int,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            hidden_ND, weight_VD = hidden.to(dtype), weight.to(dtype)
            sum_dtype = torch.promote_types(dtype, torch.float32)
            block_lse = torch.stack(
                [
                    torch.logsumexp((hidden_ND @ block_CD.T).to(sum_dtype), dim=1)
                    for block_CD in weight_VD.split(block_columns)
                ]
            )
            lse_N = torch.logsumexp(block_lse, dim=0)

            counted_N = targets != ignore_index
            targets_N = targets.where(counted_N, 0)
            # Rounded as a block's logits are, so that no row's loss falls below zero.
            target_logits_N = (
                (hidden_ND.to(sum_dtype) * weight_VD[targets_N].to(sum_dtype)).sum(dim=1).to(dtype)
            )
            num_counted = counted_N.sum()
            losses_N = (lse_N - target_logits_N).where(counted_N, 0.0)

        ctx.save_for_backward(
            hidden_ND, weight_VD, targets_N, counted_N, num_counted, block_lse, lse_N
        )
        ctx.block_columns, ctx.weight_dtype = block_columns, weight.dtype
        return losses_N.sum() / num_counted

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, counted_N, num_counted, block_lse, lse_N = (
            ctx.saved_tensors
        )
        dtype, sum_dtype = hidden_ND.dtype, lse_N.dtype
        with torch.autocast(hidden_ND.device.type, enabled=False):
            # A row's weight in the mean; times a block's share of the row's probability, a factor
            # that turns the block's own softmax into probabilities over the whole vocabulary.
            row_weight_N = (grad_loss / num_counted).to(sum_dtype) * counted_N
            factors = torch.exp(block_lse - lse_N) * row_weight_N

            grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=sum_dtype)
            grad_weight_VD = torch.empty_like(weight_VD, dtype=ctx.weight_dtype)
            blocks = zip(
                weight_VD.split(ctx.block_columns),
                grad_weight_VD.split(ctx.block_columns),
                factors.unsqueeze(-1),
                strict=True,
            )
            for weight_CD, grad_CD, factor_N1 in blocks:
                probs_NC = torch.softmax(hidden_ND @ weight_CD.T, dim=1)
                grad_hidden_ND += factor_N1 * (probs_NC @ weight_CD)
                grad_CD.copy_(probs_NC.T @ (factor_N1 * hidden_ND).to(dtype))

            row_weight_N1 = row_weight_N.unsqueeze(-1)
            grad_hidden_ND -= row_weight_N1 * weight_VD[targets_N]
            grad_weight_VD.index_add_(
                0, targets_N, (-row_weight_N1 * hidden_ND).to(ctx.weight_dtype)
            )
        return grad_hidden_ND, grad_weight_VD, None, None, None, None


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _is_plain_projection(layer: nn.Module) -> bool:
    """Whether `layer` only multiplies by its weight, so that calling it may be skipped."""
    return (
        type(layer) is nn.Linear
        and layer.bias is None
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and not hasattr(layer, "parametrizations")
    )


def _check_targets(targets: Tensor, ignore_index: int, *, vocab_size: int) -> None:
    if targets.device.type != "cpu":
        return  # Reading them back would stall the device; its own indexing checks the bounds.
    wrong = (targets != ignore_index) & ((targets < 0) | (targets >= vocab_size))
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise TokenIdError(
            f"target {int(targets[row])} at row {row} is outside 0..{vocab_size - 1} "
            f"and not ignore_index {ignore_index}"
        )
