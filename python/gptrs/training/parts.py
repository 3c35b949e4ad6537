"""What a run consists of, settled before the first step: all that can be wrong is refused here.

    model, data, config ─► device, dtype, micro-batch ─► batches, what is held out ─► Parts

What is chosen by looking or measuring has its reason with it, and a resumed run keeps the choice.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from gptrs._core import Digest
from gptrs.config import GPTConfig
from gptrs.devices import Precision, choose_device
from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import has_lora, num_adapter_weights
from gptrs.store.token_store import TokenStore
from gptrs.text.named_tokenizers import own_tokenizer
from gptrs.training.config import FINE_TUNING_SHARE, TrainingConfig
from gptrs.training.data import (
    BatchSource,
    Ids,
    Tokens,
    Uncut,
    WindowSource,
    as_tokens,
    windows_per_step,
)
from gptrs.training.precision import MicroBatch, choose_micro_batch, training_precision
from gptrs.training.step import World
from gptrs.training.validation import HeldOut, Validation, given, held_out, split_data

Data = Ids | TokenStore | BatchSource
"""What `train` can train on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a run consists of."""

    device: torch.device
    precision: Precision
    micro_batch: MicroBatch | None
    """None where a source of the caller's makes its own."""
    source: BatchSource
    held_out: HeldOut
    num_train_tokens: int | None
    """None where a source of the caller's does not say."""
    compiles: bool
    peak_learning_rate: float
    last_learning_rate: float
    learning_rate_reason: str | None
    """None where it is as asked, or what it is from nothing."""
    world: World

    def chosen(self) -> dict[str, Any]:
        """What was chosen by looking or measuring, as JSON."""
        size, reason = self.micro_batch or (None, "the data's own")
        return {
            "device": str(self.device),
            "dtype": str(self.precision.dtype).removeprefix("torch."),
            "dtype_reason": self.precision.reason,
            "pure": self.precision.is_pure,
            "micro_batch": size,
            "micro_batch_reason": reason,
            "compile": self.compiles,
            "learning_rate": self.peak_learning_rate,
            "final_learning_rate": self.last_learning_rate,
            "learning_rate_reason": self.learning_rate_reason,
            "parallel": self.world.parallel,
            "world_size": self.world.world_size,
            "num_threads": torch.get_num_threads(),
        }


def prepare(
    model: GPTModel,
    data: Data,
    validation: Validation | Ids | None,
    config: TrainingConfig,
    tokenizer: Any,
    world: World,
    chosen: Mapping[str, Any] | None = None,
    *,
    fine_tunes: bool = False,
) -> Parts:
    """The parts of a run. Computes nothing with the model, and writes nothing.

    Args:
        chosen: what `Parts.chosen` was in the run that is resumed: kept where the settings leave
            the choice and, for what depends on it, the device is of the same kind.
        fine_tunes: whether the model's weights have learned.
    Raises:
        ConfigError: a setting is impossible here.
        DataError, TokenIdError: the data is too short, or has other ids than the model.
    """
    device = choose_device(config.device)
    kept = chosen if chosen and torch.device(chosen["device"]).type == device.type else None
    precision = world.first(_precision(config, device, kept))
    world.check(model, config, precision)
    cfg = model.cfg
    source: Any = as_tokens(data, cfg.vocab_size)
    others: Any = as_tokens(validation, cfg.vocab_size)
    micro_batch, num_train = None, None

    def settled(rows: int) -> MicroBatch:
        """How many of a step's rows go through the model at once."""
        adapters = num_adapter_weights(model)
        found = _micro_batch(config, cfg, rows, device, precision, world, kept, adapters)
        return world.first(found)

    if isinstance(source, np.ndarray | TokenStore):
        batch_tokens = config.tokens_per_step(cfg.context_length)
        micro_batch = settled(windows_per_step(batch_tokens, cfg.context_length, world.world_size))
        source, num_train, held = _windows(
            source, others, config, cfg, micro_batch.size, tokenizer, world
        )
    else:
        held = _given(source, others)
        if isinstance(source, Uncut):
            micro_batch = settled(source.num_rows)
            source = source.cut(micro_batch.size)
    peak, last, reason = _learning_rates(config, model, fine_tunes, chosen)
    return Parts(
        device=device,
        precision=precision,
        micro_batch=micro_batch,
        source=source,
        held_out=held,
        num_train_tokens=num_train,
        compiles=device.type == "cuda" if config.compile is None else config.compile,
        peak_learning_rate=peak,
        last_learning_rate=last,
        learning_rate_reason=reason,
        world=world,
    )


def _windows(
    data: Tokens | TokenStore,
    validation: Validation | None,
    config: TrainingConfig,
    cfg: GPTConfig,
    micro_batch: int,
    tokenizer: Any,
    world: World,
) -> tuple[WindowSource, int, HeldOut]:
    if validation is not None and not isinstance(validation, np.ndarray | TokenStore):
        raise ConfigError("tokens are validated on tokens: found batches")
    split = split_data(data, validation, config, cfg)
    batch_tokens = config.tokens_per_step(cfg.context_length)
    if batch_tokens > split.num_train and world.rank == 0:
        warnings.warn(
            f"a step has {batch_tokens:,} tokens, more than the {split.num_train:,} to train on: "
            f"it sees each {batch_tokens / split.num_train:.3g} times; batch_tokens says how many",
            stacklevel=2,
        )
    source = WindowSource(
        data,
        cfg.context_length,
        batch_tokens,
        seed=config.seed,
        stop=split.num_train,
        micro_batch=micro_batch,
        rank=world.rank,
        world_size=world.world_size,
    )
    return source, split.num_train, held_out(data, split, cfg, micro_batch, tokenizer)


def _given(data: BatchSource, validation: Validation | None) -> HeldOut:
    if not hasattr(data, "micro_batches"):
        raise ConfigError(
            "train takes token ids as a NumPy array, a tensor or a list, or a TokenStore, or an "
            f"object with micro_batches(step); found {type(data).__name__}"
        )
    if validation is None or isinstance(validation, np.ndarray | TokenStore):
        raise ConfigError("a source of batches is validated on batches: give validation=[...]")
    return given(validation)


def _precision(
    config: TrainingConfig, device: torch.device, kept: Mapping[str, Any] | None
) -> Precision:
    if config.dtype != "auto" or kept is None:
        return training_precision(config.dtype, device)
    return Precision(getattr(torch, kept["dtype"]), kept["dtype_reason"], kept["pure"])


def _micro_batch(
    config: TrainingConfig,
    cfg: GPTConfig,
    windows: int,
    device: torch.device,
    precision: Precision,
    world: World,
    kept: Mapping[str, Any] | None,
    num_adapters: int,
) -> MicroBatch:
    is_same = kept is not None and kept["world_size"] == world.world_size
    if kept is not None and is_same and config.micro_batch is None and kept["micro_batch"]:
        return MicroBatch(kept["micro_batch"], kept["micro_batch_reason"])
    share = -(-windows // world.world_size)
    return choose_micro_batch(
        cfg,
        config.micro_batch,
        share,
        device=device,
        precision=precision,
        checkpointing=config.activation_checkpointing,
        num_sharing=world.num_here if device.type == "cpu" else 1,
        num_shards=world.world_size if world.is_sharded else 1,
        num_adapters=num_adapters,
    )


def _learning_rates(
    config: TrainingConfig, model: GPTModel, fine_tunes: bool, chosen: Mapping[str, Any] | None
) -> tuple[float, float, str | None]:
    """The highest, the last, and what led to them."""
    if chosen is not None and config.learning_rate is None:
        last = config.final_learning_rate
        last = chosen["final_learning_rate"] if last is None else last
        return chosen["learning_rate"], last, chosen.get("learning_rate_reason")
    is_lower = config.learning_rate is None and fine_tunes and not has_lora(model)
    peak = config.peak_learning_rate(model.cfg.emb_dim, fine_tunes=is_lower)
    reason = f"{FINE_TUNING_SHARE:g} of that from nothing, since the weights have learned"
    return peak, config.last_learning_rate(peak), reason if is_lower else None


def described(
    parts: Parts, model: GPTModel, config: TrainingConfig, tokenizer: Any
) -> dict[str, Any]:
    """The values of the event `start`: what is trained, on what, how, and with which programs."""
    return {
        "config": asdict(config),
        "model": model.cfg.to_dict(),
        "data": parts.source.describe(),
        "validation": {
            "tokens": _digest_of(parts.held_out),
            "num_tokens": parts.held_out.num_tokens,
        },
        "vocabulary": vocabulary(tokenizer),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_trained_parameters": sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        ),
        "num_train_tokens": parts.num_train_tokens,
        "num_validation_tokens": parts.held_out.num_tokens,
        "tokens_per_step": parts.source.num_tokens_per_step,
        "unigram_loss": parts.held_out.unigram_loss,
        "bytes_per_token": parts.held_out.bytes_per_token,
        **parts.chosen(),
        "versions": versions(),
        "torch": torch.__version__,
    }


def _digest_of(held_out: HeldOut) -> str:
    """What tells these inputs and targets from others, however many rows a batch has."""
    digests = Digest(), Digest()
    for batch in held_out.batches:
        for digest, tensor in zip(digests, batch[:2], strict=True):
            ids = tensor.to("cpu", torch.int64).contiguous().numpy()
            digest.update(ids.reshape(-1).view(np.uint8))
    return "-".join(digest.hexdigest() for digest in digests)


def vocabulary(tokenizer: Any) -> str | None:
    """What tells a tokenizer from every other."""
    return None if tokenizer is None else own_tokenizer(tokenizer)._core.fingerprint()


def versions() -> dict[str, str]:
    """The programs that a run depends on."""
    names = ("gptrs", "torch", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
