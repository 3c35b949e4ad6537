r"""Files of word vectors: word2vec's text and binary, and GloVe's: bytes in, words and numbers out.

    binary   2 3\nthe ............\nof ............\n          12 bytes each: little-endian float32
    text     2 3\nthe 0.1 0.2 0.3\nof 0.4 0.5 0.6\n
    GloVe         the 0.1 0.2 0.3\nof 0.4 0.5 0.6\n

gensim writes binary files without the line ends, fastText text files with a blank behind each line:
both are read. GloVe's words may have blanks in them.
"""

from __future__ import annotations

import mmap
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from gptrs.errors import ConfigError, DataError, SourceError
from gptrs.files import write_whole_with

ReadFormat = Literal["auto", "text", "binary", "glove"]
WriteFormat = Literal["auto", "text", "binary"]
Vectors = npt.NDArray[np.float32]

HEADER: Final = re.compile(rb"(\d+)[ \t]+(\d+)[ \t\r]*(?:\n|\Z)")
LONGEST_WORD_BYTES: Final = 1 << 16
LINES_TOGETHER: Final = 1 << 12
"""As many as NumPy is given at once: a call each would take most of the time."""


def read_vectors(path: Path, format_: str, errors: str) -> tuple[list[str], Vectors]:
    """The words and float32 [N, D] of a file; errors as of `WordVectors.load`."""
    if format_ not in ("auto", "text", "binary", "glove"):
        raise ConfigError(f'format is "auto", "text", "binary" or "glove", found {format_!r}')
    if errors not in ("strict", "replace"):
        raise ConfigError(f'errors is "strict" or "replace", found {errors!r}')
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise SourceError(f"{path}: is empty, and no file of vectors")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content, errors).read(format_)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SourceError(f"{path}: is a folder, not a file") from None
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def write_vectors(path: Path, format_: str, words: Sequence[str], vectors: Vectors) -> None:
    """Writes a file; errors as of `WordVectors.save`."""
    if format_ == "auto":
        format_ = "binary" if path.suffix == ".bin" else "text"
    if format_ not in ("text", "binary"):
        raise ConfigError(f'format is "auto", "text" or "binary", found {format_!r}')
    for word in words:
        if not word or " " in word or "\n" in word:
            what = "has a space or a line end in it" if word else "is empty"
            raise DataError(f"the word {word!r} {what}: no file of vectors can hold it")
    little = np.ascontiguousarray(vectors, dtype="<f4")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(b"%d %d\n" % little.shape)
            for word, vector in zip(words, little, strict=True):
                # astype(str) has as many digits as it takes to read the same float32 again.
                numbers = (
                    vector.tobytes()
                    if format_ == "binary"
                    else " ".join(vector.astype(str).tolist()).encode()
                )
                file.write(b"%b %b\n" % (word.encode(), numbers))

    write_whole_with(path, write)


class _Reader:
    """A file that is open, and what errors about it say."""

    def __init__(self, path: Path, content: mmap.mmap, errors: str) -> None:
        self.path, self.content, self.errors = path, content, errors
        self.rows: dict[str, int] = {}

    def read(self, format_: str) -> tuple[list[str], Vectors]:
        header = HEADER.match(self.content)
        if format_ == "auto":
            format_ = self._looks_like(header)
        if format_ == "glove":
            vectors = self._read_glove()
        elif header is None:
            self._refuse("does not begin with the numbers of words and of columns")
        else:
            count, columns = int(header[1]), int(header[2])
            self._check_size(count, columns, header.end(), 4 if format_ == "binary" else 2)
            read = self._read_binary if format_ == "binary" else self._read_text
            vectors = read(count, columns, header.end())
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            word = list(self.rows)[row]
            self._refuse(f"the vector of {word!r} has a number that is not finite")
        return list(self.rows), vectors

    def _looks_like(self, header: re.Match[bytes] | None) -> str:
        if header is None:
            return "glove"
        end = self.content.find(b"\n", header.end())
        line = self.content[header.end() : None if end < 0 else end]
        _, _, numbers = line.strip().partition(b" ")
        return "binary" if _numbers([numbers], int(header[2])) is None else "text"

    def _check_size(self, count: int, columns: int, start: int, number_bytes: int) -> None:
        """Refuses what cannot be there, before room for it is made."""
        least = count * (2 + columns * number_bytes) - (number_bytes == 2)
        if not count or not columns:
            self._refuse(f"has {count} vectors of {columns} numbers by its first line")
        if len(self.content) - start < least:
            self._refuse(
                f"is cut off: {count} vectors of {columns} numbers, as its first line has it, take "
                f"{least} bytes at least, found {len(self.content) - start}"
            )

    def _read_binary(self, count: int, columns: int, at: int) -> Vectors:
        vectors = np.empty((count, columns), dtype=np.float32)
        size = 4 * columns
        for row in range(count):
            end = self.content.find(b" ", at, at + LONGEST_WORD_BYTES)
            if end < 0 or end + 1 + size > len(self.content):
                self._refuse(f"is cut off, or not binary: vector {row} of {count} is not whole")
            self._add(self.content[at:end].lstrip(b"\n"))
            # A copy, so that nothing points into the file when it is closed.
            numbers = self.content[end + 1 : end + 1 + size]
            vectors[row] = np.frombuffer(numbers, dtype="<f4")
            at = end + 1 + size
        self._refuse_rest(self.content[at : at + 80], count)
        return vectors

    def _read_text(self, count: int, columns: int, at: int) -> Vectors:
        vectors = np.empty((count, columns), dtype=np.float32)
        row = 0
        for first, block in self._blocks(at, count):
            vectors[row : row + len(block)] = self._parsed(block, columns, first + 2, blanks=False)
            row += len(block)
        if row < count:
            self._refuse(f"is cut off: it has {row} vectors of {count}")
        return vectors

    def _read_glove(self) -> Vectors:
        end = self.content.find(b"\n")
        columns = len(self.content[: None if end < 0 else end].split()) - 1
        if columns < 1:
            self._refuse("is no file of vectors: its first line is not a word and numbers")
        blocks = self._blocks(0, None)
        return np.concatenate(
            [self._parsed(block, columns, first + 1, blanks=True) for first, block in blocks]
        )

    def _blocks(self, at: int, count: int | None) -> Iterator[tuple[int, list[bytes]]]:
        """Some lines at a time, and how many came before; blank ones at the end are none."""
        self.content.seek(at)
        first, block = 0, list[bytes]()
        for line in iter(self.content.readline, b""):
            if first + len(block) == count:
                self._refuse_rest(line, count)
                continue
            block.append(line)
            if len(block) == LINES_TOGETHER:
                yield first, block
                first, block = first + len(block), []
        while block and not block[-1].strip():
            block.pop()
        if block:
            yield first, block

    def _parsed(
        self, lines: list[bytes], columns: int, first_line: int, *, blanks: bool
    ) -> Vectors:
        """Adds the words of lines, in which there may be `blanks`, and returns their numbers."""
        texts = []
        for number, line in enumerate(lines):
            # Of a word with blanks in it, the last `columns` parts are the numbers.
            line = line.rstrip(b" \t\r\n")
            if line.count(b" ") == columns:
                word, _, text = line.partition(b" ")
            else:
                word, *numbers = line.rsplit(b" ", columns)
                text = b" ".join(numbers)
                if not blanks or len(numbers) < columns or _numbers([text], columns) is None:
                    self._refuse_line(line, columns, first_line + number)
            self._add(word)
            texts.append(text)
        vectors = _numbers(texts, columns)
        if vectors is None:
            wrong = next(i for i, text in enumerate(texts) if _numbers([text], columns) is None)
            self._refuse_line(lines[wrong], columns, first_line + wrong)
        return vectors

    def _add(self, word: bytes) -> None:
        try:
            text = word.decode("utf-8", self.errors)
        except UnicodeDecodeError as error:
            self._refuse(
                f"the word {word!r}, {len(self.rows)} words from the start, is not UTF-8 "
                f'({error.reason}); errors="replace" takes it'
            )
        if not text:
            self._refuse(f"vector {len(self.rows)} has no word")
        if text in self.rows:
            self._refuse(
                f"has the word {text!r} twice, as vectors {self.rows[text]} and {len(self.rows)}"
            )
        self.rows[text] = len(self.rows)

    def _refuse_line(self, line: bytes, columns: int, number: int) -> NoReturn:
        found = line.split()[1:]  # An empty line has not even a word.
        wrong = next((part for part in found if _numbers([part], 1) is None), None)
        what = (
            f"{len(found)} numbers" if wrong is None else f"{wrong[:40].decode(errors='replace')!r}"
        )
        self._refuse(f"line {number} should be a word and {columns} numbers, found {what}")

    def _refuse_rest(self, rest: bytes, count: int | None) -> None:
        if rest.strip():
            self._refuse(f"goes on behind the {count} vectors that its first line announces")

    def _refuse(self, reason: str) -> NoReturn:
        raise SourceError(f"{self.path}: {reason}")


def _numbers(texts: list[bytes], columns: int) -> Vectors | None:
    """Lines of numbers as float32 [lines, columns], or None if they are none."""
    with warnings.catch_warnings():
        # An older NumPy warns of what a newer one refuses: text that is no number.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            numbers = np.fromstring(b" ".join(texts), dtype=np.float32, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    return numbers.reshape(-1, columns) if numbers.size == len(texts) * columns else None
