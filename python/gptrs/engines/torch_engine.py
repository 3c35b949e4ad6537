"""A GPTModel with a KV cache: each token is computed once, in as few operators as PyTorch allows.

    tokens of all slots, packed ─► embed ─► layers ─┬─► last norm ─► head, wanted positions only
                                     attention, run by run, over the cache

Prompts of different lengths lie behind each other, so nothing is computed on padding. Where a layer
is not the stock one (LoRA, a hook, autocast), or adds to its scores itself (BERT's and
Transformer-XL's positions), the model's own modules run, over the same cache.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from gptrs.engines.decode_weights import DecodeWeights
from gptrs.engines.engine import (
    Answer,
    Choose,
    Engine,
    Run,
    autocast_to,
    last_positions,
    precision_suffix,
)
from gptrs.engines.fixed_steps import FixedSteps
from gptrs.engines.fused_forward import (
    attention_over,
    hidden_states,
    matmul_for,
    norm,
    weights_first,
)
from gptrs.engines.vocabulary import vocab_size_of
from gptrs.model.gpt import GPTModel
from gptrs.model.kv_cache import KVCache
from gptrs.model.layers import MultiHeadAttention, TransformerBlock
from gptrs.model.segment_cache import cache_for

# N tokens of a call, R rows of logits, B slots, D emb_dim, V vocab_size.


class TorchEngine(Engine):
    """The cached engine; see `why_no_cache`.

    Args:
        model: in evaluation mode, or without dropout.
        slots: sequences at once.
        context_size: most tokens a slot holds, cut to what the model takes.
        prefill_tokens: most tokens of prompts in a call.
        dtype: what is computed and cached in; None: the weights' own.
        compile: translate the step with `torch.compile`, once a batch size.
        choose: draws in place of the Rust sampler.
        candidates: on a GPU, how many of a row's largest logits are enough.
    Raises:
        GenerationError: there is no memory for the cache.
    """

    def __init__(
        self,
        model: GPTModel,
        *,
        slots: int,
        context_size: int,
        prefill_tokens: int,
        dtype: torch.dtype | None = None,
        compile: bool = False,  # noqa: A002  # torch's name
        choose: Choose | None = None,
        candidates: int | None = None,
    ) -> None:
        weight = model.tok_emb.weight
        self.device = weight.device
        self._dtype = dtype or weight.dtype
        super().__init__(
            name=f"torch{precision_suffix(self._dtype)}",
            vocab_size=vocab_size_of(model),
            context_length=min(context_size, model.cfg.max_tokens or context_size),
            slots=slots,
            prefill_tokens=prefill_tokens,
            choose=choose,
            candidates=candidates,
        )
        self._model = model
        self._cache = cache_for(
            model.cfg,
            n_layers=len(model.trf_blocks),
            batch_size=slots,
            max_tokens=self.context_length,
            dtype=self._dtype,
            device=self.device,
        )
        self._weights: DecodeWeights | None = None
        self._has_fixed_steps = compile or self.device.type == "cuda"
        self._steps: FixedSteps | None = None
        self._logits_VR = self._logits_RV = torch.empty(0)

    def is_current(self) -> bool:
        """Whether an engine that is made now would compute the same, but for weights' values."""
        weights = self._weights
        return why_no_cache(self._model) is None and (
            weights is None or weights.is_current(thoroughly=True)
        )

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies keys and values."""
        stored = self._cache.storage
        with torch.no_grad():
            for source, target, length in copies:
                stored[:, :, target, :, :length] = stored[:, :, source, :, :length]

    def step(self, num_slots: int) -> Answer:
        """As in `Engine`; in one piece where steps have a fixed shape."""
        weights = self._current_weights(thoroughly=False) if self._has_fixed_steps else None
        if weights is None or weights.head is None:
            return super().step(num_slots)
        if self._steps is None or self._steps.weights is not weights:
            self._steps = FixedSteps(weights, self._cache.storage, self.tokens, self.starts)
        with torch.no_grad():
            return self._answer(self._steps(num_slots))

    def _logits(self, runs: list[Run], wanted: list[int]) -> Tensor:
        # Single tokens follow a call that has looked thoroughly.
        thoroughly = any(run.count > 1 for run in runs)
        weights = self._current_weights(thoroughly=thoroughly)
        if weights is None:
            return self._call_layers(runs, wanted)
        with torch.inference_mode():
            ids_N = self.tokens[: runs[-1].tokens.stop].to(self.device)
            attention = attention_over(self._cache.storage, runs, weights)
            x_ND = hidden_states(weights, ids_N, _positions(runs, self.device), attention)
            x_RD = x_ND if wanted.count(1) == len(x_ND) else _wanted_rows(x_ND, runs, wanted)
            normed_RD = norm(x_RD, weights.norm)
            if weights.head is not None:
                return self._head(normed_RD, *weights.head)
        # Somebody's own layer may do what inference tensors cannot.
        return self._call_head(normed_RD.clone())

    def _current_weights(self, *, thoroughly: bool) -> DecodeWeights | None:
        """The weights as they are now; None where the layers must be called."""
        if torch.is_autocast_enabled(self.device.type):
            return None
        weights = self._weights
        if weights is None or not weights.is_current(thoroughly=thoroughly):
            weights = self._weights = DecodeWeights.of(self._model, self._dtype)
        return weights

    def _head(self, x_RD: Tensor, weight_VD: Tensor, bias: Tensor | None) -> Tensor:
        """Logits [R, V], in a buffer that every call of as many rows writes again."""
        shape = (len(x_RD), len(weight_VD))
        if self._logits_RV.shape != shape:
            with torch.inference_mode(False):
                self._logits_RV = x_RD.new_empty(shape)
                self._logits_VR = x_RD.new_empty(shape[::-1])
        if matmul_for(len(x_RD), x_RD.dtype, x_RD.device) is weights_first:
            torch.mm(weight_VD, x_RD.t(), out=self._logits_VR)
            # Row by row: PyTorch's transposing copy takes four times as long.
            torch.stack(self._logits_VR.unbind(1), out=self._logits_RV)
        else:
            torch.mm(x_RD, weight_VD.t(), out=self._logits_RV)
        return self._logits_RV if bias is None else self._logits_RV.add_(bias)

    def _call_head(self, x_RD: Tensor) -> Tensor:
        if not x_RD.numel():
            return x_RD
        logits_R1V: Tensor = self._model.out_head(x_RD[:, None])
        return logits_R1V.flatten(0, 1)

    def _call_layers(self, runs: list[Run], wanted: list[int]) -> Tensor:
        """The same through the model's own modules, run by run."""
        is_own = self._dtype == self._model.tok_emb.weight.dtype
        hidden: list[Tensor] = []
        wanted = list(wanted)
        with autocast_to(None if is_own else self._dtype, self.device):
            for run in runs:
                cache = self._rows(run)
                ids_BT = self.tokens[run.tokens].view(-1, run.count).to(self.device)
                x_BTD = self._read(ids_BT, cache)
                hidden += last_positions(x_BTD, wanted[: len(run.starts)])
                del wanted[: len(run.starts)]
            # One call for all rows: the output layer's weights are read once.
            return self._call_head(torch.cat(hidden))

    def _rows(self, run: Run) -> KVCache:
        """The cache of a run's slots, cut to what they keep."""
        self._cache.lengths[run.slots] = run.starts
        return self._cache.rows(run.slots.start, run.slots.stop)

    def _read(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        """Hidden states of tokens that are appended to every row of a cache: [B, T, D]."""
        return self._model.hidden_states(ids_BT, cache=cache)


def why_no_cache(model: GPTModel) -> str | None:
    """Why a cached run of `model` would not compute what calling it does, or None.

    Its own class, blocks or attention may see all tokens at once, a hook may wait on the model
    itself, and dropout draws every token anew at every step.
    """
    if type(model) is not GPTModel:
        return f"{type(model).__name__} is not GPTModel itself"
    if model._forward_hooks or model._forward_pre_hooks:
        return "hooks wait on the model"
    for block in model.trf_blocks:
        att = getattr(block, "att", block)
        for module, stock in ((block, TransformerBlock), (att, MultiHeadAttention)):
            if type(module) is not stock:
                return f"{type(module).__name__} stands in the place of {stock.__name__}"
    if any(m.training and m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout)):
        return "dropout is on"
    return None


def _positions(runs: list[Run], device: torch.device) -> Tensor:
    """Position ids [N]."""
    spans = (range(start, start + run.count) for run in runs for start in run.starts)
    return torch.tensor(list(chain.from_iterable(spans)), device=device)


def _wanted_rows(x_ND: Tensor, runs: list[Run], wanted: list[int]) -> Tensor:
    """The last positions of each slot's tokens: [R, D]."""
    ends = [run.first_token + (i + 1) * run.count for run in runs for i in range(len(run.starts))]
    rows = [row for end, count in zip(ends, wanted, strict=True) for row in range(end - count, end)]
    return x_ND[torch.tensor(rows, dtype=torch.int64, device=x_ND.device)]
