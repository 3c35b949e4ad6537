"""A GPTModel without PyTorch: Rust decodes on the model's own weights, where they lie.

    GPTModel ── why_not_native: None ──► Weights ─► _core.NativeModel ─► the loop, in Rust
                                            ▲                                │ now and then
                                            └─ refresh: has it changed? ◄────┘

Nothing is copied, except that int8 packs the matrices: what a training step writes between two
tokens is seen by the next. Knows nothing of sampling or text, nor how anything is computed.
"""

from __future__ import annotations

from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gptrs import _core
from gptrs.engines.decode_weights import Linear, Norm, Watch, probe, why_not_stock
from gptrs.engines.engine import Engine, Run
from gptrs.engines.vocabulary import vocab_size_of, why_two_sizes
from gptrs.errors import ConfigError, GenerationError
from gptrs.memory import check_memory
from gptrs.model.gpt import GPTModel
from gptrs.model.layers import LayerNorm, TransformerBlock, is_stock
from gptrs.model.positions import alibi_slopes

# D emb_dim, V vocab_size, R rows of logits.

POSITIONS = frozenset({"learned", "sinusoidal", "rope", "alibi", "none"})
"""The kinds of `GPTConfig.pos` that Rust computes."""
DTYPES = (torch.float32, torch.bfloat16)
"""Of weights that are read where they lie."""
LANES = 16
"""A head's keys are filled up to a multiple of this."""


class Block(NamedTuple):
    """One transformer block."""

    norm1: Norm
    query: Linear
    key: Linear
    value: Linear
    scale: float
    """Of the attention scores."""
    out: Linear
    norm2: Norm
    up: Linear
    down: Linear


class Weights(NamedTuple):
    """What Rust reads: tensors over the parameters' own memory, which nobody can resize."""

    tokens: Tensor
    """[V, D]."""
    positions: str
    """One of POSITIONS."""
    table: Tensor | None
    """[context_length, D], where positions are learned."""
    slopes: list[float]
    """One a head, where positions are "alibi"."""
    num_heads: int
    blocks: list[Block]
    norm: Norm
    """The last one."""
    head: Linear
    """[V, D]."""


class NativeEngine(Engine):
    """The engine in Rust; see `why_not_native`.

    A loop takes `native` and asks the model itself; the methods of an Engine work until then.

    Args:
        model: in evaluation mode, or without dropout.
        slots: sequences at once.
        context_size: most tokens a slot holds, cut to what the model takes.
        prefill_tokens: most tokens of prompts in a call.
        int8: a byte a weight: the matrices are packed, row by row.
        threads: how many compute; None: as many as PyTorch takes (`torch.set_num_threads`).
        kernels: one of `_core.NativeModel.available_kernels()`; None: the fastest.
    Raises:
        ConfigError: threads is below 1, or the processor does not have these kernels.
        GenerationError: there is no memory for the cache.
    """

    def __init__(
        self,
        model: GPTModel,
        *,
        slots: int,
        context_size: int,
        prefill_tokens: int,
        int8: bool = False,
        threads: int | None = None,
        kernels: str | None = None,
    ) -> None:
        self._model = model
        self._int8 = int8
        self._dtype = model.tok_emb.weight.dtype
        known = _known_packed(model) if int8 else None
        self._seen = _Seen(model, is_copied=int8) if known is None else known.seen
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise ConfigError(f"threads is at least 1, found {threads}")
        context_length = min(context_size, model.cfg.max_tokens or context_size)
        _check_cache(model, slots, context_length, is_narrow=int8 or self._dtype == torch.bfloat16)
        self.native = _core.NativeModel(
            _weights(model),
            slots=slots,
            context_length=context_length,
            threads=threads,
            int8=int8,
            kernels=kernels,
            packed=None if known is None else known.packed,
        )
        if known is None and (packed := self.native.packed) is not None:
            _PACKED[model] = _Packed(self._seen, packed)
        precision = "int8" if int8 else _short(self._dtype)
        super().__init__(
            name=f"native {precision} {self.native.kernels}",
            vocab_size=vocab_size_of(model),
            context_length=context_length,
            slots=slots,
            prefill_tokens=prefill_tokens,
        )

    def refresh(self) -> Weights | None:
        """The weights, if they are not those that Rust reads or packed; asked now and then.

        Raises:
            GenerationError: the engine cannot go on with the model as it is now.
        """
        if self._seen.is_current():
            return None
        reason = why_not_native(self._model)
        dtype = self._model.tok_emb.weight.dtype
        if reason is None and dtype != self._dtype:
            reason = f"its weights are {_short(dtype)} now, and were {_short(self._dtype)}"
        if reason is not None:
            raise GenerationError(
                f"the model has changed, and the native engine cannot go on with it: {reason}"
            )
        self._seen = _Seen(self._model, is_copied=self._int8)
        return _weights(self._model)

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies keys and values."""
        for source, target, length in copies:
            self.native.copy(source, target, length)

    def _logits(self, runs: list[Run], wanted: list[int]) -> Tensor:
        slots = [slot for run in runs for slot in range(run.slots.start, run.slots.stop)]
        starts = [start for run in runs for start in run.starts]
        counts = [run.count for run in runs for _ in run.starts]
        tokens = self.tokens[: runs[-1].tokens.stop].tolist()
        if (weights := self.refresh()) is not None:
            self.native.set_weights(weights)
        return torch.from_numpy(self.native.extend(tokens, slots, starts, counts, wanted))


def _check_cache(model: GPTModel, slots: int, context_length: int, *, is_narrow: bool) -> None:
    """Raises GenerationError where there is no memory for keys and values."""
    width = model.cfg.n_heads * -(-model.cfg.head_dim // LANES) * LANES
    num_numbers = 2 * len(model.trf_blocks) * slots * context_length * width
    what = f"a key-value cache of {slots} rows of {context_length} tokens"
    check_memory(num_numbers * (2 if is_narrow else 4), torch.device("cpu"), what)


def why_not_native(model: nn.Module) -> str | None:
    """Why Rust would not compute what calling `model` does, or None."""
    if type(model) is not GPTModel:
        return f"{type(model).__name__} is not GPTModel itself"
    if model.cfg.memory_length:
        return "the model has a memory of earlier segments"
    if model.cfg.pos not in POSITIONS:
        return f"positions are {model.cfg.pos}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if torch_module._has_any_global_hook():
        return "a hook waits on all modules"
    if not is_stock(model.out_head, nn.Linear):
        return "the output layer was replaced"
    return why_two_sizes(model) or why_not_stock(model) or _why_not_readable(model)


def _why_not_readable(model: GPTModel) -> str | None:
    """Why the parameters cannot be read where they lie."""
    for name, parameter in model.named_parameters():
        if type(parameter) not in (nn.Parameter, Tensor):
            return f"{name} is a {type(parameter).__name__}"
        if parameter.device.type != "cpu":
            return f"{name} is on {parameter.device}"
        if parameter.dtype not in DTYPES:
            return f"{name} is {_short(parameter.dtype)}"
        if parameter.layout != torch.strided or not parameter.is_contiguous():
            return f"{name} is not contiguous"
        if parameter.data_ptr() % parameter.element_size():
            return f"{name} is not aligned"
    return None


class _Seen:
    """What a model was when the engine read it.

    Args:
        is_copied: what is written to the parameters counts, too.
    """

    def __init__(self, model: GPTModel, *, is_copied: bool) -> None:
        self._watch = Watch(model)
        self._parameters = list(model.parameters())
        copied = self._parameters if is_copied else []
        # Inference tensors do not count how often they were written.
        self._counted = [parameter for parameter in copied if not parameter.is_inference()]
        self._places, self._versions = self._now()
        self._probe = probe(copied)

    def is_current(self, *, thoroughly: bool = False) -> bool:
        """Whether the model has the same layers and parameters at the same places.

        Asked at every step of a stream, so it takes microseconds. `thoroughly` compares a sample of
        what was copied as well: what is written through `parameter.data` is not counted.
        """
        return (
            self._watch.sees_no_change()
            and self._now() == (self._places, self._versions)
            and not (thoroughly and not torch.equal(probe(self._parameters), self._probe))
        )

    def _now(self) -> tuple[list[int], list[int]]:
        places = list(map(Tensor.data_ptr, self._parameters))
        return places, [p._version for p in self._counted]


class _Packed(NamedTuple):
    """Matrices in eight bits, and the model that they were packed of."""

    seen: _Seen
    packed: _core.PackedWeights


_PACKED: WeakKeyDictionary[GPTModel, _Packed] = WeakKeyDictionary()


def _known_packed(model: GPTModel) -> _Packed | None:
    """What an earlier engine packed, if the model is what it was then."""
    known = _PACKED.get(model)
    if known is not None and not known.seen.is_current(thoroughly=True):
        _PACKED.pop(model, None)  # The old copies go before others are made.
        return None
    return known


def _weights(model: GPTModel) -> Weights:
    """The weights of a model that `why_not_native` has nothing against."""
    is_alibi = model.cfg.pos == "alibi"
    table = model.pos_emb.weight if isinstance(model.pos_emb, nn.Embedding) else None
    return Weights(
        tokens=_fixed(model.tok_emb.weight),
        positions=model.cfg.pos,
        table=None if table is None else _fixed(table),
        slopes=alibi_slopes(model.cfg.n_heads).tolist() if is_alibi else [],
        num_heads=model.cfg.n_heads,
        blocks=[_block(cast(TransformerBlock, block)) for block in model.trf_blocks],
        norm=_norm(model.final_norm),
        head=_linear(model.out_head),
    )


def _block(block: TransformerBlock) -> Block:
    att = block.att
    up, _, down = cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(block.ff.layers))
    return Block(
        norm1=_norm(block.norm1),
        query=_linear(att.W_query),
        key=_linear(att.W_key),
        value=_linear(att.W_value),
        scale=att.scale,
        out=_linear(att.out_proj),
        norm2=_norm(block.norm2),
        up=_linear(up),
        down=_linear(down),
    )


def _linear(layer: nn.Linear) -> Linear:
    bias: Tensor | None = layer.bias  # nn.Linear says that it has one.
    return Linear(_fixed(layer.weight), None if bias is None else _fixed(bias))


def _norm(layer: LayerNorm) -> Norm:
    return Norm(_fixed(layer.scale), _fixed(layer.shift), layer.eps)


def _fixed(parameter: Tensor) -> Tensor:
    """A tensor over a parameter's memory, whatever becomes of the parameter.

    Once NumPy has seen a storage, PyTorch refuses to resize or free it: Rust never reads what is no
    longer there. Moving a model replaces its storages, which is not concerned.
    """
    fixed = parameter.detach()
    fixed.view(torch.int16).numpy()
    return fixed


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
