"""What every benchmark prints: the machine, then one table, ours beside each peer.

Candidates take turns, so that a busy moment of a shared machine hits them all; the ratio column is
the median of the ratios round by round.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_header(title: str, threads: int, ceiling: str) -> None:
    """The benchmark, the processor and what it could do at most."""
    import torch

    print(f"{title}\n{processor_name()}, {threads} thread{'s' * (threads > 1)}, ", end="")
    print(f"torch {torch.__version__}, Python {platform.python_version()}\nceiling: {ceiling}\n")


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
