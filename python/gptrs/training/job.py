"""A plan with all that it needs: inputs that were read, and a model; training can begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gptrs.config import GPTConfig
from gptrs.model.gpt import GPTModel
from gptrs.training.callbacks import Callback
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
from gptrs.training.parts import Data
from gptrs.training.plan import Plan, kept_tokenizer
from gptrs.training.step import World
from gptrs.training.trainer import TrainingResult, train_locked
from gptrs.training.validation import Validation


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


def prepare_job(plan: Plan, run_dir: Path | None = None, *, world: World | None = None) -> Job:
    """Reads the inputs and makes the model.

    Args:
        run_dir: of the run that goes on: its tokenizer is used, not made again. Its model's config
            is in the plan.
        world: the processes that train together; None is this one alone.
    Raises:
        GptrsError: something is missing, damaged or impossible.
    """
    config, world = plan.config(), world or World()
    model, beside = None, None
    if plan.init is not None:
        model, beside = pretrained_model(Path(plan.init), plan.model_changes)
    validation = None if plan.validation is None else Path(plan.validation)
    kept = None if run_dir is None else kept_tokenizer(run_dir)
    inputs = read_inputs([*map(Path, plan.data)], validation, kept or plan.tokenizer, beside)
    if isinstance(inputs, TokenInputs) and inputs.vocabulary_reason is not None:
        click.echo(inputs.vocabulary_reason)
    if model is None:
        # Where it is chosen by measuring, all take what the first found.
        model = new_model(world.first(_config_of_new(plan, inputs, config)), config.seed)
    elif plan.lora is not None:
        model = with_adapters(model, plan.lora, config.seed)
    return Job(model, inputs, config, world, fine_tunes=plan.init is not None)


def _config_of_new(
    plan: Plan, inputs: TokenInputs | Instructions, config: TrainingConfig
) -> GPTConfig:
    if plan.model_config is not None:
        return GPTConfig.of(plan.model_config)
    cfg, reason = model_config(plan.model, plan.model_changes, inputs, config)
    if reason is not None:
        click.echo(reason)
    return cfg
