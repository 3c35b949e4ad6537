"""Prompts from many threads, continued together: they join and leave a running batch.

    submit ─► Handle ◄── events ── worker thread: step, step, ... ; parked while nothing runs

The thread starts with the first prompt and ends with its Generator.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gptrs.errors import GenerationError
from gptrs.generation.completions import Completion, CompletionBuilder, Event
from gptrs.generation.runs import Backend, Run
from gptrs.sampling.requests import Request

# How long the end of a program waits for a step that is under way.
PATIENCE_S = 10.0


class Handle:
    """A submitted prompt; keeps its Generator alive. Safe to use from any thread."""

    def __init__(self, run: Run, request: Request, tokenizer: Any, owner: object) -> None:
        self._run = run
        self._owner = owner
        self._number = -1
        self._builder = CompletionBuilder(request, tokenizer, run.engine)
        self._changed = threading.Condition()
        self._pieces: deque[str] = deque()
        self._error: BaseException | None = None
        self._has_ended = False
        self._tell: Callable[[], object] | None = None

    @property
    def prompt(self) -> int:
        """The number of its prompt in the call that it came from."""
        return self._builder.prompt

    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._has_ended

    def cancel(self) -> None:
        """Ends it at the next step, with what it has. Afterwards this does nothing."""
        if not self._has_ended:
            self._run.cancel(self._number)

    def result(self, timeout: float | None = None) -> Completion:
        """The completion, as soon as it is there.

        Args:
            timeout: seconds to wait; None: as long as it takes.
        Raises:
            TimeoutError: it has not ended by then.
            Anything the model raised while this prompt was in its batch.
        """
        with self._changed:
            if not self._changed.wait_for(self.done, timeout):
                raise TimeoutError(f"the prompt has not ended after {timeout} seconds")
            if self._error is not None:
                raise self._error
            return self._builder.completion()

    def so_far(self) -> Completion:
        """What there is by now; before its end it counts as cancelled."""
        with self._changed:
            return self._builder.completion()

    def __iter__(self) -> Iterator[str]:
        """Its text as it is written, whole characters; what others took does not come again.

        Raises:
            As `result`, after the last piece.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._pieces) or self._has_ended)
                if not self._pieces:
                    break
                piece = self._pieces.popleft()
            yield piece
        self.result()

    def take_pieces(self) -> list[str]:
        """The pieces of text that nobody took yet; does not wait."""
        with self._changed:
            pieces = list(self._pieces)
            self._pieces.clear()
        return pieces

    def notify(self, tell: Callable[[], object]) -> None:
        """Calls `tell` now, and on the worker's thread whenever there is news."""
        with self._changed:
            self._tell = tell
        tell()

    def _begin(self, number: int) -> None:
        self._number = number

    def _take(self, event: Event) -> bool:
        """Adds what a step did; True after the last event."""
        with self._changed:
            try:
                if piece := self._builder.take(event):
                    self._pieces.append(piece)
                self._has_ended = self._builder.has_ended
            except Exception as error:  # The tokenizer's: it is this prompt's trouble alone.
                self._error, self._has_ended = error, True
                self._run.cancel(self._number)
            self._changed.notify_all()
        self._tell_others()
        return self._has_ended

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error, self._has_ended = error, True
            self._changed.notify_all()
        self._tell_others()

    def _tell_others(self) -> None:
        if self._tell is not None:
            self._tell()


class Worker:
    """The thread that continues what is submitted, on an engine of its own.

    Args:
        max_queue: most prompts that may wait for a place in the batch.
    """

    def __init__(self, backend: Backend, tokenizer: Any, max_queue: int) -> None:
        self._backend = backend
        self._tokenizer = tokenizer
        self._max_queue = max_queue
        self._process: int | None = None
        """Where the thread is."""
        # Guards what follows; the thread holds it between steps only.
        self._changed = threading.Condition()
        self._run: Run | None = None
        self._handles: dict[int, Handle] = {}
        self._at_last_end: set[int] = set()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, request: Request, owner: object) -> Handle:
        """Lets a prompt join the batch as soon as there is a place.

        Args:
            owner: what the handle keeps alive.
        Raises:
            QueueFullError: max_queue prompts wait already.
            GenerationError: the worker was closed, or this process was forked from its own; or a
                prompt that the model cannot go on with.
        """
        if self._is_elsewhere():
            raise GenerationError(
                "this generator's worker thread was started before the process was forked, and is "
                "not in the child: make a Generator there"
            )
        with self._changed:
            if self._is_closed:
                raise GenerationError("the generator is closed")
            run = self._fresh_run()
            handle = Handle(run, request, self._tokenizer, owner)
            number = run.submit(request)
            handle._begin(number)
            self._handles[number] = handle
            if self._thread is None:
                self._process = os.getpid()
                self._thread = threading.Thread(target=self._work, name="gptrs", daemon=True)
                self._thread.start()
            self._changed.notify()
        return handle

    def cancel(self) -> None:
        """Ends everything at the next step."""
        run = self._run
        if run is not None:
            run.cancel()

    def close(self) -> None:
        """Ends everything, and the thread; waits for the step that is under way."""
        if self._is_elsewhere():
            return
        with self._changed:
            self._is_closed = True
            self.cancel()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE_S)

    def _is_elsewhere(self) -> bool:
        """Whether this is a fork of the thread's process: the locks may be held by nobody here."""
        return self._process not in (None, os.getpid())

    def _fresh_run(self) -> Run:
        """The run that all share; another one if the model changed while nothing ran."""
        if self._run is None or not (self._handles or self._run.is_current()):
            self._run = None  # Its memory goes before the next one's is asked for.
            self._run = self._backend.start(self._backend.max_batch, queue=self._max_queue)
        return self._run

    def _work(self) -> None:
        while (run := self._wait()) is not None:
            # The mode is held for as long as there is something to do, not for each step.
            with run.evaluating():
                # A prompt that came after the last had ended may have brought another run.
                while self._handles and self._run is run and not self._is_closed:
                    self._step(run)
        self._end()

    def _wait(self) -> Run | None:
        """Parks until there is something to do; None if there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._handles or self._is_closed)
            return None if self._is_closed else self._run

    def _step(self, run: Run) -> None:
        try:
            events = run.step()
        except BaseException as error:
            # Nobody else is concerned; if it is not known who is, nobody is left waiting.
            self._fail(run.failed() or list(self._handles), error)
            return
        if events is None:
            self._check_lost()
            return
        with self._changed:
            for event in events:
                handle = self._handles.get(event[0])
                if handle is not None and handle._take(event):
                    del self._handles[event[0]]

    def _check_lost(self) -> None:
        """Lets nobody wait for ever: who is there at two ends in a row was forgotten."""
        with self._changed:
            lost = [number for number in self._handles if number in self._at_last_end]
            self._at_last_end = set(self._handles)
        if lost:
            self._fail(lost, GenerationError(f"the loop ended without prompts {lost}"))

    def _fail(self, numbers: list[int], error: BaseException) -> None:
        with self._changed:
            handles = [self._handles.pop(number, None) for number in numbers]
        for handle in handles:
            if handle is not None:
                handle._fail(error)

    def _end(self) -> None:
        """Leaves nobody waiting."""
        with self._changed:
            handles, self._handles, self._run = self._handles, {}, None
        for handle in handles.values():
            handle._fail(GenerationError("the generator was closed before this prompt had ended"))
