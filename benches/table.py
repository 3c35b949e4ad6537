"""What every benchmark prints: the machine, then one table, ours beside each peer.

Candidates take turns, so that a busy moment of a shared machine hits them all; the ratio column is
the median of the ratios round by round.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np

BUSY_LOAD = 0.5
"""Above it the header mentions that other programs run."""


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_threads(description: str) -> None:
    """Lets PyTorch use as many threads as the command line says, or all."""
    import torch  # Not every benchmark needs it.

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("threads", nargs="?", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)


def print_header(title: str, threads: int, ceiling: str) -> None:
    """The benchmark, the processor and what it could do at most."""
    print(f"{title}\n{processor_name()}, {threads} thread{'s' * (threads > 1)}, ", end="")
    with suppress(PackageNotFoundError):  # Not every benchmark needs it.
        print(f"torch {version('torch')}, ", end="")
    print(f"Python {platform.python_version()}\nceiling: {ceiling}")
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > BUSY_LOAD:
        print(f"others use this machine: {load:.1f} programs want to run")
    print()


def compare(
    candidates: dict[str, Callable[[], object]], *, work: float, unit: str, rounds: int = 7
) -> None:
    """Prints `work` per second for each candidate, and how many times the last one is faster.

    Args:
        candidates: label to the call that does the work; ours is the last.
        work: units that one call does.
    """
    for run in candidates.values():
        run()  # warm-up
    times = {label: [] for label in candidates}
    for _ in range(rounds):
        for label, run in candidates.items():
            times[label].append(seconds(run))
    width = max(map(len, candidates))
    ours = times[list(candidates)[-1]]
    print(f"{'':{width}}  {unit + '/s':>14}  {'ours is':>8}")
    for label, peers in times.items():
        ratio = median(theirs / mine for theirs, mine in zip(peers, ours, strict=True))
        print(f"{label:{width}}  {work / median(peers):14,.0f}  {ratio:7.2f}x")
    print()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows of cells under their columns, the first on the left and the others on the right.

    A row may be shorter: its last cell then is a remark, as long as it likes.
    """
    full = [row for row in [columns, *rows] if len(row) == len(columns)]
    widths = [max(len(row[index]) for row in full) for index in range(len(columns))]
    widths[0] = max(len(row[0]) for row in [columns, *rows])
    for first, *others in [columns, *rows]:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False)]
        print("  ".join(cells).rstrip())
    print()


def copy_ceiling() -> str:
    """How fast NumPy copies from and to memory, as a phrase."""
    source = np.ones(1 << 25, dtype=np.uint8)
    target = np.empty_like(source)
    best = min(seconds(lambda: np.copyto(target, source)) for _ in range(9))
    return f"memory copies {source.nbytes / best / 1e9:.1f} GB/s"


def processor_name() -> str:
    """The processor's own name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
