"""A model in shards, one on each process: PyTorch's FSDP2, block by block.

    block 0   [ rank 0 | rank 1 | rank 2 ]      weights, gradients and moments lie in shards
    block 1   [ rank 0 | rank 1 | rank 2 ]
    the rest  [ rank 0 | rank 1 | rank 2 ]      tables, last norm, output layer

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


class ShardedProcesses(Processes):
    """The processes of torch.distributed's default group, each with its shards of the model."""

    parallel: ParallelName = "fsdp"
    is_sharded = True

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
        """The module itself, its weights moved to the device and cut into shards."""
        policy = _policy(precision)
        for block in cast(GPTModel, step_loss.model).trf_blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(step_loss, mp_policy=policy)
        for module in step_loss.modules():
            if isinstance(module, FSDPModule):
                # A sum, not a mean: each loss is a share of the step's already. By default a factor
                # of 1 multiplies first, which gloo cannot.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return step_loss

    def accumulating(self, is_last: bool) -> AbstractContextManager[object]:
        """Around the passes of a micro-batch: the gradients of each are exchanged."""
        return nullcontext()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The length of all gradients together, of all shards."""
        total = torch.nn.utils.get_total_norm(gradients)
        return total.full_tensor() if isinstance(total, DTensor) else total

    def copied(self, tensor: Tensor) -> Tensor:
        """A whole copy on the CPU, on the first process; on the others, nothing."""
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return super().copied(whole) if self.rank == 0 else torch.empty(0)

    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This process's shard of a whole tensor, where it is of a parameter in shards."""
        if not isinstance(like, DTensor) or tensor.shape != like.shape:
            return tensor  # A count of steps.
        device = like.to_local().device
        return distribute_tensor(
            tensor.to(device), like.device_mesh, like.placements, src_data_rank=None
        )


def _policy(precision: Precision) -> MixedPrecisionPolicy:
    """In which dtype weights are gathered. Gradients are summed in float32.

    So both kinds of bfloat16 are the pure one, with the shards as masters.
    """
    if precision.dtype == torch.float32:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(precision.dtype, torch.float32)
