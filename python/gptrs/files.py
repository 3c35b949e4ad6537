"""Files that are written whole or not at all."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Writes under a temporary name, then renames: no reader ever sees half a file.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    temporary = file.with_name(f".tmp-{file.name}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
