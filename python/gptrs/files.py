"""Files that are written whole or not at all."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Writes under a temporary name, then renames: no reader ever sees half a file.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    write_whole_with(file, lambda temporary: temporary.write_bytes(content))


def write_whole_with(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file of another name, then renames it; errors as of `write_whole`."""
    temporary = file.with_name(f".tmp-{file.name}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb"):
            usual_mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(usual_mode)  # safetensors makes its files unreadable for others.
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
