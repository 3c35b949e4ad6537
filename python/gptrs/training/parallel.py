"""Several processes that train one model: torch.distributed's default group as a `World`.

    torchrun ─► rank 0   its windows ─► gradient ┐         ┌─► the same step
                rank 1   its windows ─► gradient ├─► sum ──┼─► the same step
                rank 2   its windows ─► gradient ┘         └─► the same step

Every process has the whole model (DistributedDataParallel), or its shards alone (FSDP2, see
`training_sharding`). What decides about the run, the clock first of all, is the first process's to
say: a process that evaluated when others did not would wait for them for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptrs.devices import Precision
from gptrs.errors import ConfigError
from gptrs.launched import num_processes_here
from gptrs.model.gpt import GPTModel
from gptrs.training.config import ParallelName, TrainingConfig
from gptrs.training.step import World

T = TypeVar("T")


class Processes(World):
    """The processes of torch.distributed's default group, each with a copy of the model."""

    parallel: ParallelName = "ddp"

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.num_here = num_processes_here()
        self._replica: DistributedDataParallel | None = None

    def check(self, model: GPTModel, config: TrainingConfig, precision: Precision) -> None:
        """Raises ConfigError for what copies of a model cannot do."""
        if precision.is_pure:
            # Its gradients move to the masters before they are exchanged.
            raise ConfigError(
                "parallel=ddp does not train in pure-bfloat16: take dtype=bfloat16, or "
                "parallel=fsdp, whose shards are the float32 masters"
            )

    def wrap(self, step_loss: nn.Module, precision: Precision) -> nn.Module:
        """A module whose backward pass exchanges gradients, bucket after bucket as they come."""
        self._replica = DistributedDataParallel(step_loss, gradient_as_bucket_view=True)
        # torch compares a hook's annotations with its own; a lambda has none.
        self._replica.register_comm_hook(None, lambda _, bucket: _summed(bucket))
        return self._replica

    def accumulating(self, is_last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch: gradients are exchanged at the last."""
        if is_last or self._replica is None:
            return nullcontext()
        return self._replica.no_sync()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, on each."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def most(self, number: int) -> int:
        """The largest of all processes' numbers, on each."""
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def first(self, value: T) -> T:
        """What the first process has, on each."""
        holder = [value]
        dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
        return holder[0]

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All processes' tensors, on the first; on the others, their own."""
        every: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(dict(tensors), every, dst=0)
        return {name: t for part in every or [tensors] for name, t in part.items()}


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    """Adds the gradients of all processes. No mean: each loss is a share of the step's already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Any] = work.get_future()
    return future.then(lambda done: done.value()[0])
