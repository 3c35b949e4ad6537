"""What the kinds of `gptrs plot` share: their options and the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptrs.config import PRESETS
from gptrs.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import tiktoken

    from gptrs.model.gpt import GPTModel
    from gptrs.text.tokenizer import Tokenizer

F = TypeVar("F", bound=Callable[..., Any])

model_option = click.option(
    "--model",
    "path",
    required=True,
    metavar="PATH",
    help="A run, a checkpoint, a Hugging Face GPT-2's folder or a file of weights.",
)


def picture_options(function: F) -> F:
    """What all kinds take: `--out`, by default named after the kind, and `--style`."""
    out = click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=f"{function.__name__}.png",
        show_default=True,
        help="The file to write.",
    )
    style = click.option(
        "--style",
        type=click.Choice(("light", "dark")),
        default="light",
        show_default=True,
        help="On white or on black.",
    )
    return out(style(function))


def load(path: str) -> tuple[GPTModel, Tokenizer | tiktoken.Encoding]:
    """The model in `path` and its tokenizer.

    Raises:
        ConfigError: it is a preset, which has no weights.
        click.ClickException: there is no model, or it cannot be read.
    """
    if path in PRESETS and not Path(path).exists():
        raise ConfigError(
            f"{path} is a preset: it has no weights that could be drawn; --model names a run, such "
            "as `gptrs demo` makes, or a folder or file of weights"
        )
    from gptrs.weights.pretrained import with_tokenizer

    try:
        return with_tokenizer(Path(path))
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
