"""A model in shards, one on each process: PyTorch's FSDP2, block by block.

    block 0   [ rank 0 | rank 1 | rank 2 ]      weights, gradients and moments lie in shards
    block 1   [ rank 0 | rank 1 | rank 2 ]
    the rest  [ rank 0 | rank 1 | rank 2 ]      tables, last norm, output layer

The first process alone has a whole model, a new one, before it is shared out.

A block's weights are gathered when it is computed, forward and backward, and its gradients are
summed straight into the shards, after every micro-batch: a whole gradient is never kept. Shards are
float32; what is gathered has the dtype that is computed in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gptrs.devices import Precision
from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import has_lora
from gptrs.training.config import ParallelName, TrainingConfig
from gptrs.training.parallel import Processes
from gptrs.training.shared_checkpoint import Peers
from gptrs.training.tensor_rows import Rows, SavedTensors


class ShardedProcesses(Processes):
    """The processes of torch.distributed's default group, each with its shards of the model."""

    parallel: ParallelName = "fsdp"
    is_sharded = True

    def __init__(self) -> None:
        super().__init__()
        self.peers: Peers = Peers()

    def check(self, model: GPTModel, config: TrainingConfig, precision: Precision) -> None:
        """Raises ConfigError for what needs whole matrices, or the whole model in one place."""
        if config.optimizer == "muon":
            raise ConfigError(
                "optimizer=muon needs whole matrices, and parallel=fsdp has them in shards: take "
                "adamw, or parallel=ddp"
            )
        if has_lora(model):
            raise ConfigError("adapters are small: train them with parallel=ddp, not fsdp")
        if config.sample_prompts:
            raise ConfigError(
                "parallel=fsdp has no whole model to write samples with: leave sample_prompts out; "
                "gptrs generate writes with any checkpoint of the run"
            )

    def wrap(self, step_loss: nn.Module, precision: Precision) -> nn.Module:
        """The module itself, its weights moved to the device and cut into shards.

        The weights are the first process's; what others have may be on the device "meta". If the
        first one's are there, too, they are left to be loaded.
        """
        whole = {name: weight.detach() for name, weight in step_loss.named_parameters()}
        is_made = self.first(not any(weight.is_meta for weight in whole.values()))
        policy = _policy(precision)
        for block in cast(GPTModel, step_loss.model).trf_blocks:
            _give_memory(block)
            fully_shard(block, mp_policy=policy)
        _give_memory(step_loss)
        fully_shard(step_loss, mp_policy=policy)
        if is_made:
            self._share_out(whole, step_loss)
        for module in step_loss.modules():
            if isinstance(module, FSDPModule):
                # A sum, not a mean: each loss is a share of the step's already. By default a factor
                # of 1 multiplies first, which gloo cannot.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return step_loss

    @torch.no_grad()
    def _share_out(self, whole: dict[str, Tensor], step_loss: nn.Module) -> None:
        """Fills all shards with the first process's weights, one after the other."""
        for name, parameter in step_loss.named_parameters():
            shard, given = cast(DTensor, parameter), whole.pop(name)
            local = shard.to_local()
            if self.rank:
                given = torch.empty_like(given, device=local.device)
            found = distribute_tensor(given.to(local.device), shard.device_mesh, shard.placements)
            local.copy_(found.to_local())

    def accumulating(self, is_last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch: the gradients of each are exchanged."""
        return nullcontext()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The length of all gradients together, of all shards."""
        total = torch.nn.utils.get_total_norm(gradients)
        return total.full_tensor() if isinstance(total, DTensor) else total

    def rows(self, tensor: Tensor) -> Rows:
        """A copy, on the CPU, of this process's shard; of what is whole, the first one has all."""
        if isinstance(tensor, DTensor):
            return super().rows(tensor.to_local())._replace(start=self._first_row(tensor))
        return super().rows(tensor) if self.rank == 0 else Rows(torch.empty(0))

    def placed(self, tensors: SavedTensors, name: str, like: Tensor | None) -> Tensor:
        """This process's shard of a saved tensor, where it is of a parameter in shards."""
        if not isinstance(like, DTensor) or tensors.shape(name) != like.shape:
            return tensors[name]  # A count of steps.
        local = like.to_local()
        rows = tensors.rows(name, self._first_row(like), len(local)).to(local.device)
        return DTensor.from_local(
            rows,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def part(self) -> None:
        """Ends the group of those that write."""
        self.peers.part()

    def _first_row(self, tensor: DTensor) -> int:
        """Of this process: all but the last ones have equally many, as torch.chunk cuts."""
        each = -(-len(tensor) // self.world_size)
        return min(self.rank * each, len(tensor))


def _give_memory(module: nn.Module) -> None:
    """Memory on the CPU, for now, to weights on the device "meta"; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False):
            if parameter.is_meta:
                if parameter not in made:
                    made[parameter] = nn.Parameter(torch.empty_like(parameter, device="cpu"))
                setattr(each, name, made[parameter])


def _policy(precision: Precision) -> MixedPrecisionPolicy:
    """In which dtype weights are gathered. Gradients are summed in float32.

    So both kinds of bfloat16 are the pure one, with the shards as masters.
    """
    if precision.dtype == torch.float32:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(precision.dtype, torch.float32)
