"""What the kinds of `gptrs plot` share: their options, the model, and the file that they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptrs.config import PRESETS
from gptrs.errors import CheckpointError, ConfigError
from gptrs.files import write_whole_with

if TYPE_CHECKING:
    import tiktoken
    from matplotlib.figure import Figure

    from gptrs.model.gpt import GPTModel
    from gptrs.text.tokenizer import Tokenizer

PAGE_SUFFIX = ".html"
_PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
_DOTS_PER_INCH = 150

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


def check_out(out: Path, *, page_too: bool = False) -> None:
    """Refuses what cannot be written, before anything is computed, and a missing matplotlib.

    Raises:
        ConfigError: `out` is no name of a picture, or a folder, or in one that does not exist.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    suffixes = (*_PICTURE_SUFFIXES, PAGE_SUFFIX) if page_too else _PICTURE_SUFFIXES
    suffix = out.suffix.lower()
    if suffix not in suffixes:
        raise ConfigError(f"{out}: a picture's name ends in {', '.join(suffixes)}")
    if out.is_dir() or not out.parent.is_dir():
        why = "it is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise ConfigError(f"{out} cannot be written: {why}")
    if suffix != PAGE_SUFFIX:
        from gptrs.plots.style import matplotlib_needed

        with matplotlib_needed():
            import matplotlib  # noqa: F401


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


def save(figure: Figure, out: Path) -> None:
    """Writes the picture whole or not at all, and says where it is."""
    kind = out.suffix.lower().removeprefix(".")
    write_whole_with(
        out, lambda temporary: figure.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH)
    )
    click.echo(f"drawn: {out}")
