"""Ctrl-C, SIGTERM and a terminal that closes as requests to stop at the next good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

StopReason = Literal["interrupted", "terminated"]

_ENDING = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
"""The second is what a terminal that closes sends to what runs in it."""


class StopRequest:
    """Whether somebody wants a stop, and how they said so."""

    def __init__(self) -> None:
        self.reason: StopReason | None = None

    def is_set(self) -> bool:
        """Whether somebody does."""
        return self.reason is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A request that the first Ctrl-C, SIGTERM or SIGHUP sets, instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt, a second SIGTERM ends the process as ever. A signal
    that is ignored stays so, as nohup wants it. Outside the main thread, where Python allows no
    signal handler, nothing changes.
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
        signal.signal(signum, before[signal.Signals(signum)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING)}
    signal.signal(signal.SIGINT, on_interrupt)
    for number in _ENDING:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, on_terminate)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
