"""Text from files: strict UTF-8, whole files, in a fixed order. No tokens here.

Python's own help topics are a text that every installation has, for the demo and for trying things.
"""

import shlex
from collections.abc import Iterable, Iterator
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
    """The files that `paths` name; a folder stands for its .txt and .md files at any depth, sorted.

    Raises:
        SourceError: a path does not exist, a folder holds no such file, a file is compressed, or
            all of them are empty.
    """
    files = [file for path in paths for file in _files_under(Path(path))]
    for file in files:
        _refuse_compressed(file)
    if files and all(file.is_file() and not file.stat().st_size for file in files):
        others = f", as all {len(files):,} files are" if len(files) > 1 else ""
        raise SourceError(f"{files[0]}: is empty{others}: there is no text to read")
    return files


def help_topics() -> str:
    """The text of Python's `help()` topics, sorted by name: about 465,000 characters of English.

    The exact text depends on the Python version (3.11: 465,126 characters, 139,015 GPT-2 tokens).
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _refuse_compressed(file: Path) -> None:
    """Raises SourceError for what begins as a compressed file does, and no text in UTF-8 can."""
    if not file.is_file():  # What is read from a pipe is gone.
        return
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


def _files_under(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    if not path.is_dir():
        yield path
        return
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and file.suffix in TEXT_SUFFIXES
    )
    if not files:
        raise SourceError(f"{path}: no {' or '.join(TEXT_SUFFIXES)} file in this folder")
    yield from files
