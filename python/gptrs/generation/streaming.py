"""Text as it is written: `Stream` in this thread, `AsyncStream` for asyncio.

Stream       a run of its own, one step whenever nothing is left to give out
AsyncStream  submitted prompts, which share the worker's batch with everybody else's
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from gptrs.generation.completions import Completion, CompletionBuilder

if TYPE_CHECKING:
    from types import TracebackType

    from gptrs.generation.runs import Run
    from gptrs.generation.serving import Handle
    from gptrs.sampling.requests import Request

PieceT = TypeVar("PieceT", str, tuple[int, str])


class Stream(Iterator[PieceT], Generic[PieceT]):
    """Pieces of text, whole characters each: str of a single text, else (prompt number, str).

    A `with` statement closes it; so does being dropped.

    Args:
        first: the number that the run gave to the first of the requests.
        on_end: called once, with the completions, or None if the run raised.
    """

    def __init__(
        self,
        run: Run,
        requests: Sequence[Request],
        tokenizer: Any,
        *,
        is_single: bool,
        first: int = 0,
        on_end: Callable[[list[Completion] | None], object] = lambda completions: None,
    ) -> None:
        self._run: Run | None = run
        self._builders = [CompletionBuilder(request, tokenizer, run.engine) for request in requests]
        self._is_single = is_single
        self._first = first
        self._on_end = on_end
        self._pieces: deque[tuple[int, str]] = deque()
        self._is_closed = False
        # Whoever holds it may step; `close` never waits for it.
        self._stepping = threading.RLock()

    @property
    def completions(self) -> list[Completion]:
        """What the sequences have so far; once the stream has ended, what a call would give."""
        return [builder.completion() for builder in self._builders]

    def __iter__(self) -> Stream[PieceT]:
        return self

    def __next__(self) -> PieceT:
        with self._stepping:
            while not self._is_closed and not self._pieces:
                self._step()
            if self._is_closed:
                self._end()
                raise StopIteration
            index, piece = self._pieces.popleft()
        return cast(PieceT, piece if self._is_single else (index, piece))

    def close(self) -> None:
        """Ends all sequences; from any thread. A step that runs is the last."""
        self._is_closed = True
        run = self._run
        if run is not None:
            run.cancel()
        if self._stepping.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._stepping.release()

    def __enter__(self) -> Stream[PieceT]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _step(self) -> None:
        run = self._run
        if run is None:
            self._is_closed = True
            return
        try:
            with run.evaluating():
                events = run.step()
        except BaseException:
            self._is_closed = True
            self._end(failed=True)
            raise
        if events is None:
            self._end()
            return
        for event in events:
            builder = self._builders[event[0] - self._first]
            if piece := builder.take(event):
                self._pieces.append((builder.prompt, piece))

    def _end(self, *, failed: bool = False) -> None:
        """Lets the engine go, and its memory with it."""
        if self._run is not None:
            self._run = None
            self._on_end(None if failed else self.completions)


class AsyncStream(AsyncIterator[PieceT], Generic[PieceT]):
    """As `Stream`, for `async for`: the event loop goes on while the worker computes.

    Cancelling the task that waits for a piece, `aclose`, or dropping the stream ends its sequences.
    """

    def __init__(self, handles: Sequence[Handle], *, is_single: bool) -> None:
        self._handles = handles
        self._is_single = is_single
        self._news: asyncio.Event | None = None
        self._pieces: deque[tuple[int, str]] = deque()
        self._is_closed = False

    @property
    def completions(self) -> list[Completion]:
        """What the sequences have so far; once the stream has ended, what a call would give."""
        return [handle.so_far() for handle in self._handles]

    def __aiter__(self) -> AsyncStream[PieceT]:
        return self

    async def __anext__(self) -> PieceT:
        news = self._news or self._listen(asyncio.get_running_loop())
        try:
            while not self._pieces:
                news.clear()
                if self._collect():
                    break
                await news.wait()
        except BaseException:
            self._cancel()
            raise
        if not self._pieces:
            raise StopAsyncIteration
        index, piece = self._pieces.popleft()
        return cast(PieceT, piece if self._is_single else (index, piece))

    async def aclose(self) -> None:
        """Ends all sequences at their next step; no piece comes any more."""
        self._is_closed = True
        self._pieces.clear()
        self._cancel()

    def __del__(self) -> None:
        self._cancel()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Event:
        news = self._news = asyncio.Event()

        def tell() -> None:
            # The loop may be gone before the sequences have ended.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(news.set)

        for handle in self._handles:
            handle.notify(tell)
        return news

    def _collect(self) -> bool:
        """Takes what there is; True if nothing will come any more."""
        if self._is_closed:
            return True
        # First who has ended: all that they wrote is then there.
        ended = all(handle.done() for handle in self._handles)
        for handle in self._handles:
            self._pieces.extend((handle.prompt, piece) for piece in handle.take_pieces())
        if ended and not self._pieces:
            for handle in self._handles:
                handle.result()  # Raises what the model raised.
        return ended

    def _cancel(self) -> None:
        for handle in self._handles:
            handle.cancel()
