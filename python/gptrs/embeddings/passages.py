"""Files to passages: some paragraphs each, with the file and the lines that they came from.

    guide.md:1    # Names            ┐
    guide.md:2                       │ paragraphs go together while they fit: lines 1-3
    guide.md:3    A name is ...      ┘
    guide.md:5    Scopes are ...     ─ lines 5-9

A paragraph that is too long, or would leave a heading alone, is cut at a line's end; a line,
between words; a word, anywhere. Text is read line by line: a file may be larger than memory.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, cast

from gptrs.errors import ConfigError, SourceError
from gptrs.store.inputs import STANDARD_INPUT, Input, InputFormat, find_inputs
from gptrs.store.rows import row_batches
from gptrs.text.reading import decode_utf8

PASSAGE_TOKENS: Final = 128
FULL_ENOUGH: Final = 0.25
"""A passage with less, such as a heading, is filled with the start of a paragraph that is cut."""
_WORD: Final = re.compile(r"\s*\S+")

Count = Callable[[str], int]
"""How many tokens a text has."""
Errors = Literal["strict", "replace"]


class Passage(NamedTuple):
    """A piece of text and where it stands."""

    text: str
    source: str
    """The file's path, or another name."""
    first_line: int
    """Counted from 1. Of JSON Lines, the document's line; of a table, its row."""
    last_line: int

    @property
    def place(self) -> str:
        """As editors and compilers write it: `guide.md:1-3`."""
        lines = f"{self.first_line}" + f"-{self.last_line}" * (self.last_line > self.first_line)
        return f"{self.source}:{lines}"


def read_passages(
    inputs: Any,
    tokenizer: Any,
    *,
    passage_tokens: int = PASSAGE_TOKENS,
    input_format: InputFormat = "auto",
    text_key: str = "text",
    errors: Errors = "strict",
) -> Iterator[Passage]:
    """The passages of files, folders and patterns, one after the other.

    Args:
        inputs: what `build_store` takes: text, JSON Lines, both also .gz, and Parquet.
        tokenizer: counts the tokens: any object with `encode`.
        passage_tokens: about so many tokens in a passage at most. A passage never has text of two
            documents: a text file is one, a line of JSON Lines and a row of a table are one each.
        text_key: the field of a JSON line, or the column of a table.
        errors: "replace" puts U+FFFD in the place of bytes that are not UTF-8.
    Raises:
        ConfigError: passage_tokens is below 1, or there is no input.
        SourceError: a file cannot be read, or is not what its name says.
        MissingExtraError: a table needs pyarrow.
    """
    if passage_tokens < 1:
        raise ConfigError(f"passage_tokens is {passage_tokens}; it must be 1 or more")
    count = _counting(tokenizer)
    # Everything is looked for before anything is read.
    found = find_inputs(inputs, input_format)
    if packed := [source.name for source in found if source.name.lower().endswith(".zst")]:
        raise SourceError(
            f"{packed[0]}: unpack it first: passages are read of .gz, but not of .zst"
        )
    return (
        passage
        for source in found
        for first_line, lines in _documents(source, text_key, errors)
        for passage in split_passages(lines, source.name, count, passage_tokens, first_line)
    )


def split_passages(
    lines: Iterable[str],
    source: str,
    count: Count,
    passage_tokens: int = PASSAGE_TOKENS,
    only_line: int | None = None,
) -> Iterator[Passage]:
    """The passages of one document.

    Args:
        lines: without or with their ends.
        count: tells a text's tokens.
        only_line: the place of all that it has, where that is one line or row of a file.
    """
    open_ = _Open(source, only_line)
    for number, line in enumerate(lines, start=1):
        line = line.rstrip()
        if not line:
            open_.end_paragraph()
            continue
        tokens = count(line) + 1  # Its end is about one.
        pieces = [(line, tokens)]
        if tokens > passage_tokens:
            pieces = [(piece, count(piece)) for piece in _pieces(line, count, passage_tokens)]
        for piece, size in pieces:
            if open_.tokens + size > passage_tokens:
                yield from open_.cut(passage_tokens * FULL_ENOUGH)
            if open_.tokens + size > passage_tokens:
                yield from open_.close()
            open_.add(number, piece, size)
    yield from open_.close()


class _Open:
    """Lines that become the next passage: whole paragraphs, and the one that is being read."""

    def __init__(self, source: str, only_line: int | None) -> None:
        self._source, self._only_line = source, only_line
        self._lines: list[tuple[int, str, int]] = []
        self._whole = 0
        """So many of the lines are those of whole paragraphs."""
        self.tokens = 0

    def add(self, number: int, text: str, tokens: int) -> None:
        """A line of the paragraph."""
        self._lines.append((number, text, tokens))
        self.tokens += tokens

    def end_paragraph(self) -> None:
        """At a blank line."""
        if self._whole < len(self._lines):
            self.add(self._lines[-1][0], "", 1)
            self._whole = len(self._lines)

    def cut(self, least: float) -> Iterator[Passage]:
        """Gives the whole paragraphs, if they have `least` tokens; keeps the one being read."""
        whole, begun = self._lines[: self._whole], self._lines[self._whole :]
        num_whole = sum(tokens for _, _, tokens in whole)
        if num_whole >= least:
            yield self._passage(whole)
            self._lines, self._whole = begun, 0
            self.tokens -= num_whole

    def close(self) -> Iterator[Passage]:
        """Gives everything."""
        if self._lines:
            yield self._passage(self._lines)
        self._lines, self._whole, self.tokens = [], 0, 0

    def _passage(self, lines: list[tuple[int, str, int]]) -> Passage:
        text = "\n".join(text for _, text, _ in lines).strip("\n")
        first, last = lines[0][0], lines[-1][0]
        if self._only_line is not None:
            first = last = self._only_line
        return Passage(text, self._source, first, last)


def _pieces(line: str, count: Count, most: int) -> Iterator[str]:
    """A line that is too long in pieces of whole words; a word that is, in halves of halves."""
    piece, size = "", 0
    for word in (part for match in _WORD.finditer(line) for part in _halves(match[0], count, most)):
        tokens = count(word)
        if piece and size + tokens > most:
            yield piece.strip()
            piece, size = "", 0
        piece, size = piece + word, size + tokens
    yield piece.strip()


def _halves(word: str, count: Count, most: int) -> Iterator[str]:
    if len(word) == 1 or count(word) <= most:
        yield word
        return
    middle = len(word) // 2
    yield from _halves(word[:middle], count, most)
    yield from _halves(word[middle:], count, most)


def _counting(tokenizer: Any) -> Count:
    if hasattr(tokenizer, "count"):  # Ours, which makes no list.
        return lambda text: cast(int, tokenizer.count(text, disallowed_special=()))
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    return lambda text: len(encode(text))


def _documents(
    source: Input, text_key: str, errors: Errors
) -> Iterator[tuple[int | None, Iterable[str]]]:
    """Each document's lines, and its line or row where it has but one."""
    if source.kind == "rows":
        for first, texts in row_batches(source, text_key=text_key, start=0, errors=errors):
            for row, text in enumerate(texts, start=first + 1):
                if text is None:
                    raise SourceError(f"{source.name}: row {row} has no text under {text_key!r}")
                yield row, text.split("\n")
        return
    lines = _lines_of(source.name, errors)
    if source.kind == "text":
        yield None, lines
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _text_of(line, source.name, number, text_key).split("\n")


def _text_of(line: str, name: str, number: int, text_key: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SourceError(f"{name}: line {number} is not JSON: {error}") from None
    text = row.get(text_key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise SourceError(f"{name}: line {number} is no object with a text under {text_key!r}")
    return text


def _lines_of(name: str, errors: Errors) -> Iterator[str]:
    """The lines of a file, unpacked; a byte order mark is dropped."""
    number = 0
    try:
        with _opened(name) as stream:
            for line in stream:
                number += 1
                yield decode_utf8(line, source=name, errors=errors)
    except SourceError as error:  # Not UTF-8.
        raise SourceError(f"{error}, in line {number}") from None
    except (EOFError, OSError, zlib.error) as error:  # The first is a .gz that is cut off.
        raise SourceError(f"{name}: cannot be read: {error}") from error


def _opened(name: str) -> AbstractContextManager[IO[bytes]]:
    if name == STANDARD_INPUT:
        return nullcontext(sys.stdin.buffer)
    if name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(name))
    return Path(name).open("rb")
