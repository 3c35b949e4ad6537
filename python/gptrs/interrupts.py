"""Ctrl-C and SIGTERM as requests to stop at the next good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

StopReason = Literal["interrupted", "terminated"]


class StopRequest:
    """Whether somebody wants a stop, and how they said so."""

    def __init__(self) -> None:
        self.reason: StopReason | None = None

    def is_set(self) -> bool:
        """Whether somebody does."""
        return self.reason is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A request that the first Ctrl-C or SIGTERM sets, instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt, a second SIGTERM ends the process as ever. Outside the
    main thread, where Python allows no signal handler, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if request.is_set():
            raise KeyboardInterrupt
        request.reason = "interrupted"

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        request.reason = "terminated"
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
