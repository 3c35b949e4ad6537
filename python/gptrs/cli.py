"""The command `gptrs`: reads arguments and files, calls the library, prints.

    gptrs demo | train DATA... --out RUN | runs DIR... | generate --model DIR --prompt TEXT
    gptrs params PRESET|PATH | explain TEXT --model PRESET|PATH | plot KIND ... --out PICTURE
    gptrs train-tokenizer DATA... | tokenize FILES...
    gptrs build INPUT... --out DIR | merge PART... --out DIR
    gptrs inspect STORE | verify STORE | convert STORE OUT --to FORMAT
    gptrs word2vec INPUT... --out FILE
    gptrs embed FILES --model DIR --out DIR | search DIR QUESTION
    gptrs finetune-classifier DATA.csv --model DIR --out DIR | classify DIR TEXT...

Exit codes: 0 done, 1 failed on the way, 2 asked for something impossible, 130 stopped by Ctrl-C,
143 by SIGTERM, where a command hears it.
An error is one line on stderr. `train-tokenizer`, `tokenize`, `params` and every --help work
without importing torch.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from gptrs.commands.build import build, merge
from gptrs.commands.embed import embed, search
from gptrs.commands.finetune import classify, finetune_classifier
from gptrs.commands.generate import generate
from gptrs.commands.groups import EXIT_USAGE, TopicGroup
from gptrs.commands.model import explain, params
from gptrs.commands.plot import plot
from gptrs.commands.runs import runs
from gptrs.commands.store import convert, inspect, verify
from gptrs.commands.tokens import tokenize, train_tokenizer
from gptrs.commands.train import EXIT_CODES, train
from gptrs.commands.training_options import runs_option, training_options
from gptrs.commands.word2vec import word2vec
from gptrs.errors import (
    ConfigError,
    DataError,
    GptrsError,
    SourceError,
    TokenIdError,
    TokenizerError,
)
from gptrs.training.config import TrainingConfig

EXIT_FAILURE, EXIT_INTERRUPT = 1, 130
# What the caller can mend by asking for something else; any other error is a failure on the way.
BAD_INPUT = (ConfigError, DataError, SourceError, TokenIdError, TokenizerError)

F = TypeVar("F", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, `sys.argv[1:]` by default, and returns its exit code."""
    _keep_waiting_threads_from_spinning()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A console that lacks a character still prints.
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warning_printer()
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # After --help and --version.
        return done.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "gptrs"
        return _fail(f"{error.format_message()} (see {command} --help)", EXIT_USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), EXIT_USAGE)
    except BAD_INPUT as error:
        return _fail(str(error), EXIT_USAGE)
    except BrokenPipeError:
        # Whoever read our output has enough, as `head` does: no failure. The interpreter's last
        # flush must not find the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GptrsError, OSError) as error:
        return _fail(str(error), EXIT_FAILURE)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "stopped", EXIT_INTERRUPT)
    return code


def _open_closed_streams() -> None:
    """Puts the null device where a standard stream is closed, and Python has None for it.

    In its place, not beside: no file that is opened later gets the number of standard output.
    """
    for name in ("stdin", "stdout", "stderr"):  # By number: each opens as the lowest that is free.
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", closefd=False))


def _run(arguments: list[str]) -> int:
    # Not `gptrs.main`, which prints errors in several lines and exits by itself on a closed pipe.
    with gptrs.make_context("gptrs", arguments) as context:
        return gptrs.invoke(context) or 0


def _fail(message: str, exit_code: int) -> int:
    print(f"gptrs: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


def _warning_printer() -> Callable[..., None]:
    """Warnings are a line, as errors are, and each comes once.

    Where in the code it comes from is for programmers.
    """
    printed = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = f"gptrs: warning: {' '.join(str(message).split())}"
        if line not in printed:
            printed.add(line)
            print(line, file=sys.stderr)

    return show


def _keep_waiting_threads_from_spinning() -> None:
    """Lets OpenMP's threads spin for microseconds, not milliseconds, before they sleep.

    An idle machine trains as fast. On a busy one it is 20 to 30 times as fast: a spinning thread
    keeps the very thread that it waits for off the processor. Read when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


@click.group(
    cls=TopicGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="gptrs", message="%(prog)s %(version)s")
def gptrs() -> None:
    """Train a small GPT, let it write, and see what it is made of.

    Start with `gptrs demo`: three minutes, no files needed, no network.
    """


@click.command()
@training_options("minutes", "steps", "device", "dtype")
@runs_option
def demo(runs_dir: Path, **settings: Any) -> int:
    """Watch a small GPT learn English and write.

    It trains on Python's own help texts and writes samples before, during and after. A new numbered
    run gets the checkpoint, metrics.jsonl and loss.png. Then the checkpoint is loaded and writes.
    """
    from gptrs.commands.demo import run_demo

    config = TrainingConfig(**{k: value for k, value in settings.items() if value is not None})
    result = run_demo(runs_dir, config)
    return EXIT_CODES[result.training.reason] if result.training.interrupted else 0


gptrs.add_topic("A model, from text to text", demo, train, runs, generate)
gptrs.add_topic("Tokens", train_tokenizer, tokenize)
gptrs.add_topic("Token stores, larger than memory", build, inspect, convert, merge, verify)
gptrs.add_topic("What is inside", params, explain, plot)
gptrs.add_topic("Vectors", embed, search, word2vec)
gptrs.add_topic("Classes of texts", finetune_classifier, classify)
