"""What torchrun tells the processes that it starts. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


def is_launched() -> bool:
    """Whether torchrun, or what sets the same variables, started this process."""
    return "WORLD_SIZE" in os.environ


def num_processes() -> int:
    """How many it started on all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def num_processes_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def local_rank() -> int:
    """Which of those on this machine this one is, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def num_machines() -> int:
    """How many machines they are on."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1))


def num_restarts() -> int:
    """How often they were started again after one of them had failed (--max-restarts).

    That is one of this machine's: where there are several, each counts its own.
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def one_voice() -> Iterator[None]:
    """What all but the first process print is dropped; errors are not."""
    if int(os.environ.get("RANK", 0)) == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield
