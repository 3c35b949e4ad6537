"""Whole training loops that stand still after each step, so that several can take turns.

A loop runs in a thread of its own, as its author wrote it, and is handed `turn` to call where a
step ends. Only one of all threads works at a time.

    bench    call ─────────────────────► seconds         call ──────────► ...
    loop          a step ... turn() ─┘ waits                 └─ a step ...
"""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peers import nanogpt
from torch import Tensor, nn
from torch.optim import optimizer

import gptrs
from gptrs.config import GPTConfig
from gptrs.training.callbacks import Callback, RunView, StepRecord
from gptrs.training.config import TrainingConfig
from gptrs.training.trainer import train

Turn = Callable[[], None]
Clock = Callable[[], float]
"""Seconds, such as `time.perf_counter` tells."""
Tokens = NDArray[np.uint16]

MANY_STEPS = 1_000_000
NEVER_MINUTES = 1e9


@dataclass(frozen=True)
class Took:
    """One step's seconds."""

    step: float
    optimizer: float
    """Of these, in the optimizer."""


class TrainingLoop:
    """A loop that goes one step further each time it is called; it has made its first ones.

    Args:
        body: trains without end, and calls what it is given after a step.
    Raises:
        BaseException: whatever the loop raised, here or in a call.
    """

    def __init__(self, body: Callable[[Turn], None]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        # What loops tell as they begin is no part of the table.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self._thread.start()
            self._wait()

    def __call__(self, clock: Clock) -> Took:
        """Takes a step."""
        with optimizer_seconds(clock) as in_optimizer:
            began = clock()
            self._go.release()
            self._wait()
            return Took(clock() - began, sum(in_optimizer))

    def close(self) -> None:
        """Ends the loop, which frees its model."""
        self._is_closed = True
        self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _turn(self) -> None:
        self._done.release()
        self._go.acquire()
        if self._is_closed:
            raise _ClosedError

    def _run(self, body: Callable[[Turn], None]) -> None:
        try:
            body(self._turn)
        except _ClosedError:
            return
        except BaseException as error:  # Raised again by the thread that waits.
            self._error = error
        self._done.release()


class _ClosedError(Exception):
    """Nobody wants further steps."""


class MissingPeerError(Exception):
    """A peer is not here; the message says how it would be."""


@contextlib.contextmanager
def optimizer_seconds(clock: Clock) -> Iterator[list[float]]:
    """The seconds of each step that any of torch's optimizers takes meanwhile."""
    seconds: list[float] = []
    began = [0.0]

    def before(*_: object) -> None:
        began[0] = clock()

    def after(*_: object) -> None:
        seconds.append(clock() - began[0])

    hooks = [
        optimizer.register_optimizer_step_pre_hook(before),
        optimizer.register_optimizer_step_post_hook(after),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def ours(
    cfg: GPTConfig, batch_size: int, tokens: Tokens, run_dir: Path, **settings: object
) -> TrainingLoop:
    """`gptrs.train`, as it stands; `settings` are TrainingConfig's."""

    def body(turn: Turn) -> None:
        config = TrainingConfig.of(
            {
                "steps": MANY_STEPS,
                "batch_tokens": batch_size * cfg.context_length,
                "num_evaluations": 1,
                "max_validation_tokens": cfg.context_length,
                "checkpoint_minutes": NEVER_MINUTES,
                **settings,
            }
        )
        model = gptrs.GPTModel(cfg)
        train(model, tokens, config, run_dir=run_dir, callbacks=[_AfterStep(turn)])

    return TrainingLoop(body)


class _AfterStep(Callback):
    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def on_step(self, run: RunView, record: StepRecord) -> None:
        self._turn()


def the_book(cfg: dict[str, object], batch_size: int, length: int, tokens: Tokens) -> TrainingLoop:
    """Its `train_model_simple`, with the optimizer of its chapter 5."""
    try:
        from llms_from_scratch import ch04, ch05
    except ImportError as error:
        raise MissingPeerError("pip install --no-deps llms-from-scratch") from error

    def body(turn: Turn) -> None:
        model = ch04.GPTModel(cfg)
        adamw = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
        batches = _BookBatches(tokens, batch_size, length, turn)
        evaluation = {"eval_freq": MANY_STEPS, "eval_iter": 1}
        telling = {"start_context": "", "tokenizer": None}
        device = torch.device("cpu")
        ch05.train_model_simple(model, batches, batches, adamw, device, 1, **evaluation, **telling)

    return TrainingLoop(body)


class _BookBatches:
    """A loader with one endless epoch.

    The loop evaluates after its first step, on a batch of this loader, and looks at the next: so no
    iterator ends a turn before its third batch.
    """

    def __init__(self, tokens: Tokens, batch_size: int, length: int, turn: Turn) -> None:
        self._draw = (tokens, batch_size, length)
        self._turn = turn

    def __len__(self) -> int:
        return MANY_STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in count():
            if number >= 2:
                self._turn()
            yield random_windows(*self._draw)


def nanogpt_loop(
    folder: Path | None,
    shape: dict[str, object],
    batch_size: int,
    tokens: Tokens,
    *,
    bfloat16: bool = False,
    compiled: bool = False,
) -> TrainingLoop:
    """The steps that its train.py takes on a CPU, with its model and its choice of optimizer.

    As shipped, it computes in float32 there; bfloat16 needs its autocast to be let in.
    """
    if folder is None:
        raise MissingPeerError("give a clone of karpathy/nanoGPT with --nanogpt FOLDER")

    def body(turn: Turn) -> None:
        model = nanogpt.gpt(folder, **shape)
        adamw = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
        forward: nn.Module = torch.compile(model) if compiled else model
        while True:
            inputs, targets = random_windows(tokens, batch_size, model.config.block_size)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = forward(inputs, targets)[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            turn()

    return TrainingLoop(body)


def random_windows(tokens: Tokens, batch_size: int, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [B, T] each, from random places."""
    starts = torch.randint(len(tokens) - length, (batch_size,)).tolist()
    windows = np.stack([tokens[start : start + length + 1] for start in starts])
    both = torch.from_numpy(windows.astype(np.int64))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()
