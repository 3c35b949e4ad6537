"""The parts of a block: LayerNorm, GELU, feed-forward, attention, and the block itself.

    block:  x ─┬─► norm1 ─► att ─► drop_resid ─► + ─┬─► norm2 ─► ff ─► drop_resid ─► + ─►
               └─────────────────────────────────┘  └────────────────────────────────┘

The book's classes by name, argument, construction order and state_dict key; PyTorch's native
LayerNorm, GELU and scaled-dot-product attention inside, equal to the book's formulas to rounding.
Every layer is called as a module, so hooks, LoRA and replaced layers work. Each class works alone.
"""

# Tensor names end in their shape: B batch, T tokens, S tokens attended to, D emb_dim, H heads,
# K head_dim.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.config import ConfigLike, GPTConfig
from gptrs.errors import ConfigError, DataError
from gptrs.model import operators
from gptrs.model.dropout import SeededDropout
from gptrs.model.linear import Linear, is_plain
from gptrs.model.positions import LayerPositions, Rotation, layer_positions, rotate

if TYPE_CHECKING:
    from gptrs.model.kv_cache import ExtendLayer

JOINED_QKV_DEVICES = frozenset({"cuda"})
"""Where one product with the query's, key's and value's weights beats three. On a CPU it does not:
0.92 to 1.08 times as fast, with 1,024 and 4,096 tokens of 768 numbers, in float32 and bfloat16."""
FEW_TOKENS = 256
"""Up to so many, torch's gradient of attention over bfloat16 is slow on any CPU."""
MANY_NUMBERS = 1 << 16
"""From so many on, calling an operator of our own costs less than it saves."""


@dataclass(frozen=True, slots=True)
class Attend:
    """How a layer attends where it is not plainly causal over its own input."""

    mask: Tensor | None = None
    """bool [T, S] or [B, 1, T, S], True where token t sees token s; or numbers that are added to
    the scores, [H, T, S] or [B, H, T, S], -inf where it does not. None: see `is_causal`."""
    is_causal: bool = True
    """Without a mask, whether token t sees tokens 0..t (T = S), or all."""
    extend: ExtendLayer | None = None
    """Takes the new keys and values, returns them behind the cached ones."""
    weights: list[Tensor] | None = None
    """A list to which the layer appends its attention weights [B, H, T, S]."""
    rotation: Rotation | None = None
    """By what queries and new keys are turned."""
    starts: Tensor | None = None
    """int64 [B], how many tokens precede the new ones where rows differ. None: S - T in each."""


class LayerNorm(nn.Module):
    """Mean 0 and biased variance 1 over the last dimension, then scale and shift (eps 1e-5)."""

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., emb_dim], kept."""
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016), as GPT-2 has it."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, element by element."""
        # The compiler is asked first: behind it, a comparison of sizes compiles both its answers.
        if not torch.compiler.is_compiling() and _trains_on_cpu(x) and x.numel() >= MANY_NUMBERS:
            return operators.gelu(x)
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Linear to 4 * emb_dim, GELU, Linear back; each token by itself."""

    def __init__(self, cfg: ConfigLike) -> None:
        super().__init__()
        if isinstance(cfg, Mapping):  # Without heads, any width will do.
            cfg = {"n_heads": 1, **cfg}
        emb_dim = GPTConfig.of(cfg).emb_dim
        self.layers = nn.Sequential(
            Linear(emb_dim, 4 * emb_dim), GELU(), Linear(4 * emb_dim, emb_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., emb_dim] to [..., emb_dim]."""
        out: Tensor = self.layers(x)
        return out


class MultiHeadAttention(nn.Module):
    """Causal self-attention in `num_heads` heads, [B, T, d_in] to [B, T, d_out].

    Args:
        context_length: most tokens it takes; None: any number.
        positions: what the layer itself adds to its scores.
        scale: of the scores; None: 1 / sqrt(head_dim).
    Raises:
        ConfigError: d_out is not a multiple of num_heads.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int | None,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        *,
        positions: LayerPositions | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if d_out % num_heads:
            raise ConfigError(f"d_out {d_out} is not a multiple of num_heads {num_heads}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.context_length = context_length
        self.scale = 1 / math.sqrt(self.head_dim) if scale is None else scale
        self.W_query = Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.positions = positions
        self.register_load_state_dict_pre_hook(_drop_mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """Attends over `x`, [B, T, d_in], or as `attend` says.

        Raises:
            DataError: x is not [B, T, d_in], or has more than context_length tokens.
        """
        if x.ndim != 3:
            hint = "; add the batch with unsqueeze(0)" if x.ndim == 2 else ""
            raise DataError(f"x has shape {list(x.shape)}; it must be [batch, tokens, d_in]{hint}")
        check_num_tokens(x.shape[1], self.context_length)
        attend = attend or Attend()
        q_BHTK, k_BHSK, v_BHSK = map(self._split_heads, self._project(x))
        if attend.rotation is not None:
            q_BHTK = rotate(q_BHTK, attend.rotation)
            k_BHSK = rotate(k_BHSK, attend.rotation)
        if attend.extend is not None:
            k_BHSK, v_BHSK = attend.extend(k_BHSK, v_BHSK)
        mask = attend.mask
        if self.positions is not None:
            q_BHTK, terms_BHTS = self.positions(q_BHTK, k_BHSK, attend.starts)
            mask = masked(terms_BHTS * self.scale, attend)
        elif mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q_BHTK.dtype)
        attention = self._explicit if self._goes_stepwise(attend, mask) else self._fused
        y_BHTK = attention(q_BHTK, k_BHSK, v_BHSK, mask, attend)
        out: Tensor = self.out_proj(y_BHTK.transpose(1, 2).flatten(2))
        return out

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, [B, T, d_out] each: one product on a GPU, three on a CPU."""
        parts = (self.W_query, self.W_key, self.W_value)
        if x.device.type not in JOINED_QKV_DEVICES or not _can_join(parts):
            return [part(x) for part in parts]
        weight = torch.cat([part.weight for part in parts])
        biases: list[Any] = [part.bias for part in parts]  # nn.Linear says that it has one.
        bias = None if biases[0] is None else torch.cat(biases)
        return F.linear(x, weight, bias).chunk(3, dim=-1)

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.reshape(*x_BTD.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _goes_stepwise(self, attend: Attend, mask: Tensor | None) -> bool:
        """Whether somebody wants the weights, or brings a dropout of their own, or it is faster.

        On a CPU, SDPA has no kernel for a mask that has a gradient. It goes by steps then, too, and
        with bfloat16 in float32.
        """
        if attend.weights is not None or not is_stock(self.dropout, nn.Dropout):
            return True
        return mask is not None and mask.requires_grad and mask.device.type == "cpu"

    def _fused(
        self,
        q_BHTK: Tensor,
        k_BHSK: Tensor,
        v_BHSK: Tensor,
        mask: Tensor | None,
        attend: Attend,
    ) -> Tensor:
        dropout = self.dropout.p if self.dropout.training else 0.0
        is_causal = mask is None and attend.is_causal
        if is_causal and self._goes_to_core(q_BHTK, k_BHSK, dropout):
            return operators.attention(q_BHTK, k_BHSK, v_BHSK, self.scale, dropout)
        return F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, mask, dropout, is_causal, scale=self.scale
        )

    def _goes_to_core(self, q_BHTK: Tensor, k_BHSK: Tensor, dropout: float) -> bool:
        """Whether the Rust core's causal attention is meant, with its dropout, or is the faster."""
        if not _trains_on_cpu(q_BHTK) or q_BHTK.shape != k_BHSK.shape:
            return False
        if dropout:
            return type(self.dropout) is SeededDropout
        if q_BHTK.dtype == torch.float32:
            return operators.MULTIPLIES_FLOAT32
        return operators.MULTIPLIES_BFLOAT16 or q_BHTK.shape[2] <= FEW_TOKENS

    def _explicit(
        self,
        q_BHTK: Tensor,
        k_BHSK: Tensor,
        v_BHSK: Tensor,
        mask: Tensor | None,
        attend: Attend,
    ) -> Tensor:
        """The same step by step."""
        scores_BHTS = (q_BHTK @ k_BHSK.transpose(2, 3)).mul_(self.scale)
        if mask is None or mask.dtype == torch.bool:
            scores_BHTS = masked(scores_BHTS, attend)
        else:
            scores_BHTS = scores_BHTS.add_(mask)
        weights_BHTS: Tensor = self.dropout(torch.softmax(scores_BHTS, dim=-1))
        if attend.weights is not None:
            attend.weights.append(weights_BHTS)
        return weights_BHTS @ v_BHSK


def _trains_on_cpu(x: Tensor) -> bool:
    """Whether the gradient of what is made of `x` will be computed, in the Rust core's dtypes."""
    return x.requires_grad and operators.is_for_core(x) and torch.is_grad_enabled()


def masked(scores: Tensor, attend: Attend) -> Tensor:
    """Scores [..., T, S], -inf where `attend` lets token t not see token s."""
    mask = attend.mask
    if mask is None and attend.is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, cfg: ConfigLike) -> None:
        super().__init__()
        cfg = GPTConfig.of(cfg)
        self.att = MultiHeadAttention(
            d_in=cfg.emb_dim,
            d_out=cfg.emb_dim,
            context_length=cfg.max_tokens,
            dropout=cfg.drop_rate,
            num_heads=cfg.n_heads,
            qkv_bias=cfg.qkv_bias,
            positions=layer_positions(cfg),
            # T5 leaves it to the weights (Raffel et al. 2020, as published with the model).
            scale=1.0 if cfg.pos == "t5" else None,
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg.emb_dim)
        self.norm2 = LayerNorm(cfg.emb_dim)
        self.drop_resid = nn.Dropout(cfg.drop_rate)

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """[B, T, D] to [B, T, D], causal, or as `attend` says."""
        normed = self.norm1(x)
        # One argument in the plain case, so that an `att` of somebody's own needs no second.
        attended = self.att(normed) if attend is None else self.att(normed, attend)
        x = x + self.drop_resid(attended)
        out: Tensor = x + self.drop_resid(self.ff(self.norm2(x)))
        return out


def _can_join(parts: Sequence[nn.Linear]) -> bool:
    """Whether one product with all weights does what calling each layer does.

    Not where one is LoRA's or somebody's own, has a hook, or lies in shards on several devices.
    """
    return (
        all(is_stock(part, nn.Linear) for part in parts)
        and all(type(part.weight) is nn.Parameter for part in parts)
        and len({type(part.bias) for part in parts}) == 1
        and len({part.weight.dtype for part in parts}) == 1
    )


def check_num_tokens(num_tokens: int, context_length: int | None) -> None:
    """Raises DataError where the input is longer than the model's context."""
    if context_length is not None and num_tokens > context_length:
        raise DataError(
            f"the input has {num_tokens} tokens, more than context_length {context_length}"
        )


def is_stock(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does just what the class's `forward` does: then it may be skipped.

    A parametrization, and sharding by FSDP, give a module another class. A dropout stays one with
    other random numbers, and a linear layer where the core multiplies.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return stock_class(module) is kind and not any(hooks) and "forward" not in vars(module)


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, or torch's that it does the same as."""
    if is_plain(module):
        return nn.Linear
    return nn.Dropout if type(module) is SeededDropout else type(module)


def _drop_mask(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """The book keeps each layer's causal mask as a buffer; ours needs none."""
    state_dict.pop(prefix + "mask", None)
