"""Lines for whoever watches a run, which goes on when nobody does any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


def say(text: str) -> None:
    """Prints lines above the bar."""
    with unheard():
        tqdm.write(text)


@contextmanager
def unheard() -> Iterator[None]:
    """What cannot be printed ends no run: the terminal is gone, the pipe closed, the disk full."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Python raises ValueError, with no class of its own, for a stream that was closed.
        if not isinstance(error, OSError) and "closed file" not in str(error):
            raise
