"""The commands `gptrs build` and `gptrs merge`. No torch here."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from gptrs.commands.tokens import tokenizer_option

STOPPED: Final = "stopped; the same command goes on from here"
ESCAPE: Final = re.compile(r"\\(?:[nrtfv0\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")


def _separator(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Escapes as the characters they mean: a shell has no easy way to type a line end."""
    if value is None:
        return None
    return ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), value)


def _task(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if not found:
        raise click.BadParameter(f"expected i/N, such as 0/8 for the first of eight, found {value}")
    return int(found[1]), int(found[2])


_out_option = click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder for the store, made if missing.",
)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@_out_option
@tokenizer_option
@click.option("--text-key", default="text", show_default=True,
              help="The field of a JSON line, or the column of a Parquet file.")  # fmt: skip
@click.option("--split-on", callback=_separator, metavar="TEXT",
              help=r"What separates the documents of a text file, such as '\n\n'.")  # fmt: skip
@click.option("--format", "input_format", type=click.Choice(("auto", "text", "jsonl")),
              default="auto", show_default=True,
              help="What files and standard input are; auto goes by the name.")  # fmt: skip
@click.option("--skip-invalid", is_flag=True,
              help="Leave out lines and rows without a text, and count them.")  # fmt: skip
@click.option("--errors", type=click.Choice(("strict", "replace")), default="strict",
              show_default=True,
              help="Refuse what is not UTF-8, or put U+FFFD in its place.")  # fmt: skip
@click.option("--allow-special", is_flag=True,
              help="Take <|endoftext|> and its like in the text for special tokens.")  # fmt: skip
@click.option("--min-chars", default=0, show_default=True,
              help="Leave out documents of fewer characters.")  # fmt: skip
@click.option("--deduplicate", is_flag=True,
              help="Leave out documents that equal an earlier one.")  # fmt: skip
@click.option("--val-fraction", default=0.0, show_default=True,
              help="The share of documents for OUT/val; the rest go to OUT/train.")  # fmt: skip
@click.option("--task", callback=_task, metavar="i/N",
              help="Build part i of N, counted from 0; `gptrs merge` joins the parts.")  # fmt: skip
@click.option("--threads", type=int, help="How many threads encode; all processors by default.")
@click.option("--memory", default="512MB", show_default=True, help="How much memory to use.")
def build(inputs: tuple[str, ...], out: Path, spec: str, **settings: Any) -> None:
    """Make a token store of text, of any size.

    INPUT is a file, a folder, a pattern such as 'data/**/*.jsonl', or - for standard input. Text
    (.txt, .md, any other), JSON Lines (.jsonl), both also .gz or .zst, and Parquet. A text file is
    one document, or many with --split-on; a line or a row is one each.

    Ctrl-C, or a crash, loses nothing: the same command goes on where it was.
    """
    from gptrs.store.building import (
        build_store,  # Which takes NumPy, and no other command should wait.
    )

    begun: Mapping[str, int] = {}
    done: Mapping[str, int] = {}

    def watch(counts: Mapping[str, int]) -> None:
        nonlocal begun, done
        begun, done = begun or counts, counts

    start = time.perf_counter()
    try:
        build_store(list(inputs), out, tokenizer=spec, progress=True, on_progress=watch, **settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(STOPPED) from None
    seconds = time.perf_counter() - start
    _print_summary(out)
    # Files are smaller than their text if they are compressed, and larger if much is left out.
    read = max(done[key] - begun[key] for key in ("bytes", "text_bytes"))
    click.echo(f"{seconds:,.1f} s, {read / 1e6 / seconds:,.1f} MB/s")
    _print_next(out)


@click.command()
@click.argument("parts", nargs=-1, required=True, metavar="PART...",
                type=click.Path(path_type=Path))  # fmt: skip
@_out_option
@click.option("--deduplicate", is_flag=True,
              help="Leave out documents that equal one of an earlier part.")  # fmt: skip
def merge(parts: tuple[Path, ...], out: Path, deduplicate: bool) -> None:
    """Join stores: the parts of `gptrs build --task`, in their order, or any built alike.

    Alike: by the same tokenizer, --split-on and other settings that decide what tokens a text
    becomes. Files are linked where the disk can, so the parts may be deleted afterwards or kept.
    """
    from gptrs.store.building import merge_stores

    merge_stores(parts, out, deduplicate=deduplicate, progress=True)
    _print_summary(out)
    _print_next(out)


def _stores(out: Path) -> list[Path]:
    """The folders of the stores that a build left: one, or one to train and one to validate on."""
    both = [out / "train", out / "val"]
    return both if all(folder.is_dir() for folder in both) else [out]


def _print_summary(out: Path) -> None:
    from gptrs.store.token_store import TokenStore

    manifests = {
        str(out) if folder == out else folder.name: TokenStore.open(folder).manifest
        for folder in _stores(out)
    }
    width = max(map(len, manifests))
    click.echo(f"{'':{width}}{'documents':>16}{'tokens':>20}{'bytes a token':>16}")
    for name, manifest in manifests.items():
        tokens = manifest["num_tokens"]
        per_token = f"{manifest['text_bytes'] / tokens:.2f}" if tokens else ""
        click.echo(f"{name:{width}}{manifest['num_documents']:16,}{tokens:20,}{per_token:>16}")
    dropped = {
        reason: sum(manifest["dropped"][reason] for manifest in manifests.values())
        for reason in ("empty", "short", "duplicate", "invalid")
    }
    if any(dropped.values()):
        reasons = (f"{number:,} {reason}" for reason, number in dropped.items() if number)
        click.echo(f"left out: {', '.join(reasons)}")
    empty = [name for name, manifest in manifests.items() if not manifest["num_documents"]]
    if len(empty) == 1 < len(manifests):
        click.echo(
            f"{empty[0]} is empty: --val-fraction parts whole documents, and a text file is one; "
            "--split-on makes many of it",
            err=True,
        )


def _print_next(out: Path) -> None:
    from gptrs.store.token_store import TokenStore

    filled = [folder for folder in _stores(out) if len(TokenStore.open(folder))]
    if filled:
        click.echo(f"\nLook at it:\n  gptrs inspect {shlex.quote(str(filled[0]))}")
