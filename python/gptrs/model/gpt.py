"""The book's GPT: its names, its construction order, its state_dict keys, its numbers.

    in_idx ─► tok_emb + pos_emb ─► drop_emb ─► trf_blocks ─► final_norm ─► out_head ─► logits

A seed gives the weights that the book's own classes draw from it, and the forward pass equals
theirs to rounding. Knows nothing of text, losses or files. Its parts are in `layers`, other ways to
know a token's place in `positions`, the memory of tokens already read in `kv_cache`, all that is
settled before a pass computes in `forward_pass`; this module exports the first and the third.
"""

# Tensor names end in their shape: B batch, T tokens, D emb_dim, V vocab_size.

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gptrs.config import ConfigLike, GPTConfig
from gptrs.errors import DataError, TokenIdError
from gptrs.model.forward_pass import ForwardPass, look_up, plan
from gptrs.model.kv_cache import KVCache
from gptrs.model.layers import (
    GELU,
    Attend,
    FeedForward,
    LayerNorm,
    MultiHeadAttention,
    TransformerBlock,
)
from gptrs.model.linear import Linear
from gptrs.model.positions import position_embedding, score_bias
from gptrs.model.segment_cache import cache_for
from gptrs.model.state_dict import is_tied, register_hooks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    import tiktoken

    from gptrs.text.tokenizer import Tokenizer

__all__ = [
    "GELU",
    "Attend",
    "FeedForward",
    "GPTModel",
    "GPTOutput",
    "KVCache",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerBlock",
]


class GPTOutput(NamedTuple):
    """What `GPTModel` returns when asked for more than logits."""

    logits: Tensor
    """[B, T, V]."""
    hidden: tuple[Tensor, ...] | None
    """n_layers + 1 tensors [B, T, D]: 0 is the embeddings, the last is after `final_norm`."""
    attention: tuple[Tensor, ...] | None
    """n_layers tensors [B, H, T, S]: the weights that multiply the values, after dropout."""


class GPTModel(nn.Module):
    """The book's GPT.

    Args:
        cfg: a GPTConfig, a mapping with the book's keys such as `GPT_CONFIG_124M`, or a preset's
            name.

    With `init="book"`, weights are PyTorch's defaults, drawn in the book's order. With
    `init="gpt2"` they are drawn again after construction: N(0, 0.02), the two projections into the
    residual stream of each block divided by sqrt(2 * n_layers), biases 0 (Radford et al. 2019,
    section 2.3).

    A tied model's `state_dict` has `tok_emb.weight` and `out_head.weight`, one tensor under two
    names; loading takes either or both, and refuses two that differ.
    """

    def __init__(self, cfg: ConfigLike) -> None:
        super().__init__()
        cfg = GPTConfig.of(cfg)
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.emb_dim)
        self.pos_emb = position_embedding(cfg)
        self.pos_bias = score_bias(cfg)
        self.drop_emb = nn.Dropout(cfg.drop_rate)
        self.trf_blocks = nn.Sequential(*(TransformerBlock(cfg) for _ in range(cfg.n_layers)))
        self.final_norm = LayerNorm(cfg.emb_dim)
        self.out_head: nn.Linear = Linear(cfg.emb_dim, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.out_head.weight = self.tok_emb.weight
        if cfg.init == "gpt2":
            self._draw_gpt2_weights()
        register_hooks(self)

    def forward(
        self,
        in_idx: Tensor,
        *,
        cache: KVCache | None = None,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Tensor | GPTOutput:
        """The logits of the token after each token.

        Args:
            in_idx: token ids, int64 or int32 [B, T], each in 0..vocab_size - 1.
            cache: tokens already read. The T new ones are appended to every row and attend to what
                their row holds. No gradient is recorded.
            position_ids: int [T] or [B, T], the tokens' places, where `pos` is "learned",
                "sinusoidal" or "rope". Default: 0..T - 1, counted on from the cache. Attention
                stays causal in the order of the tokens.
            cu_seqlens: int32 [number of documents + 1], where documents start and end in the
                row-major B * T tokens, from 0 to B * T; every row starts one. Attention stays
                inside a document, and positions restart in each.
            return_hidden: return a GPTOutput, with the hidden states.
            return_attention: return a GPTOutput, with the attention weights. They are computed
                step by step: slower, and T * S numbers a head.

        Returns:
            Logits [B, T, V] in the weights' dtype, or a GPTOutput.

        Raises:
            TokenIdError: an id is outside the vocabulary. (Checked on the CPU; a GPU asserts.)
            DataError: wrong shape or dtype, more tokens than `cfg.max_tokens`, bad cu_seqlens.
            GenerationError: the cache has another batch size, or no room; nothing was written.
            ConfigError: both `cache` and `cu_seqlens`; position_ids where only distances count.
        """
        hidden: list[Tensor] | None = [] if return_hidden else None
        weights: list[Tensor] | None = [] if return_attention else None
        with _no_grad_with(cache):
            x_BTD = self._trunk(in_idx, cache, position_ids, cu_seqlens, hidden, weights)
            logits_BTV: Tensor = self.out_head(x_BTD)
        if hidden is None and weights is None:
            return logits_BTV
        return GPTOutput(
            logits_BTV,
            None if hidden is None else tuple(hidden),
            None if weights is None else tuple(weights),
        )

    def hidden_states(
        self,
        in_idx: Tensor,
        *,
        cache: KVCache | None = None,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """What `out_head` is applied to: [B, T, D], after `final_norm`. Arguments as in `forward`.

        For callers that need the logits of few tokens, or a loss that never forms them all.
        """
        with _no_grad_with(cache):
            return self._trunk(in_idx, cache, position_ids, cu_seqlens, None, None)

    def new_cache(self, batch_size: int, max_tokens: int | None = None) -> KVCache:
        """An empty cache of `batch_size` rows, in the weights' dtype and on their device.

        It takes 2 * n_layers * max_tokens * emb_dim numbers a row: 75 MB for the 124M model.

        With `memory_length` M it is a SegmentCache, whose rows have no end and keep M + 2 *
        context_length tokens at most. A text is then read segment by segment, each of which sees
        the M tokens before it; so Transformer-XL is evaluated:

        >>> memory = model.new_cache(1)
        >>> for segment in ids.split(model.cfg.context_length, dim=1):
        ...     logits = model(segment, cache=memory)

        Args:
            max_tokens: most tokens a row may hold. None: context_length, or without an end.
        Raises:
            ConfigError: max_tokens is below 1, or more than the model takes.
            GenerationError: there is no memory for it.
        """
        weight = self.tok_emb.weight
        return cache_for(
            self.cfg,
            n_layers=len(self.trf_blocks),
            batch_size=batch_size,
            max_tokens=max_tokens,
            dtype=weight.dtype,
            device=weight.device,
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """PyTorch's. Takes a checkpoint of the book's, and a tied model's with one name left out.

        Raises:
            ConfigError: the model is tied, and the two matrices in `state_dict` differ.
            RuntimeError: keys or shapes do not fit, as in PyTorch.
        """
        result = super().load_state_dict(state_dict, strict, assign)
        if not strict and is_tied(self):
            # safetensors' `load_model` asks which of the two names was left out.
            names = {"tok_emb.weight", "out_head.weight"}
            left_out = sorted(names - set(state_dict))
            result.missing_keys.extend(left_out if len(left_out) == 1 else [])
        return result

    @staticmethod
    def from_pretrained(
        path: str | PathLike[str],
        *,
        cfg: ConfigLike | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
    ) -> GPTModel:
        """The model in a folder or file that gptrs or somebody else wrote, in eval mode.

        Reads transformers' GPT-2 (a folder, or its safetensors, sharded too), a checkpoint or run
        of gptrs, the book's state_dict (.pth; its fast variant's too), and nanoGPT's ckpt.pt. (That
        one's GELU is the exact one; here it is GPT-2's approximation, and logits differ a little.)

        Args:
            cfg: the model's config, which must fit the weights; a mapping needs only the fields
                that the weights do not say, or that are to be others. Where nobody says how many
                heads there are, they are taken to be 64 wide, as all of GPT-2's; of a width that no
                GPT-2 has a warning says so. Dropout and tying are free: an untied model gets a tied
                one's matrix twice.
            dtype: what the weights become, or its name; default: what they are.
        Raises:
            CheckpointError: nothing is there, or it is damaged, or no GPT-2, or holds more than
                tensors, or tensors are missing, unexpected, of the wrong shape or not finite; the
                message lists all of them.
            ConfigError: cfg does not fit (the message lists every field that differs), or weights
                cannot have this dtype or be on this device.
        """
        from gptrs.weights.pretrained import from_pretrained

        return from_pretrained(path, cfg=cfg, dtype=dtype, device=device)

    def save_pretrained(
        self,
        directory: str | PathLike[str],
        *,
        format: Literal["gptrs", "hf", "book"] = "gptrs",  # noqa: A002
        tokenizer: Tokenizer | tiktoken.Encoding | None = None,
    ) -> None:
        """Writes the model to `directory`, which is made if missing; its config.json comes last.

        Args:
            format: "gptrs", a checkpoint; "hf", which transformers' `GPT2LMHeadModel` and its
                pipelines open; "book", a `model.pth` that the book's GPTModel loads strictly.
            tokenizer: saved along. With "hf" and a vocabulary of 50,257, None is GPT-2's.
        Raises:
            CheckpointError: the directory cannot be written.
            ConfigError: the format cannot hold this model or tokenizer, or the directory has a
                model in another format. Nothing was written.
        """
        from gptrs.weights.export import save_pretrained

        save_pretrained(self, directory, format=format, tokenizer=tokenizer)

    def _trunk(
        self,
        in_idx: Tensor,
        cache: KVCache | None,
        position_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        hidden: list[Tensor] | None,
        weights: list[Tensor] | None,
    ) -> Tensor:
        """Everything before `out_head`; fills `hidden` and `weights` where given."""
        way = plan(self.cfg, in_idx, cache, position_ids, cu_seqlens)
        if self.pos_bias is not None:
            way = way.biased(self.pos_bias, self.tok_emb.weight)
        x_BTD = self._embed(in_idx, way.position_ids)
        if way.attend is None and way.placement is None and hidden is None and weights is None:
            x_BTD = self.trf_blocks(x_BTD)
        else:
            x_BTD = self._blocks(x_BTD, way, hidden, weights)
        normed_BTD: Tensor = self.final_norm(x_BTD)
        if hidden is not None:
            hidden.append(normed_BTD)
        if way.placement is not None:
            way.placement.commit()
        return normed_BTD

    def _embed(self, in_idx: Tensor, position_ids: Tensor) -> Tensor:
        x_BTD = look_up(self.tok_emb, in_idx, "token id", TokenIdError)
        if isinstance(self.pos_emb, nn.Embedding):
            x_BTD = x_BTD + look_up(self.pos_emb, position_ids, "position id", DataError)
        elif self.pos_emb is not None:
            x_BTD = x_BTD + self.pos_emb(position_ids, x_BTD.dtype)
        dropped_BTD: Tensor = self.drop_emb(x_BTD)
        return dropped_BTD

    def _blocks(
        self,
        x_BTD: Tensor,
        way: ForwardPass,
        hidden: list[Tensor] | None,
        weights: list[Tensor] | None,
    ) -> Tensor:
        for index, block in enumerate(self.trf_blocks):
            if hidden is not None:
                hidden.append(x_BTD)
            attend = way.layer(index, weights)
            x_BTD = block(x_BTD) if attend is None else block(x_BTD, attend)
        return x_BTD

    def _draw_gpt2_weights(self) -> None:
        residual_std = 0.02 / math.sqrt(2 * self.cfg.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("att.out_proj.weight", "ff.layers.2.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif name.endswith(".weight"):
                nn.init.normal_(parameter, std=0.02)


def _no_grad_with(cache: KVCache | None) -> AbstractContextManager[Any]:
    """A pass with a cache is inference: a gradient that ended at the cache would be wrong."""
    return nullcontext() if cache is None else torch.no_grad()
