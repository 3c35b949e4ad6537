"""A plan with all that it needs: inputs that were read, and a model; training can begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from gptrs.config import GPTConfig
from gptrs.costs.params import count_parameters
from gptrs.errors import ConfigError, SourceError
from gptrs.memory import available_bytes
from gptrs.model.gpt import GPTModel
from gptrs.store.token_store import TokenStore
from gptrs.training.callbacks import Callback
from gptrs.training.checkpoint import checkpoints
from gptrs.training.config import TrainingConfig
from gptrs.training.inputs import (
    Instructions,
    TokenInputs,
    model_config,
    new_model,
    pretrained_model,
    read_inputs,
    with_adapters,
)
from gptrs.training.instructions.data import instruction_data
from gptrs.training.parts import Data, vocabulary
from gptrs.training.plan import Plan, kept_tokenizer
from gptrs.training.step import World
from gptrs.training.trainer import TrainingResult, train_locked
from gptrs.training.validation import Validation
from gptrs.weights.pretrained import config_of_pretrained, tokenizer_beside


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained, on what, and how."""

    model: GPTModel
    inputs: TokenInputs | Instructions
    config: TrainingConfig
    world: World
    fine_tunes: bool
    """Whether the model's weights have learned."""

    @property
    def num_tokens(self) -> int:
        """About how many there are to train on."""
        held_out = self.config.validation_fraction if self.inputs.validation is None else 0.0
        return int(self.inputs.num_tokens * (1 - held_out))

    def train(
        self, run_dir: Path, callbacks: Sequence[Callback], *, resume: bool = False
    ) -> TrainingResult:
        """Trains, or goes on, in a folder that is `locked`; raises what `gptrs.train` does."""
        data, validation = self._for_training()
        return train_locked(
            self.model,
            data,
            self.config,
            run_dir=run_dir,
            tokenizer=self.inputs.tokenizer,
            validation=validation,
            callbacks=callbacks,
            resume=resume,
            world=self.world,
            fine_tunes=self.fine_tunes,
        )

    def _for_training(self) -> tuple[Data, Validation | None]:
        inputs = self.inputs
        if not isinstance(inputs, Instructions):
            return inputs.data, inputs.validation
        made = instruction_data(
            inputs.entries,
            inputs.tokenizer,
            self.model.cfg,
            self.config,
            validation=inputs.validation,
            world=self.world,
        )
        click.echo(made.description)
        return made.source, made.validation


def prepare_job(
    plan: Plan,
    run_dir: Path | None = None,
    *,
    world: World | None = None,
    is_dry: bool = False,
) -> Job:
    """Reads the inputs and makes the model.

    Args:
        run_dir: of the run that goes on: its tokenizer is used, not made again. Its model's config
            is in the plan.
        world: the processes that train together; None is this one alone.
        is_dry: the model takes no memory and has no numbers, as torch's device "meta" has it: for
            who only asks how large it is.
    Raises:
        ConfigError: the model's weights alone are more than the memory that is free; or a run is to
            begin with weights that know another tokenizer's ids than the data's.
        GptrsError: something is missing, damaged or impossible.
    """
    config, world = plan.config(), world or World()
    given = _weights_to_begin_with(plan, run_dir)
    # Before what is read: it may be missing.
    cfg = None if given is None else replace(config_of_pretrained(given), **plan.model_changes)
    beside = None if given is None else tokenizer_beside(given)
    validation = None if plan.validation is None else Path(plan.validation)
    kept = None if run_dir is None else kept_tokenizer(run_dir)
    inputs = read_inputs([*map(Path, plan.data)], validation, kept or plan.tokenizer, beside)
    if run_dir is None:  # What goes on is compared with its checkpoint.
        _refuse_another_tokenizer(plan, inputs, beside)
    if isinstance(inputs, TokenInputs) and inputs.vocabulary_reason is not None:
        click.echo(inputs.vocabulary_reason)
    if cfg is None:
        # Where it is chosen by measuring, all take what the first found.
        cfg = world.first(_config_of_new(plan, inputs, config))
    # The weights of shards are the first process's, which are shared out, or a checkpoint's.
    is_filled_later = world.is_sharded and (world.rank > 0 or _has_checkpoint(run_dir))
    if is_dry or is_filled_later:
        model = _model_without_numbers(plan, cfg)
    else:
        _check_room(cfg, world)
        model = _model(plan, cfg, config.seed, given)
    return Job(model, inputs, config, world, fine_tunes=plan.init is not None)


def _refuse_another_tokenizer(plan: Plan, inputs: TokenInputs | Instructions, beside: Any) -> None:
    """Raises ConfigError if the data has other ids than those that the weights have learned.

    The model would take them, as long as it has as many. `beside` is the weights' tokenizer; where
    there is none, nobody knows.
    """
    learned, found = vocabulary(beside), inputs.vocabulary
    if learned is None or found is None or learned == found:
        return
    is_ready = isinstance(inputs, TokenInputs) and isinstance(inputs.data, TokenStore)
    name = "its store's" if inputs.tokenizer is None else inputs.tokenizer.name
    raise ConfigError(
        f"{plan.init} has learned the ids of the tokenizer beside it, {beside.name} "
        f"({learned[:8]}), and {plan.data[0]} is in those of {name} ({found[:8]}): "
        + (
            "build a store with the tokenizer of the weights"
            if is_ready
            else "leave --tokenizer out to take that of the weights"
        )
    )


def _has_checkpoint(run_dir: Path | None) -> bool:
    return run_dir is not None and bool(checkpoints(run_dir))


def _weights_to_begin_with(plan: Plan, run_dir: Path | None) -> Path | None:
    """Those that `init` names, unless a checkpoint of the run that goes on has all weights.

    Raises:
        SourceError: adapters, which are all that their checkpoints have, go on without the rest.
    """
    if plan.init is None:
        return None
    given, goes_on = Path(plan.init), _has_checkpoint(run_dir)
    if goes_on and plan.lora is None and plan.model_config is not None:
        return None
    if goes_on and not given.exists():
        raise SourceError(
            f"{given}: the weights that {run_dir} trains adapters of are no longer there"
            if plan.lora is not None
            else f"{given}: the weights that {run_dir} began with are no longer there"
        )
    return given


def _model(plan: Plan, cfg: GPTConfig, seed: int, given: Path | None) -> GPTModel:
    if given is None:
        return new_model(cfg, seed)
    model, _ = pretrained_model(given, plan.model_changes)
    return model if plan.lora is None else with_adapters(model, plan.lora, seed)


def _model_without_numbers(plan: Plan, cfg: GPTConfig) -> GPTModel:
    with torch.device("meta"):
        model = GPTModel(cfg)
        return model if plan.lora is None else with_adapters(model, plan.lora, seed=0)


def _check_room(cfg: GPTConfig, world: World) -> None:
    """Before the system kills whoever asks for too much. What training takes besides is seen later.

    A model is made in float32, on the CPU, by each process for itself; where it is shared out in
    shards, by the first one.
    """
    available = available_bytes(torch.device("cpu"))
    num_parameters = count_parameters(cfg)
    num_models = 1 if world.is_sharded else world.num_here
    num_bytes = num_models * num_parameters * torch.float32.itemsize
    if available is not None and num_bytes > available:
        times = "" if num_models == 1 else f" in {num_models} processes"
        raise ConfigError(
            f"the weights of a model with {num_parameters:,} parameters take "
            f"{num_bytes / 1e9:,.1f} GB{times}, and training them about four times that; "
            f"{available / 1e9:,.1f} GB are free: take a smaller model, or lower n_layers, emb_dim "
            "or vocab_size"
        )


def _config_of_new(
    plan: Plan, inputs: TokenInputs | Instructions, config: TrainingConfig
) -> GPTConfig:
    if plan.model_config is not None:
        return GPTConfig.of(plan.model_config)
    cfg, reason = model_config(plan.model, plan.model_changes, inputs, config)
    if reason is not None:
        click.echo(f"{reason}{_default_minutes(plan, config)}")
    return cfg


def _default_minutes(plan: Plan, config: TrainingConfig) -> str:
    """What to know of a size that was chosen for a time that nobody gave."""
    if config.steps is None or "minutes" in plan.training:
        return ""
    return (
        f". That is for the {config.minutes:g} minutes that are the default, whatever "
        f"{config.steps:,} steps take: --minutes chooses for another time"
    )
