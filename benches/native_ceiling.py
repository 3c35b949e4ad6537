"""Compiles `ceiling.c` and asks it how fast this machine can decode at most.

A ceiling counts only if it comes to 90 % of the best of a plain read of as many bytes, of NumPy's
sum over them, and of what the peers' own speed says that they read.
"""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from native_models import Shape
from table import seconds
from tokenizer_runs import FailedError, finished

SOURCE = Path(__file__).with_name("ceiling.c")
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
VALID = 0.9
"""Part of the best other figure that a ceiling has to reach."""
TIMEOUT_S = 120.0
READ, WAIT = "read", "wait"


@dataclass(frozen=True)
class Variant:
    """One way to read the weights; see ceiling.c."""

    kernel: str
    rows: int
    ahead: int
    pinned: bool = False
    huge: bool = False

    def __str__(self) -> str:
        ahead = f" {self.ahead} B ahead" * (self.ahead > 0)
        return f"{self.rows} {self.kernel}{ahead}{' pinned' * self.pinned}{' huge' * self.huge}"

    def options(self) -> list[str]:
        """For the program."""
        return [
            f"kernel={self.kernel}",
            f"rows={self.rows}",
            f"ahead={self.ahead}",
            f"pinned={self.pinned:d}",
            f"huge={self.huge:d}",
        ]


@dataclass(frozen=True)
class Found:
    """The best variant for one model, precision and number of threads; rates are tokens/s."""

    variant: Variant
    rate: float
    pinned: float
    huge: float
    read: float
    numpy: float

    @property
    def of_the_best(self) -> float:
        """Its part of the best of a plain read and NumPy's sum."""
        return self.rate / max(self.read, self.numpy)


class Ceiling:
    """The compiled program.

    Raises:
        FailedError: there is no C compiler, or it fails.
    """

    def __init__(self, folder: Path, *, seconds_each: float = 0.08, rounds: int = 3) -> None:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        self._program = folder / "ceiling"
        self._seconds, self._rounds = seconds_each, rounds
        flags = ["-O3", "-march=native", "-std=gnu17", "-pthread"]
        command = [*compiler, *flags, str(SOURCE), "-o", str(self._program)]
        finished(command, dict(os.environ), TIMEOUT_S)

    def find(self, shape: Shape, precision: str, threads: int) -> Found:
        """Tries all variants shortly, the best ones again, and the best one in other surroundings.

        The weights of a PyTorch model lie in usual pages, and so do those of float32 and bfloat16
        here; int8 weights are a copy that may lie in pages of 2 MB.
        """
        rates = self._run(shape, precision, threads, self._seconds, [])
        by_rate = sorted(rates, key=rates.__getitem__, reverse=True)
        rates = self._again(
            [variant for variant in by_rate if variant.kernel != READ][:3],
            shape,
            precision,
            threads,
        )
        best = max(rates, key=rates.__getitem__)
        name = (best.kernel, best.rows, best.ahead)
        pinned, huge = Variant(*name, pinned=True), Variant(*name, huge=True)
        read = next(variant for variant in by_rate if variant.kernel == READ)
        rates = self._again([best, pinned, huge, read], shape, precision, threads)
        candidates = [best, pinned, huge] if precision == "int8" else [best, pinned]
        variant = max(candidates, key=rates.__getitem__)
        summed = numpy_rate(shape.read_weights * NUMBER_BYTES[precision], threads)
        return Found(variant, rates[variant], rates[pinned], rates[huge], rates[read], summed)

    def rate(self, found: Found, shape: Shape, precision: str, threads: int) -> float:
        """Tokens/s of the best variant, now, and as libraries are timed: over a whole stretch."""
        options = found.variant.options()
        (line,) = self._lines(shape, precision, threads, 0.5, options)
        return 1e9 / float(line[-1])

    def waits_us(self, shape: Shape, threads: int) -> float:
        """What the barriers of a token take, now, in microseconds.

        A host puts a virtual machine's processors on cores that share a cache, on others, or on one
        core, and this tells which.
        """
        (line,) = self._lines(shape, "int8", threads, 0.05, Variant(WAIT, 1, 0).options())
        return float(line[-2]) / 1e3

    def _again(
        self, variants: list[Variant], shape: Shape, precision: str, threads: int
    ) -> dict[Variant, float]:
        rates: dict[Variant, list[float]] = {variant: [] for variant in variants}
        for _ in range(self._rounds):
            for variant, own in rates.items():
                run = self._run(shape, precision, threads, 3 * self._seconds, variant.options())
                own.extend(run.values())
        return {variant: median(own) for variant, own in rates.items()}

    def _run(
        self, shape: Shape, precision: str, threads: int, seconds_each: float, options: list[str]
    ) -> dict[Variant, float]:
        """Of each variant, by its median token."""
        return {
            Variant(kernel, int(rows), int(ahead)): 1e9 / float(nanoseconds)
            for kernel, rows, ahead, nanoseconds, _ in self._lines(
                shape, precision, threads, seconds_each, options
            )
        }

    def _lines(
        self, shape: Shape, precision: str, threads: int, seconds_each: float, options: list[str]
    ) -> list[list[str]]:
        sizes = [shape.layers, shape.width, shape.vocab_size, threads, seconds_each]
        command = [str(self._program), precision, *map(str, sizes), *options]
        output = finished(command, dict(os.environ), TIMEOUT_S).stdout
        return [line.split() for line in output.splitlines()]


def numpy_rate(num_bytes: int, threads: int) -> float:
    """How often a second NumPy adds up that many bytes of float32, a part on each thread."""
    parts = np.array_split(np.ones(num_bytes // 4, dtype=np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return 1 / min(seconds(lambda: list(pool.map(np.sum, parts))) for _ in range(7))


def row(name: str, found: Found, shape: Shape, precision: str) -> list[str]:
    """Its line of the table; see `COLUMNS`."""
    gigabytes = shape.read_weights * NUMBER_BYTES[precision] / 1e9
    verdict = "" if found.of_the_best >= VALID else " too low"
    rates = (found.rate, found.pinned, found.huge, found.read, found.numpy)
    return [
        name,
        *(f"{rate:,.0f}" for rate in rates),
        f"{found.rate * gigabytes:.1f}",
        f"{found.of_the_best:.0%}{verdict}",
        str(found.variant),
    ]


COLUMNS = [
    "tokens/s at most",
    "ceiling",
    "pinned",
    "2 MB pages",
    "a read",
    "NumPy's sum",
    "GB/s",
    "of the best read",
    "variant",
]
__all__ = ["COLUMNS", "NUMBER_BYTES", "VALID", "Ceiling", "FailedError", "Found", "row"]
