"""How processes that torchrun started become one `World`, and part again.

torchrun ─► RANK, WORLD_SIZE, ... ─► a process group ─► World: alone, with copies, with shards
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from gptrs.devices import choose_device
from gptrs.errors import ConfigError
from gptrs.launched import (
    is_launched,
    local_rank,
    num_machines,
    num_processes,
    num_processes_here,
    num_restarts,
)
from gptrs.training.config import TrainingConfig
from gptrs.training.parallel import Processes
from gptrs.training.step import World

TIMEOUT = timedelta(minutes=10)
"""So long the others wait for a process before they give up. One that ends is noticed at once."""


@contextmanager
def joined(config: TrainingConfig) -> Iterator[World]:
    """The processes that torchrun started, or this one alone; they part at the end.

    A default group that the caller made is used, and left as it is.

    Raises:
        ConfigError: `parallel` does not fit how this process was started; or there are fewer GPUs
            than processes, or no torch.distributed.
    """
    parallel = config.parallel
    is_there = dist.is_available() and dist.is_initialized()
    if not is_there and not is_launched():
        if parallel in ("ddp", "fsdp"):
            raise ConfigError(
                f"parallel={parallel} is for several processes, and this one is alone: start "
                "them with torchrun --nproc-per-node N -m gptrs train ..., or take parallel=auto"
            )
        yield World()
        return
    count = dist.get_world_size() if is_there else num_processes()
    if parallel == "none" and count > 1:
        raise ConfigError(
            f"parallel=none, and there are {count} processes: each would train and write "
            "the same run; take parallel=ddp or fsdp"
        )
    if parallel == "none" or (parallel == "auto" and count == 1):
        yield World()
        return
    if not is_there:
        _begin_group(config)
    world = _world(parallel)
    yield world
    # After an error there is nothing to part from: others may be gone, or wait in an exchange.
    world.part()
    if not is_there:
        dist.destroy_process_group()


def _world(parallel: str) -> World:
    if parallel != "fsdp":
        return Processes()
    from gptrs.training.sharding import ShardedProcesses  # Others need none of its imports.

    return ShardedProcesses()


def _begin_group(config: TrainingConfig) -> None:
    if not dist.is_available():
        raise ConfigError("this build of torch has no torch.distributed: train in one process")
    device = choose_device(config.device)
    if device.type == "mps":
        raise ConfigError("several processes train on cuda or cpu, not on mps")
    if device.type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"{num_processes_here()} processes on this machine, and "
                f"{torch.cuda.device_count()} GPUs: start as many processes as there are GPUs"
            )
        torch.cuda.set_device(local_rank())
    # With both, what decides about the run is exchanged without waiting for a GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    arrivals = dist.rendezvous("env://", timeout=TIMEOUT)  # type: ignore[attr-defined]
    store, rank, size = next(iter(arrivals))
    if num_machines() == 1:
        # torchrun's store outlives a restart, and in it are the addresses of processes that ended.
        prefix = f"start-{num_restarts()}"
        store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
