"""The options of `gptrs train`: one for each common setting, the model's, and a file for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from gptrs.config import Pos
from gptrs.training.config import TrainingConfig
from gptrs.training.settings import Settings, answer_option, read_settings

F = TypeVar("F", bound=Callable[..., Any])


def training_options(*names: str) -> Callable[[F], F]:
    """An option for each named field of TrainingConfig, or for all common ones; None if not set."""
    hints = get_type_hints(TrainingConfig)

    def add(function: F) -> F:
        for field in reversed(fields(TrainingConfig)):
            if field.name in names if names else field.metadata["is_common"]:
                default = "" if field.default is None else f"  [default: {field.default}]"
                function = click.option(
                    f"--{field.name.replace('_', '-')}",
                    type=_click_type(hints[field.name]),
                    help=f"{TrainingConfig.help(field.name)}{default}",
                )(function)
        return function

    return add


def _click_type(hint: Any) -> Any:
    """What click parses a field with: a Literal by its choices, `int | None` as an int."""
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    return next((part for part in get_args(hint) if part is not type(None)), hint)


def model_options(function: F) -> F:
    """Options for the model's fields that are changed most often; None if not set."""
    told: list[tuple[str, Any, str]] = [
        ("context_length", int, "Most tokens the model sees at once."),
        ("emb_dim", int, "Width of the model, a multiple of --n-heads."),
        ("n_heads", int, "Attention heads a layer."),
        ("n_layers", int, "Layers, that is transformer blocks."),
        ("drop_rate", float, "Dropout while training."),
        ("pos", click.Choice(get_args(Pos)), "How tokens know their places."),
        ("rel_max_distance", int, "From here on distances count as equal; for the kinds of --pos "
         "that have such a limit."),
    ]  # fmt: skip
    for name, kind, text in reversed(told):
        function = click.option(f"--{name.replace('_', '-')}", type=kind, help=text)(function)
    return function


runs_option = click.option(
    "--runs",
    "runs_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    show_default=True,
    help="The folder for numbered runs.",
)


class TrainCommand(click.Command):
    """Answers options of nanoGPT and transformers, and keys of --set, with what they are here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but for the answer to an option that there is not."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            options = {str(parameter.name) for parameter in self.params}
            answer = answer_option(error.option_name, options)
            if answer is None:
                raise
            raise click.UsageError(
                f"No such option {error.option_name!r}: {answer}", ctx
            ) from error


def read_file(ctx: click.Context, _: click.Parameter, file: Path | None) -> Settings | None:
    """The settings in --config; what is in its table [run] counts where the command line has none.

    Raises:
        SourceError, ConfigError: see `read_settings`.
    """
    if file is None:
        return None
    settings = read_settings(file)
    names = {name.lstrip("-"): each.name for each in ctx.command.params for name in each.opts}
    ctx.default_map = {str(names[key]): value for key, value in settings.run.items()}
    return settings
