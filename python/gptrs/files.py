"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEMPORARY = ".tmp-"
"""What the names of files begin with that are not whole, before their own."""


def write_whole(file: Path, content: bytes) -> None:
    """Writes under a temporary name, then renames: no reader ever sees half a file.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    write_whole_with(file, lambda temporary: temporary.write_bytes(content))


def write_whole_with(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file of another name, then renames it; errors as of `write_whole`."""
    with _synced(file, write) as temporary:
        temporary.replace(file)


def write_by_content(file: Path, write: Callable[[Path], object]) -> Path:
    """As `write_whole_with`, but `{}` in the file's name stands for its digest; the path it got."""
    with _synced(file, write) as temporary:
        named = file.with_name(file.name.replace("{}", digest(temporary)))
        temporary.replace(named)
    return named


def digest(file: Path) -> str:
    """16 hex digits that tell a content from any other: the first of its SHA-256.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def sync_names(folder: Path) -> None:
    """Waits until the names of a folder's files are on the disk."""
    if os.name == "nt":
        return  # Windows opens no folders, and renames durably by itself.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _synced(file: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """A temporary file beside `file`, filled and on the disk; gone afterwards, unless renamed."""
    temporary = file.with_name(f"{TEMPORARY}{file.name}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb"):
            usual_mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(usual_mode)  # safetensors makes its files unreadable for others.
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
