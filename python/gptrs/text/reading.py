"""Text from files: strict UTF-8, whole files, in a fixed order. No tokens here.

Python's own help topics are a text that every installation has, for the demo and for trying things.
"""

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from gptrs.errors import SourceError

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", ".gz", "gunzip -k"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", ".zst", "unzstd"),
}
"""How compressed files begin: what made them, how they are named, what unpacks them."""

TEXT_SUFFIXES = (".txt", ".md")
"""What is read from a folder. A file that is named itself is read whatever it is called."""
PARQUET_SUFFIX = ".parquet"


def read_text(path: str | Path, *, errors: Literal["strict", "replace"] = "strict") -> str:
    """The text of one UTF-8 file, line ends as they are; a byte order mark is dropped.

    Args:
        errors: "replace" puts U+FFFD in the place of bytes that are not UTF-8.
    Raises:
        SourceError: the file is missing, unreadable, a folder, or not UTF-8 (the message has the
            offset of the first wrong byte, counted from 0).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SourceError(f"{path}: is a folder, not a file") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode_utf8(content, source=str(path), errors=errors)


def decode_utf8(
    content: bytes, *, source: str, errors: Literal["strict", "replace"] = "strict"
) -> str:
    """`content` as text, without a byte order mark; `source` names it in the error.

    Raises:
        SourceError: content is not UTF-8.
    """
    try:
        return content.decode("utf-8", errors).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise SourceError(
            f"{source}: not UTF-8: byte 0x{byte:02x} at offset {error.start} ({error.reason})"
        ) from None


def find_text_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files that `paths` name; a folder stands for its .txt and .md files, as `files_under`.

    Raises:
        SourceError: a path does not exist or cannot be read, a folder holds no such file, a file is
            compressed or Parquet, or all of them are empty.
    """
    files = [file for path in paths for file in _named_by(Path(path))]
    for file in files:
        _refuse_what_build_reads(file)
    found = [_stat(file) for file in files]
    if files and all(stat.S_ISREG(each.st_mode) and not each.st_size for each in found):
        others = f", as all {len(files):,} files are" if len(files) > 1 else ""
        raise SourceError(f"{files[0]}: is empty{others}: there is no text to read")
    return files


def files_under(folder: str, is_read: Callable[[str], bool]) -> Iterator[str]:
    """The files at any depth whose names are read, sorted by the parts of their paths.

    Links are followed.

    Raises:
        SourceError: a folder in it cannot be read, or links lead round in a circle.
    """
    # With each path, the folders on the way to it by device and inode; None for a file.
    stack: list[tuple[str, dict[tuple[int, int], str] | None]] = [(folder, {})]
    while stack:
        path, above = stack.pop()
        if above is None:
            yield path
            continue
        try:
            found = os.stat(path)
            if (first := above.get(key := (found.st_dev, found.st_ino))) is not None:
                raise SourceError(f"{path}: a link leads back to {first}, which it is in")
            above = {**above, key: path}
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True):
                path = entry.path
                if entry.is_dir():
                    stack.append((path, above))
                elif is_read(entry.name):
                    stack.append((path, None))
        except SourceError:
            raise
        except OSError as error:  # Of a link too that leads to itself.
            raise not_read(path, error) from None


def not_read(path: str | Path, error: OSError) -> SourceError:
    """What to raise where the system does not let a path be read."""
    if isinstance(error, FileNotFoundError) and not os.path.islink(path):
        return SourceError(f"{path}: no such file or folder")
    return SourceError(f"{path}: cannot be read: {error.strerror or error}")


def refuse_pipes(files: Iterable[Path], why: str) -> None:
    """Raises SourceError for what is no file on a disk: it can be read once only; `why` not so."""
    for file in files:
        if not file.is_file():
            raise SourceError(
                f"{file}: can be read once only, as a pipe, and {why}: write it to a file"
            )


def help_topics() -> str:
    """The text of Python's `help()` topics, sorted by name: about 465,000 characters of English.

    The exact text depends on the Python version (3.11: 465,126 characters, 139,015 GPT-2 tokens).
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _refuse_what_build_reads(file: Path) -> None:
    """Raises SourceError for Parquet, and for what begins as compressed files do and no text."""
    if not file.is_file():  # What is read from a pipe is gone.
        return
    if file.suffix.lower() == PARQUET_SUFFIX:
        raise SourceError(
            f"{file}: is Parquet, not text; `gptrs build` reads it, and makes a store to train on"
        )
    try:
        with file.open("rb") as opened:
            begin = opened.read(max(map(len, _COMPRESSED)))
    except OSError:
        return  # Whoever reads it says so.
    for magic, (name, suffix, tool) in _COMPRESSED.items():
        if not begin.startswith(magic):
            continue
        how = f": {tool} {shlex.quote(str(file))}" if file.suffix == suffix else ""
        if how and Path(file.stem).suffix != ".json":
            how += "; or `gptrs build` reads it as it is, and makes a store to train on"
        raise SourceError(f"{file}: is compressed with {name}; unpack it{how}")


def _named_by(path: Path) -> Iterator[Path]:
    if not stat.S_ISDIR(_stat(path).st_mode):
        yield path
        return
    files = [Path(file) for file in files_under(str(path), _is_text)]
    if not files:
        raise SourceError(f"{path}: no {' or '.join(TEXT_SUFFIXES)} file in this folder")
    yield from files


def _is_text(name: str) -> bool:
    return os.path.splitext(name.lower())[1] in TEXT_SUFFIXES


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise not_read(path, error) from None
    except ValueError as error:  # A NUL character, which no path has.
        raise SourceError(f"{str(path)!r}: {error}") from None
