"""Starts the processes that measure tokenizers, and reads what they say."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from tokenizer_environment import FAILURES, FOLDER, RUST_PEERS
from tokenizer_peers import PEERS, RANKS_FILE, write_vocabulary

WORKER = Path(__file__).with_name("tokenizer_worker.py")
TIMEOUT_S = 120.0


class FailedError(Exception):
    """A peer is not there, or did not finish; the message is short."""


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    cold_s: float
    warm_s: float
    """Median of the encodings after the first; of the first where there is no other."""
    memory_bytes: int


class Lab:
    """A folder with texts and vocabularies, and the way to run a peer on them."""

    def __init__(self, folder: Path) -> None:
        self.vocabulary = folder
        write_vocabulary(folder)
        self._missing = json.loads(FAILURES.read_text()) if FAILURES.exists() else {}

    def write(self, name: str, text: str) -> Path:
        """A text as a file, for the processes to read."""
        path = self.vocabulary / f"{name}.txt"
        path.write_bytes(text.encode())
        return path

    def run(
        self,
        name: str,
        text: Path,
        *,
        repeats: int,
        ids: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Run:
        """One process that encodes `text` so many times.

        Raises:
            FailedError: it did not end well.
        """
        command = self.command(name, text, repeats, ids)
        with processors(1):
            output = finished(command, environment(1), timeout_s).stdout
        found = json.loads(output.splitlines()[-1])
        cold_s, *warm_s = found["seconds"]
        return Run(cold_s, median(warm_s or [cold_s]), found["memory_bytes"])

    def rounds(
        self, names: Iterable[str], text: Path, *, rounds: int, repeats: int
    ) -> dict[str, list[Run] | str]:
        """Every peer's runs, in turns; its error instead where it failed."""
        found: dict[str, list[Run] | str] = {name: [] for name in names}
        for _ in range(rounds):
            for name, runs in found.items():
                if isinstance(runs, list):
                    try:
                        runs.append(self.run(name, text, repeats=repeats))
                    except FailedError as error:
                        found[name] = str(error)
        return found

    def command(self, name: str, text: Path, repeats: int, ids: Path | None = None) -> list[str]:
        """The command line that measures a peer.

        Raises:
            FailedError: the peer could not be installed.
        """
        peer = PEERS[name]
        if peer.package in self._missing:
            raise FailedError(f"not installed: {self._missing[peer.package]}")
        if peer.load is None:
            ranks = self.vocabulary / RANKS_FILE
            program = str(FOLDER / "bin" / "bench-peers")
            return [program, str(ranks), str(text), str(repeats), *([str(ids)] if ids else [])]
        options = ["--repeats", str(repeats), *(["--ids", str(ids)] if ids else [])]
        return [sys.executable, str(WORKER), name, str(self.vocabulary), str(text), *options]


def finished(
    command: list[str], variables: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end.

    Raises:
        FailedError: it failed, with the last line that it wrote, or it took too long.
    """
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"over {timeout_s:.0f} s") from None
    except OSError as error:
        raise FailedError(str(error)) from None
    if done.returncode:
        panic = re.search(r"panicked|StackOverflow|stack overflow", done.stderr)
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FailedError("panics" if panic else lines[-1])
    return done


def environment(num_threads: int) -> dict[str, str]:
    """This process's variables, and how many threads libraries may start."""
    variables = dict(os.environ, PYTHONHASHSEED="0", RAYON_NUM_THREADS=str(num_threads))
    # NumPy's own threads wait busily for some time after the import, on the second processor.
    variables["OPENBLAS_NUM_THREADS"] = "1"
    return variables | {"TOKENIZERS_PARALLELISM": "false" if num_threads == 1 else "true"}


@contextmanager
def processors(number: int) -> Iterator[None]:
    """Started processes keep to so many processors, where the system can say so.

    A variable is not enough: fastokens, told to use one thread, works on two.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[-number:]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def labels() -> dict[str, str]:
    """Each peer's name, version and call, as the tables show them."""
    return {
        name: f"{peer.package} {version_of(peer.package)} {peer.call}"
        for name, peer in PEERS.items()
    }


def version_of(package: str) -> str:
    """The installed version; of the Rust crate the one that is asked for."""
    if package == "bpe":
        manifest = tomllib.loads((RUST_PEERS / "Cargo.toml").read_text())
        return manifest["dependencies"]["bpe"]["version"].lstrip("=")
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


def ratio(theirs: list[Run], ours: list[Run], which: str) -> float:
    """How many times ours is faster: the median of the ratios round by round."""
    pairs = zip(theirs, ours, strict=False)
    return median(getattr(their, which) / getattr(our, which) for their, our in pairs)
