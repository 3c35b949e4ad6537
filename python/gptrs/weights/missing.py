"""A path of a model that is not there: what is, under the nearest name. No torch here."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def no_such_path(path: str | os.PathLike[str], other_hint: str = "") -> str:
    """The message for a path that does not exist, with the nearest one that does.

    Args:
        other_hint: what else may be meant, for it need not be a path; it comes last.
    """
    nearest = nearest_path(Path(path))
    near_hint = "" if nearest is None else f"did you mean {nearest}?"
    hints = " ".join(hint for hint in (near_hint, other_hint) if hint)
    return f"{path}: no such file or folder{hints and '; '}{hints}"


def nearest_path(path: Path) -> Path | None:
    """The existing path that differs least in a name or several; None if nothing is near."""
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return None
    wrong, *inner = path.relative_to(folder).parts
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return None
    for name in difflib.get_close_matches(wrong, names, n=1):
        found = folder.joinpath(name, *inner)
        return found if found.exists() else nearest_path(found)
    return None
