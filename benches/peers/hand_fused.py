"""GPT-2 in plain functional PyTorch, as one would fuse it by hand: the peer of the torch engine.

Query, key and value in one matrix, a cache that is allocated once, no module calls, no checks, one
length for all rows, the largest logit taken by torch. It reads a GPTModel's weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class HandFused:
    """Greedy generation for one batch size."""

    def __init__(self, model, batch_size: int, num_tokens: int, dtype: torch.dtype) -> None:
        def to(parameter: Tensor) -> Tensor:
            return parameter.detach().to(dtype)

        cfg = model.cfg
        self.tok, self.pos = to(model.tok_emb.weight), to(model.pos_emb.weight)
        self.layers = []
        for block in model.trf_blocks:
            att, up, down = block.att, block.ff.layers[0], block.ff.layers[2]
            parts = (att.W_query, att.W_key, att.W_value)
            shape = (2, batch_size, cfg.n_heads, num_tokens, cfg.head_dim)
            tensors = [
                *(block.norm1.scale, block.norm1.shift, torch.cat([p.weight for p in parts])),
                *(att.out_proj.weight, att.out_proj.bias, block.norm2.scale, block.norm2.shift),
                *(up.weight, up.bias, down.weight, down.bias),
            ]
            self.layers.append(([to(t) for t in tensors], torch.zeros(shape, dtype=dtype)))
        self.norm = (to(model.final_norm.scale), to(model.final_norm.shift))
        self.head = to(model.out_head.weight)
        self.heads = (cfg.n_heads, cfg.head_dim)

    @torch.inference_mode()
    def generate(self, idx: Tensor, num_new: int) -> Tensor:
        """The ids [B, T] and the likeliest tokens after it, [B, T + num_new]."""
        tokens, new, start = [idx], idx, 0
        for _ in range(num_new):
            end = start + new.shape[1]
            new = self._logits(new, start, end).argmax(-1, keepdim=True)
            tokens.append(new)
            start = end
        return torch.cat(tokens, 1)

    def _logits(self, ids: Tensor, start: int, end: int) -> Tensor:
        batch_size, count = ids.shape
        width = self.tok.shape[1]
        x = F.embedding(ids, self.tok) + self.pos[start:end]
        for weights, (keys, values) in self.layers:
            scale1, shift1, qkv, out, out_bias, scale2, shift2, up, up_bias, down, down_bias = (
                weights
            )
            split = F.linear(F.layer_norm(x, (width,), scale1, shift1), qkv)
            q, k, v = split.view(batch_size, count, 3, *self.heads).permute(2, 0, 3, 1, 4)
            keys[:, :, start:end] = k
            values[:, :, start:end] = v
            y = F.scaled_dot_product_attention(
                q, keys[:, :, :end], values[:, :, :end], is_causal=count > 1
            )
            x = x + F.linear(y.transpose(1, 2).reshape(batch_size, count, width), out, out_bias)
            hidden = F.linear(F.layer_norm(x, (width,), scale2, shift2), up, up_bias)
            x = x + F.linear(F.gelu(hidden, approximate="tanh"), down, down_bias)
        return F.linear(F.layer_norm(x[:, -1], (width,), *self.norm), self.head)
