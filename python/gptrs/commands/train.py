"""The command `gptrs train`: a new run, or one that goes on. --help works without importing torch.

DATA, --model, --set ... ─► Plan ─► RUN/run.json
                             └────────┬─► Job: inputs, model ─► gptrs.train
--resume RUN ─► RUN/run.json ─► Plan ─┘
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptrs.commands.training_options import (
    TrainCommand,
    model_options,
    read_file,
    runs_option,
    training_options,
)
from gptrs.errors import ConfigError, GptrsError, SourceError
from gptrs.launched import local_rank, num_processes, num_restarts, one_voice
from gptrs.training.callbacks import Callback
from gptrs.training.config import TrainingConfig
from gptrs.training.plan import (
    Plan,
    read_plan,
    refuse_folder_of_others,
    remove_plan,
    write_plan,
)
from gptrs.training.settings import Settings, describe_settings, parse_settings
from gptrs.weights.missing import no_such_path

if TYPE_CHECKING:
    from gptrs.training.callbacks import RunView, StepRecord
    from gptrs.training.job import Job
    from gptrs.training.trainer import TrainingResult

EXIT_CODES = {"interrupted": 130, "terminated": 143}
"""As a shell has them after SIGINT and SIGTERM."""


def _epilog() -> str:
    keys = "\n".join(f"{name} = {default}: {text}" for name, default, text in describe_settings())
    return f"\b\nKeys of --set and of the file, beside the model's own:\n{keys}"


@click.command(cls=TrainCommand, epilog=_epilog())
@click.argument("data", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", metavar="PRESET|CONFIG|auto",
              help="A preset such as gpt2-124m, a JSON or TOML file with a config, or auto: a size "
              "for the data and the minutes. By default a small one.")  # fmt: skip
@click.option("--init", type=click.Path(path_type=Path),
              help="Start from the weights in a run, a checkpoint, or a GPT-2's folder or "
              "file.")  # fmt: skip
@click.option("--tokenizer", "spec", help="gpt2, char (the text's characters), auto (learned from "
              "the text, as large as it is worth), tiktoken:gpt2, or the path of a tokenizer.json. "
              "By default the data's or the model's own, or gpt2.")  # fmt: skip
@click.option("--val", "validation", type=click.Path(path_type=Path),
              help="What to validate on; by default the last part of DATA.")  # fmt: skip
@click.option("--lora", type=click.IntRange(min=1), metavar="RANK",
              help="With --init: freeze the model, and train adapters of this rank.")  # fmt: skip
@click.option("--config", "file", type=click.Path(path_type=Path), is_eager=True,
              callback=read_file, help="A TOML file with settings, and with DATA and options in a "
              "table [run]; what the command line has counts before it.")  # fmt: skip
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="A setting, see below; may be repeated.")  # fmt: skip
@model_options
@training_options()
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.")
@runs_option
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN",
              help="Go on with a run that was stopped, from its newest checkpoint.")  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Write for TensorBoard, too.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and stop.")
def train(
    data: tuple[Path, ...],
    model: str | None,
    init: Path | None,
    spec: str | None,
    validation: Path | None,
    lora: int | None,
    file: Settings | None,
    assignments: tuple[str, ...],
    out: Path | None,
    runs_dir: Path,
    resume: Path | None,
    tensorboard: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    """Train a GPT on text or tokens, from nothing or from weights that have learned.

    DATA are text files, or folders with .txt and .md files, each file a document in UTF-8; or one
    token store; or one file of nanoGPT, llm.c or Megatron; or JSON with instructions. The run gets
    metrics.jsonl, checkpoints to go on from, its best model, loss.png and report.html. Ctrl-C stops
    early and keeps what was learned.
    """
    settings = _settings(file, assignments, options)
    data = data or tuple(map(Path, settings.run.get("data", ())))  # click before 8.2 has none.
    if resume is not None:
        named = {"DATA": data, "--model": model, "--init": init, "--val": validation,
                 "--tokenizer": spec, "--lora": lora, "--out": out,
                 "--dry-run": dry_run}  # fmt: skip
        if given := [name for name, value in named.items() if value]:
            is_in_file = file is not None and given[0].lstrip("-").lower() in file.run
            in_file = " of the file's [run]" if is_in_file else ""
            raise ConfigError(
                f"--resume goes on with what the run has: leave {given[0]}{in_file} out"
            )
        if settings.model:
            raise ConfigError(f"--resume keeps the model: leave {next(iter(settings.model))} out")
        with one_voice():
            return _go_on(resume, settings.training, tensorboard)
    if not data:
        raise click.UsageError("Missing argument 'DATA...'.")
    plan = Plan(
        data=[str(path.absolute()) for path in data],
        validation=None if validation is None else str(validation.absolute()),
        tokenizer=spec,
        model=model,
        model_changes=settings.model,
        training=settings.training,
        init=None if init is None else str(init.absolute()),
        lora=lora,
    )
    plan.check()
    if dry_run:
        with one_voice():
            return _estimate(plan)
    with one_voice():
        return _begin(plan, out, runs_dir, tensorboard)


def _settings(
    file: Settings | None, assignments: Sequence[str], options: dict[str, Any]
) -> Settings:
    """The file's, then --set's, then the options'."""
    training = {field.name for field in fields(TrainingConfig)}
    given = {name: value for name, value in options.items() if value is not None}
    found = (file or Settings({}, {})).updated(parse_settings(assignments))
    return found.updated(
        Settings(
            {name: value for name, value in given.items() if name in training},
            {name: value for name, value in given.items() if name not in training},
        )
    )


def _begin(plan: Plan, out: Path | None, runs_dir: Path, tensorboard: bool) -> int:
    from gptrs.commands.report import check_runs_dir, next_run_dir
    from gptrs.training.job import prepare_job
    from gptrs.training.run_lock import locked
    from gptrs.training.trainer import check_folder, has_run
    from gptrs.training.world import joined

    if out is None and num_processes() > 1:
        raise ConfigError("several processes train one run: name its folder with --out")
    callbacks = _callbacks(tensorboard)
    with joined(plan.config()) as world:
        if out is not None:
            if world.most(num_restarts()) and has_run(out):
                return _go_on(out, {}, tensorboard)
            check_folder(out, resume=False)
            refuse_folder_of_others(out)
        else:
            check_runs_dir(runs_dir)
        with ExitStack() as held:
            if out is not None:  # Before anything is read; a numbered folder is new.
                held.enter_context(locked(out, world))
            job = prepare_job(plan, world=world)
            run_dir = out or next_run_dir(runs_dir, "train")
            if out is None:
                held.callback(_remove_if_empty, run_dir)
                held.enter_context(locked(run_dir, world))
            result = _train(plan, job, run_dir, callbacks)
    return _tell(result, run_dir, plan.config())


def _train(plan: Plan, job: Job, run_dir: Path, callbacks: Sequence[Callback]) -> TrainingResult:
    """Begins a run in a folder that is locked; if nothing comes of it, its plan goes again."""
    from gptrs.training.trainer import has_run

    is_first = job.world.rank == 0
    try:
        if is_first:
            write_plan(plan.settled(job.model.cfg), job.inputs.tokenizer, run_dir)
        return job.train(run_dir, callbacks)
    except GptrsError:
        if is_first and not has_run(run_dir):
            remove_plan(run_dir)
        raise


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


class _KeepsPlan(Callback):
    """Writes the plan of a run that goes on: whoever goes on again has the changed settings too.

    Not before a step was taken with them, or there was none to take: those that were refused,
    whatever refused them, are not to stand in the way of going on without them.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan: Plan | None = plan

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """Writes it after the first."""
        if self._plan is not None:
            write_plan(self._plan, None, run.run_dir)
            self._plan = None

    def on_end(self, run: RunView, reason: str) -> None:
        """Writes it if nothing was left to do."""
        if self._plan is not None and reason != "failed":
            write_plan(self._plan, None, run.run_dir)


def _go_on(run_dir: Path, changes: dict[str, Any], tensorboard: bool) -> int:
    from gptrs.training.job import prepare_job
    from gptrs.training.run_lock import locked
    from gptrs.training.trainer import check_folder
    from gptrs.training.world import joined

    if not run_dir.exists():
        raise SourceError(no_such_path(run_dir))
    check_folder(run_dir, resume=True)
    begun = read_plan(run_dir)
    plan = begun.changed(changes)
    if plan.config().steps is not None and plan.config().minutes != begun.config().minutes:
        raise ConfigError(
            f"the length of {run_dir} is {plan.config().steps:,} steps, which minutes do not "
            "change: leave --minutes out; --steps asks for more"
        )
    callbacks = [_KeepsPlan(plan), *_callbacks(tensorboard)]
    with joined(plan.config()) as world, locked(run_dir, world):
        job = prepare_job(plan, run_dir, world=world)
        result = job.train(run_dir, callbacks, resume=True)
    return _tell(result, run_dir, plan.config())


def _estimate(plan: Plan) -> int:
    """For all processes by one alone: others that measure at the same time would slow it down."""
    from gptrs.model.lora import num_adapter_weights
    from gptrs.training.estimate import estimate, format_estimate
    from gptrs.training.job import prepare_job

    if local_rank() != 0:
        return 0
    job = prepare_job(plan, is_dry=True)
    found = estimate(
        job.model.cfg,
        job.config,
        job.num_tokens,
        world_size=num_processes(),
        num_adapters=num_adapter_weights(job.model),
    )
    click.echo(format_estimate(found))
    return 0


def _callbacks(tensorboard: bool) -> list[Callback]:
    """What a run of the command line writes besides; a missing extra is told at once."""
    from gptrs.training.reports.reports import RunReports

    callbacks: list[Callback] = [RunReports()]
    if tensorboard:
        from gptrs.training.reports.tensorboard_log import TensorBoard

        callbacks.append(TensorBoard())
    return callbacks


def _tell(result: TrainingResult, run_dir: Path, config: TrainingConfig) -> int:
    from gptrs.commands.report import print_summary

    if result.interrupted:
        return EXIT_CODES[result.reason]
    print_summary(result, config)
    click.echo(
        f'Let it write:\n  gptrs generate --model {shlex.quote(str(run_dir))} --prompt "..."'
    )
    return 0
