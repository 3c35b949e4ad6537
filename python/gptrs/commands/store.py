"""The commands `gptrs inspect`, `gptrs verify` and `gptrs convert`. No torch here."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from gptrs.commands.output_files import check_out
from gptrs.errors import ConfigError, StoreError
from gptrs.store.token_store import (
    FOLDER_FORMAT,
    SHARD_TOKENS,
    Target,
    TokenStore,
    convert_store,
    count_along,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gptrs.store.token_store import AnyTokenizer

    Counts = npt.NDArray[np.uint64]
    Bins = Sequence[tuple[int, int]]

BAR_WIDTH = 40
# A sample is taken in this many pieces, spread evenly.
SAMPLE_PIECES = 16

_tokenizer_option = click.option(
    "--tokenizer",
    "spec",
    help="What made the ids of another program's file, by default gpt2: a tokenizer.json, "
    "or tiktoken:NAME.",
)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@_tokenizer_option
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=0),
              help="How many of the most frequent tokens to show.")  # fmt: skip
@click.option("--windows", "num_windows", default=3, show_default=True, type=click.IntRange(min=0),
              help="How many windows to show, at random.")  # fmt: skip
@click.option("--window", "numbers", type=click.IntRange(min=0), multiple=True,
              help="Show the window of this number instead; may be repeated.")  # fmt: skip
@click.option("--length", default=64, show_default=True, type=click.IntRange(min=1),
              help="Tokens a window: window N begins at token N x length.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Other random windows.")
@click.option("--sample", type=click.IntRange(min=1),
              help="Look at about this many tokens only, spread evenly.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False),
              help="Draw document lengths and token frequencies into this file.")  # fmt: skip
def inspect(
    path: Path,
    spec: str | None,
    top: int,
    num_windows: int,
    numbers: tuple[int, ...],
    length: int,
    seed: int,
    sample: int | None,
    plot: Path | None,
) -> None:
    """Show what is in a token store: a folder, or a file of nanoGPT, llm.c or Megatron.

    Totals, how long documents are, which tokens are frequent, and some of the text. Reads all
    tokens, or a --sample.
    """
    if plot is not None:
        check_out(plot)
    store = _open(path, spec)
    windows = _windows(len(store), length, numbers, num_windows, seed)
    tokenizer = _known_tokenizer(store)
    counts = _token_counts(store, sample)
    # Documents that a token separates are found by reading everything.
    is_searched = sample is not None and store.format in ("nanogpt", "llm.c")
    shortest, longest, bins = (0, 0, []) if is_searched else store._core.document_lengths()
    num_documents = None if is_searched else sum(n for _, n in bins)
    click.echo("\n".join(_totals(store, tokenizer, counts, num_documents)))
    if bins:
        click.echo(f"\ndocument lengths in tokens: {shortest:,} to {longest:,}, "
                   f"half of them up to about {_median(bins, longest):,}")  # fmt: skip
        click.echo("\n".join(_histogram(bins)))
    if top and counts.any():
        click.echo("\nmost frequent tokens")
        click.echo("\n".join(_frequent(counts, top, tokenizer)))
    for number in windows:
        ids = store[number * length : (number + 1) * length]
        text = str(ids.tolist()) if tokenizer is None else tokenizer.decode(ids.tolist())
        first = number * length
        click.echo(f"\nwindow {number:,}, tokens {first:,} to {first + len(ids) - 1:,}\n{text}")
    if plot is not None:
        from gptrs.plots import save_store_figure

        save_store_figure(plot, length_bins=bins, token_counts=counts, title=str(path))
        click.echo(f"\ndrawn: {plot}")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@_tokenizer_option
@click.option("--threads", type=int, help="How many threads read; by default all processors.")
def verify(path: Path, spec: str | None, threads: int | None) -> None:
    """Read all of a token store and compare it with its checksums.

    Another program's files have none: their sizes, ids and indices are checked.
    """
    store = _open(path, spec)
    store.verify(threads=threads, progress=True)
    checked = "checksums" if store.format == FOLDER_FORMAT else "size"
    click.echo(f"{path} is whole: {len(store):,} tokens, ids below {store.n_vocab:,}, {checked}")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(get_args(Target)), help="What to write.")
@_tokenizer_option
@click.option("--shard-tokens", default=SHARD_TOKENS, show_default=True,
              type=click.IntRange(min=1), help="For gptrs: tokens a shard.")  # fmt: skip
def convert(source: Path, out: Path, to: Target, spec: str | None, shard_tokens: int) -> None:
    """Write a token store as another program's file, or its file as a store.

    OUT is a folder for gptrs, a name in .bin for nanogpt and llmc, and what a .bin and an .idx are
    to be called for megatron. Nothing is written over.
    """
    store = _open(source, spec)
    made = convert_store(store, out, to=to, shard_tokens=shard_tokens, progress=True)
    click.echo(f"{len(made):,} tokens are in {made.path}\n\nLook at them:\n"
               f"  gptrs inspect {made.path}")  # fmt: skip


def _open(path: Path, spec: str | None) -> TokenStore:
    """The store; that there is none is the caller's mistake, not a failure on the way."""
    try:
        return TokenStore.open(path, spec)
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def _known_tokenizer(store: TokenStore) -> AnyTokenizer | None:
    try:
        return store.tokenizer
    except StoreError as error:
        click.echo(f"ids are shown without their text: {error}", err=True)
        return None


def _windows(
    num_tokens: int, length: int, numbers: Sequence[int], count: int, seed: int
) -> Sequence[int]:
    """The windows asked for, or some at random in order."""
    there_are = -(-num_tokens // length)
    if beyond := [number for number in numbers if number >= there_are]:
        raise ConfigError(f"window {beyond[0]} was asked for, and there are {there_are}")
    if numbers:
        return numbers
    return sorted(random.Random(seed).sample(range(there_are), min(count, there_are)))


def _token_counts(store: TokenStore, sample: int | None) -> Counts:
    """How often each id occurs: uint64 [n_vocab]."""
    import numpy as np

    total, counts = len(store), np.zeros(store.n_vocab, np.uint64)
    if sample is None or sample >= total:
        pieces = [(0, total)]
    else:
        size = -(-sample // SAMPLE_PIECES)
        starts = [piece * (total - size) // (SAMPLE_PIECES - 1) for piece in range(SAMPLE_PIECES)]
        pieces = [(max(0, start), max(0, start) + min(size, total)) for start in starts]
    done = 0
    with count_along("counting", sum(stop - start for start, stop in pieces), shown=True) as show:
        for start, stop in pieces:

            def on_progress(count: int, done: int = done) -> object:
                return show(done + count) if show else None

            counts += store._core.token_counts(start, stop, threads=None, on_progress=on_progress)
            done += stop - start
    return counts


def _totals(
    store: TokenStore, tokenizer: AnyTokenizer | None, counts: Counts, num_documents: int | None
) -> Iterator[str]:
    """One line a number; a number that was not looked for is None."""
    manifest = store.manifest
    made_by = f"{manifest['tokenizer']['name']}, {store.n_vocab:,} ids"
    yield f"{store.path}: {store.format}, {store.dtype}, {made_by}"
    yield f"  {'tokens':<12}{len(store):,}"
    yield f"  {'documents':<12}{'?' if num_documents is None else f'{num_documents:,}'}"
    if text := _bytes_a_token(store, tokenizer, counts):
        yield f"  {'text':<12}{text}"
    if store.format == FOLDER_FORMAT:
        yield f"  {'shards':<12}{len(manifest['shards']):,}"
    if dropped := [f"{n:,} {why}" for why, n in manifest["dropped"].items() if n]:
        yield f"  {'left out':<12}{', '.join(dropped)}"


def _bytes_a_token(store: TokenStore, tokenizer: AnyTokenizer | None, counts: Counts) -> str:
    """The text's bytes, from the manifest or by what was counted; special tokens are no text."""
    import numpy as np

    num_bytes, counted = store.manifest["text_bytes"], int(counts.sum())
    if num_bytes:
        return f"{num_bytes:,} bytes, {num_bytes / len(store):.2f} a token"
    if tokenizer is None or not counted:
        return ""
    end_of_text = store.manifest["tokenizer"]["end_of_text"]
    num_bytes = sum(
        len(tokenizer.decode_bytes([token])) * int(counts[token])
        for token in np.flatnonzero(counts).tolist()
        if token != end_of_text
    )
    of_all = f"{num_bytes:,} bytes, " if counted == len(store) else ""
    return f"{of_all}{num_bytes / counted:.2f} bytes a token"


def _median(bins: Bins, longest: int) -> int:
    """The length that the bin may reach in which half of the documents are reached."""
    half, seen = sum(count for _, count in bins) / 2, 0
    for (_, count), (next_start, _) in pairwise(bins):
        seen += count
        if seen >= half:
            return next_start - 1
    return longest  # What the last bin reaches.


def _histogram(bins: Bins) -> Iterator[str]:
    """A bar for each power of two."""
    octaves: dict[int, int] = {}
    for start, count in bins:
        octaves[start.bit_length()] = octaves.get(start.bit_length(), 0) + count
    shown = [octave for octave, count in octaves.items() if count]
    most = max(octaves.values())
    for octave in range(min(shown), max(shown) + 1):
        count = octaves.get(octave, 0)
        low, high = (1 << octave) >> 1, (1 << octave) - 1
        lengths = f"{low:,}" if low >= high else f"{low:,} to {high:,}"
        bar = "#" * -(-BAR_WIDTH * count // most)
        yield f"  {lengths:>24} |{bar:<{BAR_WIDTH}} {count:,}"


def _frequent(counts: Counts, top: int, tokenizer: AnyTokenizer | None) -> Iterator[str]:
    """Share, id and text of the most frequent tokens; the lower id first where they are equal."""
    total = int(counts.sum())
    order = (-counts.astype("int64")).argsort(kind="stable")[:top].tolist()
    for token in order:
        count = int(counts[token])
        if count:
            text = "" if tokenizer is None else repr(tokenizer.decode([token]))
            yield f"  {100 * count / total:6.2f} %  {count:>14,}  {token:>6}  {text}"
