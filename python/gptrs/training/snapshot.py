"""A run at one moment, as a checkpoint has it; and back.

weights      the model's files, by `ModelState`
tensors      the optimizer's, torch's random numbers
JSON         progress, clock, the other random numbers; what the run was begun with

Of a model in shards each process takes, and gets back, its own rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from gptrs.training.checkpoint import SavedRun, Snapshot
from gptrs.training.model_state import ModelState
from gptrs.training.optimization import MasterWeights, Optimizers
from gptrs.training.parts import Parts, versions
from gptrs.training.random_state import random_numbers, random_tensors, restore_random
from gptrs.training.shared_checkpoint import Share
from gptrs.training.tensor_rows import Rows
from gptrs.training.writer import Writable

if TYPE_CHECKING:
    from gptrs.training.progress import Clock, Progress

_OPTIMIZER = "optimizer."
_IDENTITY = ("model", "data", "validation", "vocabulary", "config")


def take_snapshot(
    start: Mapping[str, Any],
    parts: Parts,
    model: ModelState,
    optimizers: Optimizers,
    masters: MasterWeights | None,
    progress: Progress,
    clock: Clock,
) -> Writable | None:
    """Copies all that goes on changing, for those who write it; None for the others.

    Where the model is in shards, all processes write; elsewhere the first one alone.

    Args:
        start: the run's event of that name.
    """
    world = parts.world
    random = world.gather(random_tensors(world.rank, parts.device))
    if world.rank and world.peers is None:
        return None
    metadata = {
        "step": progress.step,
        "val_loss": progress.val_loss,
        "training": start["config"],
    }
    state = {
        **{name: start[name] for name in _IDENTITY},
        "chosen": parts.chosen(),
        "progress": asdict(progress),
        "clock": clock.to_dict(),
        "random": random_numbers(),
        "versions": versions(),
    }
    moments = {f"{_OPTIMIZER}{name}": tensor for name, tensor in optimizers.state().items()}
    if world.peers is None:
        write, beside = model.taken({} if masters is None else masters.masters, metadata)
        copied = {name: tensor.to("cpu", copy=True) for name, tensor in moments.items()}
        return Snapshot(progress.step, write, copied | beside | random, state)
    states = {name: Rows(tensor) for name, tensor in random.items()} if world.rank == 0 else {}
    return Share(
        step=progress.step,
        weights={name: world.rows(tensor) for name, tensor in model.weights().items()},
        tensors={name: world.rows(tensor) for name, tensor in moments.items()} | states,
        write_model=partial(model.write, metadata=metadata),
        state=state,
        peers=world.peers,
    )


def restore(saved: SavedRun, parts: Parts, optimizers: Optimizers) -> None:
    """Gives the optimizers and the random number generators what they had.

    Raises:
        CheckpointError: the optimizers are others.
    """
    moments = {}
    for stored in saved.tensors:
        if stored.startswith(_OPTIMIZER):
            name = stored.removeprefix(_OPTIMIZER)
            parameter = optimizers.parameters.get(name.partition(".")[2])
            moments[name] = parts.world.placed(saved.tensors, stored, parameter)
    optimizers.load_state(moments)
    restore_random(saved.tensors, saved.state["random"], parts.world.rank, parts.device)
