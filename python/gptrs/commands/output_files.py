"""The files that commands write: refused before anything is computed, written whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptrs.errors import ConfigError
from gptrs.files import write_whole_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_SUFFIX = ".html"
_PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
_DOTS_PER_INCH = 150


def refuse_input(out: Path, files: Iterable[str | Path]) -> None:
    """Refuses to write over what is read.

    Args:
        files: what is read; not looked at where `out` is yet to be made.
    Raises:
        ConfigError: `out` is one of them.
    """
    if out.exists() and any(map(out.samefile, files)):
        raise ConfigError(f"{out} cannot be written: it is what is read; name another file")


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


def save(figure: Figure, out: Path) -> None:
    """Writes the picture whole or not at all, and says where it is."""
    kind = out.suffix.lower().removeprefix(".")
    write_whole_with(
        out, lambda temporary: figure.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH)
    )
    click.echo(f"drawn: {out}")
