"""What one forward pass reads and sees: positions, masks, slots of a cache; checked beforehand.

    in_idx, cache, position_ids, cu_seqlens ─► plan ─► ForwardPass: the same for all layers

Checks look at shapes, dtypes and values on the host alone, so that no GPU is waited for. Knows
nothing of weights.
"""

# Tensor names end in their shape: B batch, T tokens, S tokens attended to.

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, DataError, GptrsError, TokenIdError
from gptrs.model.kv_cache import KVCache, Placement
from gptrs.model.layers import Attend, check_num_tokens, masked
from gptrs.model.positions import ScoreBias, rotation

_ADDRESSED = ("learned", "sinusoidal", "rope")


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """How far a pass goes, in every layer alike."""

    position_ids: Tensor
    """int64 or int32 [T] or [B, T]."""
    attend: Attend | None
    """What the layers must be told; None: plainly causal, nothing."""
    placement: Placement | None
    """The slots of the cache, if there is one."""

    def layer(self, index: int, weights: list[Tensor] | None) -> Attend | None:
        """The same for one layer, which appends its attention to `weights` where given."""
        if self.placement is None and weights is None:
            return self.attend
        extend = None if self.placement is None else self.placement.layer(index)
        return replace(self.attend or Attend(), extend=extend, weights=weights)

    def biased(self, bias: ScoreBias, like: Tensor) -> ForwardPass:
        """The same with numbers that all layers add to their scores; dtype and device of `like`."""
        attend = self.attend or Attend()
        num_queries = self.position_ids.shape[-1]
        num_keys = num_queries if self.placement is None else self.placement.end
        scores = bias(num_queries, num_keys, attend.starts, like)
        if scores.ndim == 3:
            scores = scores[None]  # Fused attention on a CPU takes masks with a batch, or none.
        return replace(self, attend=replace(attend, mask=masked(scores, attend)))


def plan(
    cfg: GPTConfig,
    in_idx: Tensor,
    cache: KVCache | None,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
) -> ForwardPass:
    """All that a pass over `in_idx`, [B, T], needs to know before it computes.

    Raises:
        DataError, GenerationError, ConfigError: as in `GPTModel.forward`.
    """
    check_ids("in_idx", in_idx, ndims=(2,))
    batch_size, num_tokens = in_idx.shape
    if position_ids is not None:
        _check_position_ids(cfg, position_ids, batch_size, num_tokens)
    if cache is not None and cu_seqlens is not None:
        raise ConfigError("a forward pass takes a cache or cu_seqlens, not both")
    placement: Placement | None = None
    attend: Attend | None = None
    if cache is not None:
        placement = cache.place(batch_size, num_tokens)
        attend = Attend(placement.mask, placement.is_causal, starts=placement.starts)
        default = placement.position_ids
    else:
        check_num_tokens(num_tokens, cfg.max_tokens)
        if cu_seqlens is not None:
            mask, default = _documents(cu_seqlens, batch_size, num_tokens)
            attend = Attend(mask)
        else:
            default = torch.arange(num_tokens, device=in_idx.device)
    position_ids = default if position_ids is None else position_ids
    if cfg.pos == "rope":
        attend = replace(attend or Attend(), rotation=rotation(position_ids, cfg.head_dim))
    return ForwardPass(position_ids, attend, placement)


def _documents(cu_seqlens: Tensor, batch_size: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The mask, bool [B, 1, T, T], and position ids, [B, T], of documents packed into rows."""
    _check_cu_seqlens(cu_seqlens, batch_size, num_tokens)
    index = torch.arange(batch_size * num_tokens, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, index, right=True) - 1
    position_ids_BT = (index - cu_seqlens[document]).view(batch_size, num_tokens)
    document_BT = document.view(batch_size, num_tokens)
    mask_BTT = (document_BT[:, :, None] == document_BT[:, None, :]).tril()
    return mask_BTT[:, None], position_ids_BT


def check_ids(name: str, ids: Tensor, ndims: tuple[int, ...]) -> None:
    """Raises DataError unless `ids` are integers with one of these numbers of dimensions."""
    if not isinstance(ids, Tensor):
        raise DataError(f"{name} is a {type(ids).__name__}; it must be a tensor of integers")
    if ids.dtype not in (torch.int64, torch.int32):
        raise DataError(f"{name} has dtype {ids.dtype}; it must be torch.int64 or torch.int32")
    if ids.ndim not in ndims:
        expected = "[batch, tokens]" if ndims == (2,) else "[tokens] or [batch, tokens]"
        hint = "; add the batch with unsqueeze(0)" if ids.ndim == 1 else ""
        raise DataError(f"{name} has shape {list(ids.shape)}; it must be {expected}{hint}")


def _check_position_ids(
    cfg: GPTConfig, position_ids: Tensor, batch_size: int, num_tokens: int
) -> None:
    if cfg.pos not in _ADDRESSED:
        raise ConfigError(
            f'position_ids were given, but pos is "{cfg.pos}": only '
            f"{', '.join(_ADDRESSED)} number the tokens"
        )
    check_ids("position_ids", position_ids, ndims=(1, 2))
    if position_ids.shape not in ((num_tokens,), (batch_size, num_tokens)):
        raise DataError(
            f"position_ids has shape {list(position_ids.shape)}; for in_idx of shape "
            f"{[batch_size, num_tokens]} it must be [{num_tokens}] or {[batch_size, num_tokens]}"
        )


def _check_cu_seqlens(cu_seqlens: Tensor, batch_size: int, num_tokens: int) -> None:
    check_ids("cu_seqlens", cu_seqlens, ndims=(1,))
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    bounds = cu_seqlens.tolist()
    end = batch_size * num_tokens
    if not bounds or bounds[0] != 0 or bounds[-1] != end:
        raise DataError(f"cu_seqlens is {bounds}; it must run from 0 to batch * tokens = {end}")
    if bounds != sorted(bounds):
        raise DataError(f"cu_seqlens is {bounds}; it must not decrease")
    for row in range(batch_size):
        if row * num_tokens not in bounds:
            raise DataError(
                f"cu_seqlens is {bounds}; it must have {row * num_tokens}, where row {row} starts"
            )


def check_targets(targets: Tensor, ignore_index: int, *, vocab_size: int) -> None:
    """Raises TokenIdError unless all targets that count are ids, on the CPU.

    A device would have to be waited for; its own indexing checks the bounds.
    """
    if targets.device.type != "cpu":
        return
    wrong = (targets != ignore_index) & ((targets < 0) | (targets >= vocab_size))
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise TokenIdError(
            f"target {int(targets[row])} at row {row} is outside 0..{vocab_size - 1} "
            f"and not ignore_index {ignore_index}"
        )


def look_up(embedding: nn.Embedding, ids: Tensor, what: str, error: type[GptrsError]) -> Tensor:
    """`embedding(ids)`. An id outside is explained after the fact: checking costs nothing."""
    try:
        vectors: Tensor = embedding(ids)
    except IndexError as cause:
        size = embedding.weight.shape[0]
        outside = ((ids < 0) | (ids >= size)).nonzero()
        if not len(outside):
            raise
        index = outside[0].tolist()
        found = int(ids[tuple(index)])
        raise error(f"{what} {found} at {index} is outside 0..{size - 1}") from cause
    return vectors
