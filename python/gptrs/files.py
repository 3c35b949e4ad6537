"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager

from gptrs import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeVar

    _T = TypeVar("_T")

TEMPORARY = ".tmp-"
"""What the names of files begin with that are not whole, before their own."""

_IN_NAME = re.compile(r"-([0-9a-f]{16})\.")
_CHUNK_BYTES = 1 << 20


def write_whole(file: Path, content: bytes) -> None:
    """Writes under a temporary name, then renames: no reader ever sees half a file.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    write_whole_with(file, lambda temporary: temporary.write_bytes(content))


def write_whole_with(file: Path, write: Callable[[Path], _T]) -> _T:
    """Lets `write` fill a file of another name, then renames it; errors as of `write_whole`.

    Returns:
        What `write` returned.
    """
    with _synced(file, write) as (temporary, written):
        temporary.replace(file)
    return written


def write_by_content(file: Path, write: Callable[[Path], str]) -> Path:
    """As `write_whole_with`, but `{}` in the file's name stands for its digest; the path it got.

    Args:
        write: returns the digest of what it wrote.
    """
    with _synced(file, write) as (temporary, found):
        named = file.with_name(file.name.replace("{}", found))
        temporary.replace(named)
    return named


def digest(file: Path) -> str:
    """16 hex digits that tell a content from others: its XXH3-64, as of a token store's shards.

    Raises:
        OSError: the file cannot be read.
    """
    found = _core.Digest()
    # One buffer that stays in cache: new ones would take longer than the sum.
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            found.update(buffer[:count])
    return found.hexdigest()


def digest_in_name(file: Path) -> str | None:
    """The digest that `write_by_content` put into a file's name."""
    found = _IN_NAME.search(file.name)
    return None if found is None else found[1]


def obstacle(path: Path) -> Path | None:
    """The nearest thing to `path` that is there, if nothing can be written in it; None if it can.

    `path` itself, or a folder in which it and all between are yet to be made.
    """
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else there


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
def _synced(file: Path, write: Callable[[Path], _T]) -> Iterator[tuple[Path, _T]]:
    """A temporary file beside `file`, filled and on the disk, and what `write` returned.

    It is gone afterwards, unless renamed.
    """
    temporary = file.with_name(f"{TEMPORARY}{file.name}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb"):
            usual_mode = temporary.stat().st_mode
        written = write(temporary)
        temporary.chmod(usual_mode)  # safetensors makes its files unreadable for others.
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        yield temporary, written
    finally:
        temporary.unlink(missing_ok=True)
