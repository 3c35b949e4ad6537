"""Rows in batches of texts: of iterables, and of Parquet files (read by pyarrow, an extra).

Memory holds one batch, whatever the size of a file: a row group is read a few pages at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gptrs.errors import MissingExtraError, SourceError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile, RowGroupMetaData

    from gptrs.store.inputs import Input, Texts

BATCH_BYTES: Final = 1 << 20
BATCH_ROWS: Final = 8192
PAGE_BUFFER_BYTES: Final = 1 << 20


class RowBatch(NamedTuple):
    """Rows that follow each other."""

    first: int
    """The number of the first one in its file or iterable, counted from 0."""
    texts: list[str | None]
    """None for a row that has no text."""


def row_batches(
    source: Input, *, text_key: str, start: int, errors: str = "strict"
) -> Iterator[RowBatch]:
    """The rows of a Parquet file from the row group on that has row `start`, or of an iterable.

    An iterable gives its rows from the first one on: it has no other beginning.

    Args:
        errors: "replace" puts U+FFFD in the place of bytes that are not UTF-8, and of halves of
            characters; else such a row has no text.

    Raises:
        SourceError: the file is damaged, or has no column of strings with the name `text_key`.
        MissingExtraError: pyarrow is not installed; the message has the pip line.
    """
    if source.texts is None:
        return _parquet_batches(source.name, text_key, start, errors)
    return _text_batches(source.texts, text_key, errors)


def check_rows(sources: Iterable[Input], text_key: str) -> None:
    """Opens every Parquet file, so that none turns out to be unusable when hours have passed.

    Raises:
        SourceError, MissingExtraError: as for `row_batches`.
    """
    for source in sources:
        if source.kind == "rows" and source.texts is None:
            with _opened(source.name, text_key):
                pass


def _text_batches(texts: Texts, text_key: str, errors: str) -> Iterator[RowBatch]:
    first, room = 0, BATCH_BYTES
    batch: list[str | None] = []
    for row in texts:
        value = row.get(text_key) if isinstance(row, Mapping) else row
        batch.append(_whole(value, errors) if isinstance(value, str) else None)
        room -= len(batch[-1] or "")
        if room <= 0 or len(batch) == BATCH_ROWS:
            yield RowBatch(first, batch)
            first, room, batch = first + len(batch), BATCH_BYTES, []
    if batch:
        yield RowBatch(first, batch)


def _whole(text: str, errors: str) -> str | None:
    """The text, or what it is without halves of characters, which UTF-8 does not have."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        if errors != "replace":
            return None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet_batches(path: str, text_key: str, start: int, errors: str) -> Iterator[RowBatch]:
    with _opened(path, text_key) as file:
        first = 0
        for number in range(file.num_row_groups):
            num_rows = file.metadata.row_group(number).num_rows
            if first + num_rows > start:
                yield from _group_batches(file, number, text_key, first, errors)
            first += num_rows
        yield RowBatch(first, [])  # Says where the rows end, to a build that had all of them.


def _group_batches(
    file: ParquetFile, number: int, text_key: str, first: int, errors: str
) -> Iterator[RowBatch]:
    batches = file.iter_batches(
        batch_size=_rows_a_batch(file.metadata.row_group(number), text_key),
        row_groups=[number],
        columns=[text_key],
        use_threads=False,
    )
    for batch in batches:
        yield RowBatch(first, _strings(batch.column(text_key), errors))
        first += batch.num_rows


def _rows_a_batch(group: RowGroupMetaData, text_key: str) -> int:
    """So many rows that they have `BATCH_BYTES`, if all are as long as they are on average."""
    columns = map(group.column, range(group.num_columns))
    num_bytes: int = sum(
        column.total_uncompressed_size for column in columns if column.path_in_schema == text_key
    )
    num_rows: int = group.num_rows
    return max(1, min(BATCH_ROWS, BATCH_BYTES * num_rows // max(1, num_bytes)))


def _strings(column: Any, errors: str) -> list[str | None]:
    """The values of a column of strings; None for what is not UTF-8, unless that is replaced."""
    try:
        values: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_decoded(value.as_buffer(), errors) for value in column]
    return values


def _decoded(content: Any, errors: str) -> str | None:
    try:
        return None if content is None else bytes(content).decode("utf-8", errors)
    except UnicodeDecodeError:
        return None


@contextmanager
def _opened(path: str, text_key: str) -> Iterator[ParquetFile]:
    """A Parquet file that has a column of strings of this name; its own errors become ours."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError(
            f'{path}: Parquet files need pyarrow: pip install "gptrs[parquet]"', name="pyarrow"
        ) from None
    try:
        with ParquetFile(path, buffer_size=PAGE_BUFFER_BYTES, pre_buffer=False) as file:
            _check_column(file, path, text_key)
            yield file
    except SourceError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read as Parquet: {error}") from error


def _check_column(file: ParquetFile, path: str, text_key: str) -> None:
    import pyarrow as pa

    schema: Any = file.schema_arrow
    if text_key not in schema.names:
        columns = ", ".join(map(repr, schema.names))
        raise SourceError(f"{path}: has no column {text_key!r}; it has {columns}")
    kind = schema.field(text_key).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise SourceError(f"{path}: the column {text_key!r} has {kind}, and a text is a string")
