"""One optimizer step: micro-batches to a gradient that is as if they had been one batch.

    batches ─► loss * (its targets / the step's) ─► backward ─► ... ─► norm ─► clipped ─► optimizer

Every position that counts weighs the same, whichever batch or process it is in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptrs.devices import Precision
from gptrs.errors import TrainingError
from gptrs.model.gpt import GPTModel
from gptrs.model.loss import IGNORE_INDEX, next_token_loss
from gptrs.model.operators import total_norm
from gptrs.training.config import ParallelName, TrainingConfig
from gptrs.training.data import Batch, StepBatches
from gptrs.training.shared_checkpoint import Peers
from gptrs.training.tensor_rows import Rows, SavedTensors

T = TypeVar("T")


class World:
    """The processes that train together: here one. `training_parallel` has worlds of several.

    Every process calls the same methods in the same order.
    """

    parallel: ParallelName = "none"
    rank = 0
    world_size = 1
    num_here = 1
    """How many of them share this machine's memory."""
    is_sharded = False
    """Whether the model is in shards: all have to call it equally often, and the weights that are
    optimized are float32, whatever is computed in."""
    peers: Peers | None = None
    """With whom to write checkpoints; None: the first process has all that is in them."""

    def check(self, model: GPTModel, config: TrainingConfig, precision: Precision) -> None:
        """Raises ConfigError if these processes cannot train like that."""

    def wrap(self, step_loss: nn.Module, precision: Precision) -> nn.Module:
        """What computes the loss in its place, and exchanges gradients in the backward pass."""
        return step_loss

    def accumulating(self, is_last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch: gradients are exchanged at the last."""
        return nullcontext()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The length of all gradients together."""
        return total_norm(gradients)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, on each."""
        return value

    def most(self, number: int) -> int:
        """The largest of all processes' numbers, on each; all have come so far then."""
        return number

    def first(self, value: T) -> T:
        """What the first process has, on each."""
        return value

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All processes' tensors, on the first; on the others, their own."""
        return dict(tensors)

    def rows(self, tensor: Tensor) -> Rows:
        """A copy, on the CPU, of what this process is to save of a tensor; it may be nothing."""
        return Rows(tensor.detach().to("cpu", copy=True))

    def placed(self, tensors: SavedTensors, name: str, like: Tensor | None) -> Tensor:
        """What of a saved tensor belongs beside `like`."""
        return tensors[name]

    def part(self) -> None:
        """Ends what the processes had together for this run."""


class StepLoss(nn.Module):
    """A model and its loss as one module, so that what wraps a module wraps both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """The mean loss over the positions that count, a scalar."""
        return next_token_loss(self.model, inputs, targets, cu_seqlens=cu_seqlens)


class StepOutcome(NamedTuple):
    """What the passes of a step gave."""

    loss: float
    """Mean over all positions that count, of all processes."""
    grad_norm: float

    @property
    def problem(self) -> str | None:
        """What is not finite, in words; None: the step can be taken."""
        measured = {"loss": self.loss, "gradient norm": self.grad_norm}
        found = [f"the {name} is {x}" for name, x in measured.items() if not math.isfinite(x)]
        return " and ".join(found) or None


def accumulate(
    step_loss: nn.Module,
    step: StepBatches,
    device: torch.device,
    precision: Precision,
    world: World,
) -> Tensor:
    """Adds the gradients of a step's mean loss to the parameters; this process's part of the loss.

    Raises:
        TrainingError: no position counts; or the device has no memory for a micro-batch.
    """
    counted = world.sum(torch.tensor(float(step.num_targets), device=device)).item()
    if not counted:
        raise TrainingError("no position of a step's batches counts: all targets are -100")
    total = torch.zeros((), device=device)
    try:
        batches = _as_many_for_all(step.batches, world)
        for number, batch in enumerate(batches, start=1):
            share, is_last = batch.num_targets / counted, number == len(batches)
            if not share and not world.is_sharded and (not is_last or world.world_size == 1):
                continue  # Nobody waits for its gradient, and the mean of nothing is no number.
            with world.accumulating(is_last):
                total += _backward(step_loss, batch.to(device), share, precision, device)
    except torch.OutOfMemoryError as error:
        raise TrainingError(_out_of_memory(step.batches[0], device, error)) from error
    return total


def _backward(
    step_loss: nn.Module, batch: Batch, share: float, precision: Precision, device: torch.device
) -> Tensor:
    """A micro-batch's share of the loss. One without a share has a gradient of zeros."""
    if not share:
        batch = batch._replace(targets=batch.targets.clamp(min=0))
    with precision.autocast(device):
        loss = step_loss(*batch) * share
    loss.backward()
    part: Tensor = loss.detach()
    return part


def _as_many_for_all(batches: list[Batch], world: World) -> list[Batch]:
    """The batches, with some that do not count where all processes compute equally many."""
    if not world.is_sharded:
        return batches
    missing = world.most(len(batches)) - len(batches)
    last = batches[-1]
    nothing = last._replace(targets=torch.full_like(last.targets, IGNORE_INDEX))
    return [*batches, *[nothing] * missing]


def measure(loss: Tensor, gradients: list[Tensor], world: World) -> StepOutcome:
    """The numbers of a step; a GPU is waited for once."""
    both = torch.stack([world.sum(loss).float(), world.norm(gradients).float()])
    return StepOutcome(*both.tolist())


def _out_of_memory(batch: Batch, device: torch.device, error: Exception) -> str:
    rows, length = batch.inputs.shape
    first_line = str(error).partition(". ")[0]
    return (
        f"{device} has no memory for {rows} windows of {length} tokens: lower micro_batch "
        f"(it was {rows}), or set activation_checkpointing=true, or take a smaller model or a "
        f"shorter context ({first_line})"
    )


def checkpoint_blocks(model: GPTModel) -> None:
    """Lets each block keep its input alone, and compute the rest again in the backward pass."""
    for block in model.trf_blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: GPTModel, *, around: bool = True) -> None:
    """Lets `torch.compile` translate the blocks, once for all of them: they are alike.

    Args:
        around: their hooks too; False leaves these as they are: FSDP's gather weights.
    """
    for block in model.trf_blocks:
        if around:
            block.compile()
        else:
            block.forward = torch.compile(block.forward)


def restore_blocks(model: GPTModel) -> None:
    """Undoes both."""
    for block in model.trf_blocks:
        vars(block).pop("forward", None)
        block._compiled_call_impl = None
