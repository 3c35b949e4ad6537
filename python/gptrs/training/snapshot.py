"""A run at one moment, as a checkpoint has it; and back.

weights      the model's files, by `ModelState`
tensors      the optimizer's, torch's random numbers
JSON         progress, clock, the other random numbers; what the run was begun with
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gptrs.training.checkpoint import SavedRun, Snapshot
from gptrs.training.model_state import ModelState
from gptrs.training.optimization import MasterWeights, Optimizers
from gptrs.training.parts import Parts, versions
from gptrs.training.random_state import random_numbers, random_tensors, restore_random

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
) -> Snapshot | None:
    """Copies all that goes on changing; None on all processes but the first, which writes it.

    Args:
        start: the run's event of that name.
    """
    world = parts.world
    random = world.gather(random_tensors(world.rank, parts.device))
    if world.rank and not world.is_sharded:
        return None
    metadata = {
        "step": progress.step,
        "val_loss": progress.val_loss,
        "training": start["config"],
    }
    write_model, beside = model.taken({} if masters is None else masters.masters, metadata, world)
    optimizer = {
        f"{_OPTIMIZER}{name}": world.copied(tensor) for name, tensor in optimizers.state().items()
    }
    if world.rank:
        return None
    return Snapshot(
        step=progress.step,
        write_model=write_model,
        tensors=optimizer | beside | random,
        state={
            **{name: start[name] for name in _IDENTITY},
            "chosen": parts.chosen(),
            "progress": asdict(progress),
            "clock": clock.to_dict(),
            "random": random_numbers(),
            "versions": versions(),
        },
    )


def restore(saved: SavedRun, parts: Parts, optimizers: Optimizers) -> None:
    """Gives the optimizers and the random number generators what they had.

    Raises:
        CheckpointError: the optimizers are others.
    """
    moments = {
        name.removeprefix(_OPTIMIZER): tensor
        for name, tensor in saved.tensors.items()
        if name.startswith(_OPTIMIZER)
    }
    for name, tensor in moments.items():
        parameter = optimizers.parameters.get(name.partition(".")[2])
        if parameter is not None:
            moments[name] = parts.world.placed(tensor, parameter)
    optimizers.load_state(moments)
    restore_random(saved.tensors, saved.state["random"], parts.world.rank, parts.device)
