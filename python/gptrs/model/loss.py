"""The output layer and its cross-entropy in one step, without a [N, V] tensor of many logits.

With GPT-2's 50,257 ids the logits of one batch are larger than a whole small model, and moving them
through memory costs more than computing them. So they are made a block at a time and thrown away:

    loss_by_columns    the logits of 1,024 ids, small enough to stay in the processor's cache; those
                       of few, wide rows are kept for the gradient, 256 MiB at most
    loss_by_rows       those of 512 tokens, for float32's slow matmuls: three of them, not four
    torch              its own kernel, on a GPU where it has one
"""

# N rows (tokens), D emb_dim, V vocab_size

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrs.errors import ConfigError, DataError
from gptrs.model.forward_pass import check_targets
from gptrs.model.gpt import GPTModel
from gptrs.model.layers import is_stock
from gptrs.model.loss_by_columns import (
    BLOCK_COLUMNS,
    KEPT_BLOCK_COLUMNS,
    keeps_exponentials,
    loss_by_columns,
)
from gptrs.model.loss_by_rows import loss_by_rows

IGNORE_INDEX = -100
ROWS_FROM_WIDTH = 512
"""From here on rows are cut where matmuls are float32 or wider. At 128, columns are faster."""


def next_token_loss(
    model: nn.Module,
    in_idx: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of `model`'s next-token predictions, a scalar: what `train` minimises.

    Equal to `F.cross_entropy(model(in_idx).flatten(0, 1), targets.flatten())` to rounding, and
    computed like that where the model is no plain GPTModel (wrapped, hooked, in shards) or its
    `out_head` no plain, bias-free `nn.Linear`: whatever stands there is called.

    Of a GPTModel, positions that do not count get no logits. On a GPU, which would have to be
    waited for to know how many these are, that is so with `cu_seqlens`: an instruction's prompt
    is most of it, while plain text counts everywhere.

    Args:
        in_idx: int64 [B, T].
        targets: int64 [B, T]; `ignore_index` where a position does not count.
        cu_seqlens: int32, where documents start and end, as `GPTModel.forward` takes it.
    Raises:
        DataError: there is not one target for each token.
    """
    targets_N = targets.flatten()
    # A model that is not ours need not know the name.
    documents: dict[str, Any] = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
    if is_stock(model, GPTModel):
        stock = cast(GPTModel, model)
        hidden_BTD = stock.hidden_states(in_idx, **documents)
        _check_one_each(targets, hidden_BTD.shape[:-1])
        hidden_ND = hidden_BTD.flatten(0, 1)
        if in_idx.device.type == "cpu" or cu_seqlens is not None:
            hidden_ND, targets_N = _counted(hidden_ND, targets_N, ignore_index, stock.out_head)
        if _is_plain_projection(stock.out_head) and _matmul_dtype(hidden_ND) != torch.float16:
            return linear_cross_entropy(
                hidden_ND, stock.out_head.weight, targets_N, ignore_index=ignore_index
            )
        logits_NV: Tensor = stock.out_head(hidden_ND)
    else:
        logits_BTV = model(in_idx, **documents)
        _check_one_each(targets, logits_BTV.shape[:-1])
        logits_NV = logits_BTV.flatten(0, 1)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return F.cross_entropy(logits_NV, targets_N, ignore_index=ignore_index)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    dtype: torch.dtype | None = None,
    block_columns: int | None = None,
) -> Tensor:
    """`F.cross_entropy(hidden @ weight.T, targets)` in little memory: mean over the counted rows.

    Args:
        hidden: [N, D], floating point.
        weight: [V, D], the output layer's.
        targets: int64 [N], each in 0..V, or `ignore_index`. With no row counted the loss is nan.
        dtype: of the matmuls: float64, float32 or bfloat16. By default autocast's where autocast is
            on, else the inputs'.
        block_columns: how many ids' logits are computed at a time, where columns are cut; None: so
            many that they stay in cache or, where exponentials are kept for the gradient (at most
            256 MiB of them), more.
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
    if block_columns is not None and block_columns < 1:
        raise ConfigError(f"block_columns must be at least 1, found {block_columns}")
    dtype = dtype or _matmul_dtype(hidden)
    if dtype not in (torch.float64, torch.float32, torch.bfloat16):
        # float16 would round most probabilities of a large vocabulary to zero.
        raise ConfigError(
            f"linear_cross_entropy computes in float64, float32 or bfloat16, not {dtype}"
        )
    if _torch_is_at_home(hidden):
        return _by_torch(hidden.to(dtype), weight.to(dtype), targets, ignore_index)
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if wants_gradient and dtype != torch.bfloat16 and hidden.shape[1] >= ROWS_FROM_WIDTH:
        by_rows = loss_by_rows(hidden, weight, targets, ignore_index, dtype, weight.requires_grad)
        return cast(Tensor, by_rows[0])
    keeps = wants_gradient and keeps_exponentials(hidden, weight, dtype)
    block_columns = block_columns or (KEPT_BLOCK_COLUMNS if keeps else BLOCK_COLUMNS)
    by_columns = loss_by_columns(hidden, weight, targets, ignore_index, dtype, block_columns, keeps)
    return cast(Tensor, by_columns[0])


def _check_one_each(targets: Tensor, inputs_shape: torch.Size) -> None:
    """Raises DataError unless there is one target for each token."""
    if targets.shape != inputs_shape:
        hint = ": a classifier's loss is yours (the book's chapter 6)" if targets.ndim == 1 else ""
        raise DataError(f"targets are {list(targets.shape)}, inputs {list(inputs_shape)}{hint}")


def _counted(
    hidden_ND: Tensor, targets_N: Tensor, ignore_index: int, head: nn.Module
) -> tuple[Tensor, Tensor]:
    """Both without the rows that do not count; as they are where all count, or none."""
    if torch.compiler.is_compiling():  # A number of rows that depends on data would break a graph.
        return hidden_ND, targets_N
    counted_N = targets_N != ignore_index
    num_counted = int(counted_N.sum())
    if num_counted in (0, len(targets_N)) or len(targets_N) != len(hidden_ND):
        return hidden_ND, targets_N
    if isinstance(head, nn.Linear):  # Now, while rows have their own numbers.
        check_targets(targets_N, ignore_index, vocab_size=head.out_features)
    places_M = counted_N.nonzero().flatten()
    return hidden_ND.index_select(0, places_M), targets_N[places_M]


def _torch_is_at_home(hidden: Tensor) -> bool:
    """Whether `F.linear_cross_entropy` exists (torch 2.15) and `hidden` is where it is at home."""
    return hidden.is_cuda and hasattr(F, "linear_cross_entropy")


def _by_torch(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """`F.linear_cross_entropy`, a few rows at a time: no [N, V] tensor. Not yet run on a GPU."""
    options = nn.LinearCrossEntropyOptions()
    loss: Tensor = F.linear_cross_entropy(
        hidden, weight, targets, ignore_index=ignore_index, options=options
    )
    return loss.to(torch.promote_types(loss.dtype, torch.float32))


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _is_plain_projection(layer: nn.Module) -> bool:
    """Whether `layer` only multiplies by its weight, so that calling it may be skipped."""
    return is_stock(layer, nn.Linear) and layer.bias is None
