"""`--dry-run`: what a run will take, before it begins: parameters, memory, computing, time.

    configs, data's size ─► Estimate ─► a table

Memory is that of `gptrs.costs.memory_budget` at the run's micro-batch, with its optimizer, dtype
and number of processes. Time follows from tokens/s: those that are given, or a few passes, timed
here. What a run chooses by looking or measuring is chosen in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptrs.config import GPTConfig
from gptrs.costs.memory_budget import WORKING_PART, WORKING_SHARE, training_memory
from gptrs.costs.params import count_parameters
from gptrs.devices import Precision, choose_device
from gptrs.errors import ConfigError
from gptrs.memory import available_bytes
from gptrs.tables import align, size
from gptrs.training.config import TrainingConfig
from gptrs.training.model_choice import TOKENS_PER_PARAMETER
from gptrs.training.precision import MicroBatch, choose_micro_batch, training_precision
from gptrs.training.reports.speed import training_flops
from gptrs.training.trial import measured_flops_per_s

_FLOAT32, _BFLOAT16 = 4, 2
_TRIED_SHARE = 0.5
"""A model is tried out where it takes no more than this share of the free memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run will take."""

    num_parameters: int
    """Adapters included."""
    num_trained: int
    """Of them; the others are frozen."""
    num_tokens: int
    """To train on."""
    tokens_per_step: int
    device: str
    dtype: str
    """And why, in words."""
    micro_batch: MicroBatch
    num_devices: int
    memory: tuple[tuple[str, int], ...]
    """Each part in bytes, on one device."""
    available_bytes: int | None
    """On this device, now; None where the system does not say."""
    training_flops: int
    """Of a token."""
    tokens_per_s: float | None
    """None: unknown."""
    speed_source: str
    steps: int | None
    """None where minutes were given and tokens/s are unknown."""

    @property
    def total_bytes(self) -> int:
        """All parts of the memory together."""
        return sum(num_bytes for _, num_bytes in self.memory)

    @property
    def tokens_seen(self) -> int | None:
        """In the whole run."""
        return None if self.steps is None else self.steps * self.tokens_per_step

    @property
    def tokens_per_parameter(self) -> float | None:
        """Seen, repeated ones included; None where the steps are unknown."""
        seen = self.tokens_seen
        return None if seen is None else seen / self.num_parameters

    @property
    def seconds(self) -> float | None:
        """Of the steps alone, without evaluations; None where tokens/s are unknown."""
        if self.tokens_seen is None or self.tokens_per_s is None:
            return None
        return self.tokens_seen / self.tokens_per_s


def estimate(
    model_config: GPTConfig,
    training_config: TrainingConfig,
    num_tokens: int,
    *,
    tokens_per_s: float | None = None,
    world_size: int = 1,
    num_adapters: int = 0,
) -> Estimate:
    """What training `model_config`'s model on `num_tokens` tokens will take on this machine.

    Args:
        num_tokens: to train on, the held-out part left out.
        tokens_per_s: of all processes together; None: a few passes are timed here, without an
            optimizer and torch.compile, if the model has room, on one process.
        world_size: processes; with parallel="fsdp" they share weights, gradients and moments.
        num_adapters: weights of adapters beside the model, which alone learn; 0: all of it learns.
    Raises:
        ConfigError: the device or dtype is not available here.
    """
    config, cfg = training_config, model_config
    device = choose_device(config.device)
    precision = training_precision(config.dtype, device)
    tokens_per_step = config.tokens_per_step(cfg.context_length)
    micro_batch = _micro_batch(cfg, config, device, precision, world_size, num_adapters)
    memory = memory_parts(cfg, config, precision, micro_batch.size, world_size, num_adapters)
    available = available_bytes(device)
    if tokens_per_s is None:
        # What is tried out is whole, with weights and gradients, and in float32.
        tried = 2 * _FLOAT32 * count_parameters(cfg) + dict(memory)["activations"]
        fits = available is None or tried <= _TRIED_SHARE * available
        tokens_per_s, source = (
            _tried(cfg, config, device, micro_batch.size, world_size, num_adapters)
            if fits
            else (None, "too large to be tried out beside what else is in memory")
        )
    else:
        source = "as given"
    steps = config.steps
    if steps is None and tokens_per_s is not None:
        steps = max(1, int(tokens_per_s * 60 * config.minutes / tokens_per_step))
    return Estimate(
        num_parameters=count_parameters(cfg) + num_adapters,
        num_trained=num_adapters or count_parameters(cfg),
        num_tokens=num_tokens,
        tokens_per_step=tokens_per_step,
        device=str(device),
        dtype=f"{precision.name}: {precision.reason}",
        micro_batch=micro_batch,
        num_devices=world_size,
        memory=memory,
        available_bytes=available,
        training_flops=training_flops(cfg, num_adapters),
        tokens_per_s=tokens_per_s,
        speed_source=source,
        steps=steps,
    )


def memory_parts(
    cfg: GPTConfig,
    config: TrainingConfig,
    precision: Precision,
    micro_batch: int,
    world_size: int = 1,
    num_adapters: int = 0,
) -> tuple[tuple[str, int], ...]:
    """What one device keeps in a step, part by part, in bytes.

    Beside adapters that alone learn, all other weights have neither gradients nor moments.
    """
    column = "float32" if precision.dtype == torch.float32 else "bfloat16"
    rows = {row.part: getattr(row, column) for row in training_memory(cfg, None, micro_batch)}
    parameters = count_parameters(cfg) + num_adapters
    trained = num_adapters or parameters
    shards = world_size if config.parallel == "fsdp" else 1
    parts = {"weights": _FLOAT32 * parameters // shards}
    if precision.is_pure:
        parts["float32 masters"] = _FLOAT32 * trained // shards
        parts["weights"] = _BFLOAT16 * parameters // shards
    elif rows["bfloat16 copies"]:
        parts["bfloat16 copies"] = rows["bfloat16 copies"]
    parts["gradients"] = _FLOAT32 * trained // shards
    moments = 2 * trained
    if config.optimizer == "muon":  # One for each weight of the blocks' matrices, or of adapters.
        moments -= num_adapters or 12 * cfg.n_layers * cfg.emb_dim**2
    parts["optimizer"] = _FLOAT32 * moments // shards
    activations = rows["activations"] + rows.get("attention weights", 0)
    if config.activation_checkpointing:
        # Each block's input, and what one block keeps while it is computed again.
        inputs = _FLOAT32 * micro_batch * cfg.n_layers * cfg.context_length * cfg.emb_dim
        activations = activations // cfg.n_layers + inputs
    parts["activations"] = activations
    parts[WORKING_PART] = int(WORKING_SHARE[column] * sum(parts.values()))
    return tuple(parts.items())


def format_estimate(estimate: Estimate) -> str:
    """The estimate as text for a terminal."""
    memory = [[f"  {part}", size(num_bytes), ""] for part, num_bytes in estimate.memory]
    available = estimate.available_bytes
    room = "" if available is None else f"of {size(available)} that are free"
    each = " on each device" if estimate.num_devices > 1 else ""
    rows = [
        ["parameters", f"{estimate.num_parameters:,}", _trained(estimate)],
        ["tokens to train on", f"{estimate.num_tokens:,}", ""],
        *_length(estimate),
        ["device", estimate.device, f"{estimate.dtype}"],
        ["windows at once", f"{estimate.micro_batch.size:,}", estimate.micro_batch.reason],
        [f"memory{each}", size(estimate.total_bytes), room],
        *memory,
        ["FLOPs a token", f"{estimate.training_flops:,}", "forward and backward"],
        *_time(estimate),
    ]
    return "\n".join(align(rows, "<><"))


def _trained(estimate: Estimate) -> str:
    is_all = estimate.num_trained == estimate.num_parameters
    return "" if is_all else f"{estimate.num_trained:,} of them trained"


def _length(estimate: Estimate) -> list[list[str]]:
    """Steps, tokens, and what these are to the data and to the parameters."""
    steps = "unknown" if estimate.steps is None else f"{estimate.steps:,}"
    rows = [["steps", steps, f"of {estimate.tokens_per_step:,} tokens"]]
    seen, ratio = estimate.tokens_seen, estimate.tokens_per_parameter
    if seen is not None and ratio is not None:
        passes = f"{seen / max(1, estimate.num_tokens):.3g} times the data"
        best = f"about {TOKENS_PER_PARAMETER} are best where data is never short"
        rows += [["tokens seen", f"{seen:,}", passes], ["for each parameter", f"{ratio:.3g}", best]]
    return rows


def _time(estimate: Estimate) -> list[list[str]]:
    speed, seconds = estimate.tokens_per_s, estimate.seconds
    rows = [["tokens/s", "unknown" if speed is None else f"{speed:,.0f}", estimate.speed_source]]
    if seconds is not None:
        flops = estimate.training_flops * (estimate.tokens_seen or 0)
        rows.append(["FLOPs in all", f"{flops:.3g}", ""])
        rows.append(["time", _duration(seconds), "without evaluations"])
    return rows


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.3g} {name}"
    return f"{seconds:,.3g} s"


def _micro_batch(
    cfg: GPTConfig,
    config: TrainingConfig,
    device: torch.device,
    precision: Precision,
    world_size: int,
    num_adapters: int,
) -> MicroBatch:
    """The run's, or one window where not even that has room: that is what the table is to show."""
    windows = -(-config.tokens_per_step(cfg.context_length) // cfg.context_length)
    try:
        return choose_micro_batch(
            cfg,
            config.micro_batch,
            -(-windows // world_size),
            device=device,
            precision=precision,
            checkpointing=config.activation_checkpointing,
            num_adapters=num_adapters,
        )
    except ConfigError:
        return MicroBatch(1, "there is no room for it: see below")


def _tried(
    cfg: GPTConfig,
    config: TrainingConfig,
    device: torch.device,
    micro_batch: int,
    world_size: int,
    num_adapters: int,
) -> tuple[float, str]:
    flops_per_s = measured_flops_per_s(cfg, device, config.dtype, num_windows=micro_batch)
    speed = world_size * flops_per_s / training_flops(cfg, num_adapters)
    alike = "" if world_size == 1 else f", {world_size} times that of one process"
    return speed, f"forward and backward passes timed here, no optimizer{alike}"
