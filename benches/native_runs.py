"""Starts the processes that generate, and asks them in turns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import Any, Self

from native_environment import FAILURES, FOLDER
from native_models import Shape, write_model
from native_peers import COMPILED, COMPILED_NAME, PEERS, Peer
from tokenizer_runs import FailedError, finished, processors

HERE = Path(__file__).parent
TIMEOUT_S = 600.0
ELSEWHERE = {"llama-cpp-python": "llama.cpp", "ctranslate2": "ctranslate2"}
"""Packages that live in an environment of their own, and what `native_models.py` calls them."""
MIN_S = 0.2
"""A measurement takes that long at least: a short task is repeated."""
MOST_REPEATS = 500
REST_S = 0.3
"""Nobody is timed before that: OpenMP's threads, of who ran before, spin for up to 200 ms."""
ERROR_LINE = re.compile(r"[\w.]+(Error|Exception|Unsupported): ")
MOST_WORDS = 120
"""Characters of an error that a table shows."""


@dataclass(frozen=True)
class Task:
    """What is to be generated."""

    prompts: list[list[int]]
    num_new: int


class Worker:
    """A process with one library and one model.

    Raises:
        FailedError: it cannot be started, or ends; the message is its last line.
    """

    def __init__(self, command: list[str], threads: int) -> None:
        self._errors = TemporaryFile("w+")  # noqa: SIM115  # It goes with the worker.
        # MKL and OpenMP otherwise start as many threads as there are processors.
        variables = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        with processors(threads):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=variables | {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.start: dict[str, float] = self._answer()

    def run(self, task: Task, repeats: int = 1) -> tuple[float, list[list[int]]]:
        """Seconds of one time, and the new tokens."""
        asked = {"prompts": task.prompts, "num_new": task.num_new, "repeats": repeats}
        try:
            print(json.dumps(asked), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise FailedError(self._last_words()) from None
        found = self._answer()
        return found["seconds"], found["tokens"]

    def _answer(self) -> Any:
        timer = Timer(TIMEOUT_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise FailedError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        if status <= 0 or not lines:
            return f"ended by signal {-status}"
        # Some add advice after the error.
        errors = [line for line in lines if ERROR_LINE.match(line)] or lines
        return errors[-1][:MOST_WORDS]

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lab:
    """A folder with models, and the way to start a peer on them."""

    def __init__(self, folder: Path, python: Path) -> None:
        self._folder, self._python = folder, python
        self._missing: dict[str, str] = {}
        if FAILURES.exists() and FOLDER in python.parents:
            self._missing = json.loads(FAILURES.read_text())

    def prepare(self, shape: Shape) -> Path:
        """The folder of that model, written if it is not there."""
        folder = self._folder / f"{shape.layers}-{shape.width}-{shape.vocab_size}"
        if folder.exists():
            return folder
        folder.mkdir()
        write_model(shape, folder)
        for package, library in ELSEWHERE.items():
            if package not in self._missing:
                command = [str(self._python), str(HERE / "native_models.py"), library, str(folder)]
                try:
                    finished(command, dict(os.environ), TIMEOUT_S)
                except FailedError as error:
                    self._missing[package] = str(error)
        return folder

    def start(self, shape: Shape, precision: str, name: str, threads: int) -> Worker:
        """A process that has generated its first tokens.

        Raises:
            FailedError: it has not.
        """
        package = peer(precision, name).package
        if package in self._missing:
            raise FailedError(f"not installed: {self._missing[package]}")
        python = str(self._python) if package in ELSEWHERE else sys.executable
        program = [python, str(HERE / "native_worker.py")]
        return Worker([*program, precision, name, str(self.prepare(shape)), str(threads)], threads)


@dataclass
class Results:
    """What one peer did: seconds of each round, and tokens, by the task's name."""

    seconds: dict[str, list[float]]
    tokens: dict[str, list[list[int]]]


def peer(precision: str, name: str) -> Peer:
    """The peer of that name."""
    return COMPILED[precision] if name == COMPILED_NAME else PEERS[precision][name]


def rounds_of(
    workers: dict[str, tuple[Worker, Peer]],
    tasks: dict[str, Task],
    rounds: int,
    between: Callable[[], object],
) -> tuple[dict[str, Results], dict[str, str]]:
    """Every peer's results, in turns, and why some have none; `between` is called in each round."""
    results = {name: Results({}, {}) for name in workers}
    repeats: dict[tuple[str, str], int] = {}
    failures: dict[str, str] = {}

    def run(name: str, task: str, *, is_warm_up: bool) -> None:
        time.sleep(REST_S)
        taken, tokens = workers[name][0].run(tasks[task], repeats.get((name, task), 1))
        if is_warm_up:
            results[name].tokens[task] = tokens
            repeats[name, task] = max(1, min(MOST_REPEATS, int(MIN_S / taken)))
        if not is_warm_up or workers[name][1].is_slow:
            results[name].seconds.setdefault(task, []).append(taken)

    for number in range(rounds + 1):
        between()
        for task in tasks:
            for name, (_, own) in workers.items():
                is_left_out = own.is_slow and (number > 0 or task == "prompt")
                if name in failures or is_left_out:
                    continue
                try:
                    run(name, task, is_warm_up=number == 0)
                except FailedError as error:
                    failures[name] = str(error)
                    del results[name]
    return results, failures
