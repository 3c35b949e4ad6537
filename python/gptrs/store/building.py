"""`build_store`: any text to a token store on disk. `merge_stores`: several stores to one.

    inputs ─► find_inputs ─► files ──────────────► _core.StoreBuilder ─► DIR/manifest.json, …
                          └► rows ─► row_batches ──┘

The work is the core's; this finds the inputs, hands over rows, and shows how far it is. No torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from gptrs import _core
from gptrs.errors import ConfigError, SourceError, StoreError
from gptrs.store.inputs import Input, InputFormat, find_inputs
from gptrs.store.rows import check_rows, row_batches
from gptrs.store.token_store import SHARD_TOKENS, TokenStore
from gptrs.text.named_tokenizers import own_tokenizer
from gptrs.text.tokenizer import FILE_NAME, Tokenizer

if TYPE_CHECKING:
    import tiktoken

MEMORY: Final = "512MB"

OnProgress = Callable[[Mapping[str, int]], object]
"""Is given counts so far: the keys are those of `_core.StoreBuilder.progress`."""


def build_store(
    inputs: Any,
    out: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | Tokenizer | tiktoken.Encoding = "gpt2",
    text_key: str = "text",
    split_on: str | None = None,
    input_format: InputFormat = "auto",
    skip_invalid: bool = False,
    errors: Literal["strict", "replace"] = "strict",
    allow_special: bool = False,
    min_chars: int = 0,
    deduplicate: bool = False,
    val_fraction: float = 0.0,
    task: tuple[int, int] | None = None,
    threads: int | None = None,
    memory: int | str = MEMORY,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = False,
    on_progress: OnProgress | None = None,
) -> TokenStore:
    """Builds a token store in the folder `out`; what was begun there and stopped goes on.

    A text file is one document, unless `split_on` says otherwise; a line of JSON Lines, a row of
    Parquet and a string of an iterable are one each. An end-of-text follows every document. The
    files are the same bytes whatever the threads, the memory, and how often the build was stopped.

    Args:
        inputs: a file, a folder, a pattern such as "data/**/*.jsonl", "-" for standard input, or an
            iterable of str, such as a generator; or a list of any of these. A list of str is one of
            paths. Text and JSON Lines may be compressed: `.gz`, `.zst`. A folder stands for its
            .txt, .md, .jsonl and .parquet files at any depth, sorted. An iterable may have mappings
            with a `text_key` instead; to go on with a build, it has to give the same texts again.
        tokenizer: what `get_tokenizer` takes, or a tokenizer.
        text_key: the field of a JSON line, and the column of a Parquet file, that has the text.
        split_on: what separates the documents of a text file, such as an empty line. It
            belongs to none of them.
        input_format: "text" or "jsonl" for files and a standard input whose name does not say so.
        skip_invalid: leave out rows that have no text, and count them, instead of refusing them.
        errors: "replace" puts U+FFFD in the place of bytes that are not UTF-8.
        allow_special: take `<|endoftext|>` and its like in a text for special tokens.
        min_chars: leave out documents of fewer characters.
        deduplicate: leave out documents that equal an earlier one.
        val_fraction: the share of documents that become a store of their own, `out/val`, beside
            `out/train`. Its text alone decides where a document goes, so that it never moves.
        task: `(i, n)` builds part i of n, counted from 0; `merge_stores` joins the parts.
        threads: how many threads encode; None is one for each processor.
        memory: bytes to get by with, or such as "512MB" or "2GiB".
        shard_tokens: tokens in one file.
        progress: whether to show a progress bar.
        on_progress: called before the first input, several times a second, and at the end.

    Returns:
        The store; with `val_fraction`, the one in `out/train`.

    Raises:
        SourceError: an input cannot be read, or is damaged; or it has an invalid row, 64 MiB
            without a break, or a character that a tokenizer of characters does not know. What was
            built remains: if the same inputs can be read later, the build goes on.
        StoreError: `out` is a file, cannot be written or holds a store, another build is under way
            there, or one was begun with other inputs or settings.
        TokenizerError: there is no such tokenizer.
        ConfigError: a setting makes no sense, or the store's file would be written over an input.
        MissingExtraError: an input is a Parquet file, and pyarrow is not installed.
    """
    if errors not in ("strict", "replace"):
        raise ConfigError(f'errors is "strict" or "replace", found {errors!r}')
    _refuse_file(out)
    own = own_tokenizer(tokenizer)
    memory_bytes = parse_bytes(memory)
    sources = find_inputs(inputs, input_format)
    _refuse_other_names(sources)
    _refuse_tokenizer_file(out, sources)
    check_rows(sources, text_key)
    with (
        _progress_bar(progress) as show,
        closing(
            _core.StoreBuilder(
                os.fspath(out),
                own._core,
                own.name,
                [(source.kind, source.name) for source in sources],
                text_key=text_key,
                split_on=split_on,
                skip_invalid=skip_invalid,
                replace_invalid=errors == "replace",
                allow_special=allow_special,
                min_chars=min_chars,
                deduplicate=deduplicate,
                val_fraction=val_fraction,
                task=task,
                shard_tokens=shard_tokens,
                memory=memory_bytes,
                threads=threads,
            )
        ) as builder,
    ):

        def report() -> None:
            counts = builder.progress()
            show(counts)
            if on_progress is not None:
                on_progress(counts)

        report()
        while (number := builder.next_input()) is not None:
            if sources[number].kind == "rows":
                _add_rows(builder, sources[number], text_key, errors, report)
            else:
                builder.add_files(report)
        builder.finish()
        report()
    return TokenStore.open(Path(out, "train") if val_fraction else out)


def merge_stores(
    parts: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    deduplicate: bool = False,
    progress: bool = False,
) -> TokenStore:
    """Joins stores in their order: the folder `out` has their documents one after the other.

    Files are linked where the disk can, so that this takes no time and no room; else copied.

    Args:
        parts: folders with stores, or each with a `train` and a `val`.
        deduplicate: leave out documents that equal one of an earlier part. Each part has to be
            built so, and with a `task`.
        progress: whether to show a progress bar.

    Returns:
        The store; of parts with `train` and `val`, the one in `out/train`.

    Raises:
        StoreError: a part is missing or damaged, the parts differ in tokenizer or settings or are
            not in order, or `out` is a file, cannot be written or holds a store.
    """
    if isinstance(parts, (str, bytes, os.PathLike)):
        raise TypeError(f"parts must be a list of folders, found {parts!r}")
    _refuse_file(out)
    folders = [os.fspath(part) for part in parts]
    with _progress_bar(progress, "merging") as show:
        _core.merge_stores(folders, os.fspath(out), deduplicate=deduplicate, on_progress=show)
    train = Path(out, "train")
    return TokenStore.open(train if train.is_dir() else out)


def parse_bytes(size: int | str) -> int:
    """A number of bytes that may be written with a unit: "512MB", "1.5 GiB", "2G".

    Raises:
        ConfigError: it is none, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", str(size).strip().lower())
    number = 0
    if found:
        base = 1024 if found[3] else 1000
        number = int(float(found[1]) * base ** " kmgt".index(found[2] or " "))
    if number < 1:
        raise ConfigError(f'memory is a number of bytes, or such as "512MB", found {size!r}')
    return number


def _refuse_file(out: str | os.PathLike[str]) -> None:
    if Path(out).exists() and not Path(out).is_dir():
        raise StoreError(f"{os.fspath(out)} cannot be written: it is a file, and a store a folder")


def _refuse_other_names(sources: Sequence[Input]) -> None:
    """Raises SourceError for names that are not UTF-8, which no manifest could have."""
    for source in sources:
        try:
            source.name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(source.name).decode(errors="backslashreplace")
            raise SourceError(f"{shown}: its name is not UTF-8; give it another") from None


def _refuse_tokenizer_file(out: str | os.PathLike[str], sources: Sequence[Input]) -> None:
    """Raises ConfigError for an input that is where the store is to have its tokenizer."""
    places = [Path(out, part, FILE_NAME) for part in ("", "train", "val")]
    for place in filter(Path.is_file, places):
        for source in sources:
            if source.texts is None and os.path.isfile(source.name) and place.samefile(source.name):
                raise ConfigError(
                    f"{place} is an input, and the store's tokenizer would be written over it: "
                    "name another folder for the store"
                )


def _add_rows(
    builder: _core.StoreBuilder,
    source: Input,
    text_key: str,
    errors: str,
    report: Callable[[], None],
) -> None:
    batches = row_batches(source, text_key=text_key, start=builder.rows_done, errors=errors)
    for first, texts in batches:
        builder.add_rows(texts, first)
        report()
    builder.end_rows()


@contextmanager
def _progress_bar(shown: bool, name: str = "building") -> Iterator[OnProgress]:
    """What is to be called with the counts so far; it shows them or not."""
    if not shown:
        yield lambda counts: None
        return
    from tqdm.auto import tqdm

    bar: tqdm[Any] | None = None

    def show(counts: Mapping[str, int]) -> None:
        nonlocal bar
        total = counts["bytes_total"] or None
        # Of what has no size, such as standard input, it shows how much text there was.
        done = counts["bytes"] if total else counts.get("text_bytes", 0)
        if bar is None:  # What an earlier run has done says nothing about the speed of this one.
            bar = tqdm(desc=name, initial=done, total=total, unit="B", unit_scale=True, delay=0.2)
        bar.total = total
        bar.set_postfix_str(f"{counts['tokens']:,} tokens", refresh=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
