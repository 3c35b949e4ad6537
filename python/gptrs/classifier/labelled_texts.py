"""Labelled texts from a table in a file: CSV, or whatever separates its columns. No torch here."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gptrs.errors import ConfigError, DataError
from gptrs.text.reading import read_text

LONGEST_FIELD = 2**31 - 1
"""Characters: the csv module's own limit is 131,072."""


class LabelledTexts(NamedTuple):
    """Two columns of a table, row by row."""

    texts: list[str]
    labels: list[str]


def read_table(
    path: Path, text_column: str, label_column: str, delimiter: str | None = None
) -> LabelledTexts:
    """The texts and labels of a UTF-8 file whose first line names its columns.

    Args:
        delimiter: None is a tab where the name ends with .tsv, a comma else.
    Raises:
        SourceError: the file cannot be read, or is not UTF-8.
        DataError: a column is missing (the message lists those there are), a line has no text or
            no label, quotes are never closed, or there are no lines.
        ConfigError: the delimiter is more than one character.
    """
    if delimiter is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(LONGEST_FIELD)
    found = LabelledTexts([], [])
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter,
                            strict=True)  # fmt: skip
    except TypeError as error:
        raise ConfigError(f"a delimiter is one character, found {delimiter!r}") from error
    try:
        columns = next(reader, [])
        text_at, label_at = (_column(path, columns, name) for name in (text_column, label_column))
        start = reader.line_num + 1
        for row in reader:
            if row:
                found.texts.append(_cell(path, start, row, text_at, text_column))
                found.labels.append(_cell(path, start, row, label_at, label_column))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    if not found.texts:
        raise DataError(f"{path}: has no line besides the names of its columns")
    return found


def _column(path: Path, columns: Sequence[str], name: str) -> int:
    places = [place for place, column in enumerate(columns) if column == name]
    if len(places) != 1:
        listed = ", ".join(map(repr, columns)) or "none"
        there = f"there are {len(places)} columns" if places else "there is no column"
        raise DataError(f"{path}: {there} {name!r}; its columns are {listed}")
    return places[0]


def _cell(path: Path, line: int, row: Sequence[str], place: int, name: str) -> str:
    cell = row[place] if place < len(row) else ""
    if not cell:
        raise DataError(f"{path}: line {line} has no {name}")
    return cell
