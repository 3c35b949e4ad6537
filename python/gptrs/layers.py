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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.config import ConfigLike, GPTConfig
from gptrs.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gptrs.kv_cache import ExtendLayer


@dataclass(frozen=True, slots=True)
class Attend:
    """How a layer attends where it is not plainly causal over its own input."""

    mask: Tensor | None = None
    """bool [T, S] or [B, 1, T, S], True where token t sees token s. None: see `is_causal`."""
    is_causal: bool = True
    """Without a mask, whether token t sees tokens 0..t (T = S), or all."""
    extend: ExtendLayer | None = None
    """Takes the new keys and values, returns them behind the cached ones."""
    weights: list[Tensor] | None = None
    """A list to which the layer appends its attention weights [B, H, T, S]."""


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
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Linear to 4 * emb_dim, GELU, Linear back; each token by itself."""

    def __init__(self, cfg: ConfigLike) -> None:
        super().__init__()
        emb_dim = GPTConfig.of(cfg).emb_dim
        self.layers = nn.Sequential(
            nn.Linear(emb_dim, 4 * emb_dim), GELU(), nn.Linear(4 * emb_dim, emb_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., emb_dim] to [..., emb_dim]."""
        out: Tensor = self.layers(x)
        return out


class MultiHeadAttention(nn.Module):
    """Causal self-attention in `num_heads` heads, [B, T, d_in] to [B, T, d_out].

    Raises:
        ConfigError: d_out is not a multiple of num_heads.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        if d_out % num_heads:
            raise ConfigError(f"d_out {d_out} is not a multiple of num_heads {num_heads}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.context_length = context_length
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(_drop_mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """Attends over `x`, [B, T, d_in], or as `attend` says.

        Raises:
            DataError: more than context_length tokens.
        """
        check_num_tokens(x.shape[1], self.context_length)
        attend = attend or Attend()
        q_BHTK = self._split_heads(self.W_query(x))
        k_BHSK = self._split_heads(self.W_key(x))
        v_BHSK = self._split_heads(self.W_value(x))
        if attend.extend is not None:
            k_BHSK, v_BHSK = attend.extend(k_BHSK, v_BHSK)
        if attend.weights is None and _is_stock(self.dropout, nn.Dropout):
            y_BHTK = self._fused(q_BHTK, k_BHSK, v_BHSK, attend)
        else:
            y_BHTK = self._explicit(q_BHTK, k_BHSK, v_BHSK, attend)
        out: Tensor = self.out_proj(y_BHTK.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.reshape(*x_BTD.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _fused(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend: Attend) -> Tensor:
        return F.scaled_dot_product_attention(
            q_BHTK,
            k_BHSK,
            v_BHSK,
            attn_mask=attend.mask,
            dropout_p=self.dropout.p if self.dropout.training else 0.0,
            is_causal=attend.mask is None and attend.is_causal,
        )

    def _explicit(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend: Attend) -> Tensor:
        """The same step by step, for whoever wants the weights or brings a dropout of their own."""
        scores_BHTS = q_BHTK @ k_BHSK.transpose(2, 3) / math.sqrt(self.head_dim)
        mask = attend.mask
        if mask is None and attend.is_causal:
            mask = torch.ones_like(scores_BHTS[0, 0], dtype=torch.bool).tril()
        if mask is not None:
            scores_BHTS = scores_BHTS.masked_fill(~mask, -torch.inf)
        weights_BHTS: Tensor = self.dropout(torch.softmax(scores_BHTS, dim=-1))
        if attend.weights is not None:
            attend.weights.append(weights_BHTS)
        return weights_BHTS @ v_BHSK


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, cfg: ConfigLike) -> None:
        super().__init__()
        cfg = GPTConfig.of(cfg)
        self.att = MultiHeadAttention(
            d_in=cfg.emb_dim,
            d_out=cfg.emb_dim,
            context_length=cfg.context_length,
            dropout=cfg.drop_rate,
            num_heads=cfg.n_heads,
            qkv_bias=cfg.qkv_bias,
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


def check_num_tokens(num_tokens: int, context_length: int) -> None:
    """Raises DataError where the input is longer than the model's context."""
    if num_tokens > context_length:
        raise DataError(
            f"the input has {num_tokens} tokens, more than context_length {context_length}"
        )


def _is_stock(module: nn.Module, expected: type[nn.Module]) -> bool:
    """Whether `module` does just what PyTorch's class does, so that a fused path may stand in."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) is expected and not hooked


def _drop_mask(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """The book keeps each layer's causal mask as a buffer; ours needs none."""
    state_dict.pop(prefix + "mask", None)
