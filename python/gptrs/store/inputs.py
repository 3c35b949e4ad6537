"""What a store is built from: files, folders, patterns, standard input, texts of a program.

    "data"           ─► data/a.txt, data/b.jsonl.gz, data/deep/c.parquet    a folder's files
    "data/*.txt"     ─► data/a.txt                                          a pattern's files
    "-"              ─► standard input
    (t for t in …)   ─► rows, as a Parquet file has them

Everything is looked for, and every file tried, before anything is built. Nothing is decoded here.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from gptrs.errors import ConfigError, SourceError
from gptrs.text.reading import PARQUET_SUFFIX, files_under, not_read

STANDARD_INPUT: Final = "-"
COMPRESSED_SUFFIXES: Final = (".gz", ".zst")
SUFFIXES: Final = (".txt", ".md", ".jsonl")
"""What is read from a folder, compressed or not; and `PARQUET_SUFFIX`."""
SHOWN_FAILURES: Final = 3

InputFormat = Literal["auto", "text", "jsonl"]
Texts = Iterable[str | Mapping[str, Any] | None]
"""Documents of a program: strings, or mappings that have one under the text key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One file, standard input, or one iterable of texts."""

    kind: Literal["text", "jsonl", "rows"]
    name: str
    """The file's path, or what errors call the texts."""
    texts: Texts | None = None
    """None for whatever has a path."""


def find_inputs(inputs: Any, input_format: InputFormat = "auto") -> list[Input]:
    """All that `inputs` name, in the order in which it becomes a store.

    Args:
        inputs: a path, a pattern, "-", or an iterable of texts; a list or a tuple has any number of
            them. So `["a", "b"]` are two paths, and `[["a", "b"]]` are two texts.
        input_format: "auto" goes by the name: `.jsonl` is JSON Lines, and what is neither that nor
            `.parquet` is text. "text" or "jsonl" is what every file but `.parquet` is taken for.

    Raises:
        SourceError: a path does not exist or cannot be read, a folder or a pattern has no file to
            read, or links lead round in a circle. The message has the first few such paths.
        ConfigError: there is no input, or there is one that can be read once only, twice.
    """
    if input_format not in ("auto", "text", "jsonl"):
        raise ConfigError(f'the format is "auto", "text" or "jsonl", found {input_format!r}')
    found: list[Input] = []
    failures: list[str] = []
    for item in inputs if isinstance(inputs, (list, tuple)) else [inputs]:
        if not isinstance(item, (str, os.PathLike)):
            found.append(Input(kind="rows", name=f"texts[{len(found)}]", texts=_checked(item)))
            continue
        try:
            found += [_file(path, input_format) for path in _paths(os.fspath(item))]
        except SourceError as error:
            failures.append(str(error))
    failures += _unreadable(found)
    if failures:
        raise SourceError(_summary(failures))
    if not found:
        raise ConfigError("there is nothing to build from: no input was given")
    if sum(item.name == STANDARD_INPUT and item.texts is None for item in found) > 1:
        raise ConfigError('standard input, "-", can be read once only')
    return found


def _checked(texts: Any) -> Texts:
    if isinstance(texts, Iterable) and not isinstance(texts, (bytes, bytearray, Mapping)):
        return texts
    raise TypeError(f"an input is a path or an iterable of str, found {type(texts).__name__}")


def _file(path: str, input_format: InputFormat) -> Input:
    stem, suffix = os.path.splitext(path.lower())
    if suffix == PARQUET_SUFFIX:
        return Input(kind="rows", name=path)
    if input_format != "auto":
        return Input(kind=input_format, name=path)
    if suffix in COMPRESSED_SUFFIXES:
        suffix = os.path.splitext(stem)[1]
    return Input(kind="jsonl" if suffix == ".jsonl" else "text", name=path)


def _paths(item: str) -> Iterable[str]:
    """The files that one path or pattern stands for."""
    if item == STANDARD_INPUT:
        return [item]
    try:
        mode = os.stat(item).st_mode
    except OSError as error:
        if glob.has_magic(item):
            return _matches(item)
        raise not_read(item, error) from None
    except ValueError as error:  # A NUL character, which no path has.
        raise SourceError(f"{item!r}: {error}") from None
    if not stat.S_ISDIR(mode):
        return [item]
    files = list(files_under(item, _is_read))
    if not files:
        raise SourceError(
            f"{item}: no {', '.join(SUFFIXES)} or {PARQUET_SUFFIX} file in this folder"
        )
    return files


def _matches(pattern: str) -> list[str]:
    found = glob.glob(pattern, recursive=True)
    files = [path for path in found if not os.path.isdir(path)]
    if not files:
        folders = f"; {len(found)} folders do: add /** for what is in them" if found else ""
        raise SourceError(f"{pattern}: no file matches this pattern{folders}")
    return sorted(files, key=lambda path: path.split(os.sep))


def _is_read(name: str) -> bool:
    stem, suffix = os.path.splitext(name.lower())
    if suffix in COMPRESSED_SUFFIXES:
        suffix = os.path.splitext(stem)[1]
        return suffix in SUFFIXES
    return suffix in (*SUFFIXES, PARQUET_SUFFIX)


def _unreadable(inputs: list[Input]) -> Iterator[str]:
    """Why files cannot be read. Found by opening them: what a mode allows is not all there is."""
    for item in inputs:
        if item.texts is not None or item.name == STANDARD_INPUT:
            continue
        try:
            if stat.S_ISREG(os.stat(item.name).st_mode):  # A pipe can be opened once only.
                os.close(os.open(item.name, os.O_RDONLY))
        except OSError as error:
            yield str(not_read(item.name, error))


def _summary(failures: list[str]) -> str:
    if len(failures) == 1:
        return failures[0]
    shown = "; ".join(failures[:SHOWN_FAILURES])
    rest = len(failures) - SHOWN_FAILURES
    more = f"; and {rest} more" if rest > 0 else ""
    return f"{len(failures)} inputs cannot be read: {shown}{more}"
