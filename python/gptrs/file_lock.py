"""A file that one process at a time can hold; the system lets go of it when that process ends.

However it ends: what was killed leaves a file behind, and nobody has to wait for it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO, Any


def take(file: IO[Any], path: Path) -> bool:
    """Whether this process holds `file` now, and until it is closed; does not wait.

    Args:
        file: opened from `path` to be written to.
    Raises:
        OSError: this file system has no locks.
    """
    if not _lock(file.fileno()):
        return False
    try:
        # Whoever held it may have removed it since it was opened here.
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30
    """Behind all that such a file has, since nobody else can read a byte that is locked."""

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_END)
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
