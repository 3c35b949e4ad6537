"""A causal model of transformers' with a KV cache whose rows may have different lengths.

    slot 0  [ k k k k k . . . ]      a run of level rows: transformers' own masks
    slot 1  [ k k k . . . . . ]      rows of different lengths: a 4-D mask and position ids

The storage is allocated once and the model's layers write into it; nothing is padded. Imported only
where a model of transformers' is at hand.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from gptrs.engines.engine import Choose, Engine, Run, autocast_to, last_positions, precision_suffix
from gptrs.memory import check_memory, zeros

# B slots of a run, T new tokens of each, S tokens attended to, H key-value heads, K head_dim,
# V vocab_size.


def why_no_cache(model: PreTrainedModel) -> str | None:
    """Why a cached run would not compute what the model does, or None."""
    config = model.config.get_text_config()
    parameters = inspect.signature(model.forward).parameters
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    turns_by_length = not _rope_types(config).isdisjoint(_BY_LENGTH)
    reasons = {
        "it is an encoder-decoder": model.config.is_encoder_decoder,
        "its memory is a state, not a list of tokens": getattr(model, "_is_stateful", False),
        "it does not take past_key_values": "past_key_values" not in parameters,
        f"it has layers of {', '.join(sorted(layer_types))}": not layer_types <= _ATTENTIONS,
        "its positions turn otherwise in a longer text": turns_by_length,
        "it counts positions from its padding id on": config.model_type in _COUNTS_FROM_PADDING,
        "hooks wait on the model": bool(model._forward_hooks or model._forward_pre_hooks),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


_ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}
_BY_LENGTH = {"longrope", "dynamic"}
"""Kinds of rotary positions: keys that are kept were turned as for a shorter text."""
_COUNTS_FROM_PADDING = {
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"
}  # fmt: skip
"""RoBERTa and what came of it."""


def _rope_types(config: Any) -> set[str]:
    """Of all layers; some models have one for each kind of attention."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(each for each in given.values() if isinstance(each, dict))]
    return {str(kind.get("rope_type")) for kind in kinds}


class TransformersEngine(Engine):
    """The cached engine for transformers' causal models; see `why_no_cache`.

    Args:
        model: in evaluation mode.
        context_size: most tokens a slot holds; the model must be able to.
    Raises:
        GenerationError: there is no memory for the cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        context_size: int,
        prefill_tokens: int,
        dtype: torch.dtype | None = None,
        choose: Choose | None = None,
        candidates: int | None = None,
    ) -> None:
        self.device = model.device
        config = model.config.get_text_config()
        super().__init__(
            name=f"transformers{precision_suffix(dtype or model.dtype)}",
            vocab_size=config.vocab_size,
            context_length=context_size,
            slots=slots,
            prefill_tokens=prefill_tokens,
            choose=choose,
            candidates=candidates,
        )
        self._model = model
        self._autocast = autocast_to(None if dtype == model.dtype else dtype, self.device)
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        # Elsewhere each layer has a mask of its own: rows of different lengths then go one by one.
        self._takes_mask = self._takes_positions and _has_one_mask(config)
        num_layers = config.num_hidden_layers
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        check_memory(
            2 * num_layers * slots * num_heads * context_size * head_dim * model.dtype.itemsize,
            self.device,
            f"a key-value cache of {slots} rows of {context_size} tokens",
        )
        self._layers = [_SlotLayer((slots, context_size)) for _ in range(num_layers)]
        self._cache = Cache(layers=list(self._layers))

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies keys and values."""
        stored = (layer.stored for layer in self._layers if layer.stored is not None)
        for tensor in itertools.chain.from_iterable(stored):
            for source, target, length in copies:
                tensor[target, :, :length] = tensor[source, :, :length]

    def _logits(self, runs: list[Run], wanted: list[int]) -> Tensor:
        logits: list[Tensor] = []
        first = 0
        for run in runs:
            for part in [run] if run.is_level or self._takes_mask else run.rows():
                counts = wanted[first : first + len(part.starts)]
                with self._autocast:
                    logits_BTV = self._call(part, max(counts))
                logits += last_positions(logits_BTV, counts)
                first += len(part.starts)
        return torch.cat(logits)

    def _call(self, run: Run, wanted: int) -> Tensor:
        """Appends a run's tokens; logits of at least the last `wanted` positions, [B, T', V]."""
        starts_B1 = torch.tensor(run.starts, device=self.device)[:, None]
        place = _Place(run.slots, run.starts, run.count, starts_B1)
        for layer in self._layers:
            layer.place = place
        options: dict[str, Any] = {}
        if self._takes_positions:
            options["position_ids"] = starts_B1 + torch.arange(run.count, device=self.device)
        if self._takes_logits_to_keep:
            # 0 would keep them all.
            options["logits_to_keep"] = max(wanted, 1)
        if not run.is_level:
            options["attention_mask"] = self._mask(starts_B1, place.end)
        ids_BT = self.tokens[run.tokens].view(-1, run.count).to(self.device)
        output = self._model(
            input_ids=ids_BT, past_key_values=self._cache, use_cache=True, **options
        )
        logits_BTV: Tensor = output.logits
        return logits_BTV

    def _mask(self, starts_B1: Tensor, end: int) -> Tensor:
        """Additive, [B, 1, 1, S], for single tokens: slots that nobody wrote are far below 0."""
        hidden_BS = torch.arange(end, device=self.device) > starts_B1
        mask_BS = torch.zeros(hidden_BS.shape, dtype=self._model.dtype, device=self.device)
        lowest = torch.finfo(mask_BS.dtype).min
        return mask_BS.masked_fill_(hidden_BS, lowest)[:, None, None]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run's new keys and values go."""

    slots: slice
    starts: list[int]
    count: int
    starts_B1: Tensor

    @property
    def end(self) -> int:
        """How many tokens the longest of its slots then holds."""
        return max(self.starts) + self.count


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values of all slots.

    Attributes:
        stored: both, [slots, H, context_size, K] each; None before the first tokens.
        place: where the next ones go.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shape = shape
        self.stored: tuple[Tensor, Tensor] | None = None
        self.place = _Place(slice(0), [0], 0, torch.empty(0))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates, once a layer has shown what its heads look like."""
        self.stored = (self._allocate(key_states), self._allocate(value_states))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores [B, H, T, K] and returns all there is, [B, H, S, K]."""
        if self.stored is None:
            self.lazy_initialization(key_states, value_states)
        all_keys, all_values = self.stored or (key_states, value_states)
        return self._store(all_keys, key_states), self._store(all_values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many tokens are attended to, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """How many tokens the longest row of the run held before it."""
        return max(self.place.starts)

    def get_max_length(self) -> int:
        """Most tokens a row can hold."""
        return self._shape[1]

    def _allocate(self, new_BHTK: Tensor) -> Tensor:
        num_slots, context_size = self._shape
        _, num_heads, _, head_dim = new_BHTK.shape
        # Zeros: what is masked has weight 0, and 0 * nan would be nan.
        shape = (num_slots, num_heads, context_size, head_dim)
        return zeros(shape, new_BHTK.dtype, new_BHTK.device, "a layer's key-value cache")

    def _store(self, stored: Tensor, new_BHTK: Tensor) -> Tensor:
        place = self.place
        rows = stored[place.slots]
        start = place.starts[0]
        if place.starts.count(start) == len(place.starts):
            rows[:, :, start : start + place.count] = new_BHTK
        else:
            numbers_B1 = torch.arange(len(rows), device=rows.device)[:, None]
            rows[numbers_B1, :, place.starts_B1] = new_BHTK.transpose(1, 2).to(rows.dtype)
        return rows[:, :, : place.end]


def _has_one_mask(config: Any) -> bool:
    """Whether every layer sees all that came before, through a mask that a caller may give."""
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        layer_types == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and "local" not in (getattr(config, "attention_layers", None) or ())
        and not getattr(config, "alibi", False)
        and config._attn_implementation in ("sdpa", "eager")
    )
