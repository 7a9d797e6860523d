"""Stopping on request: a signal asks, the loop finishes its step, saves, and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKING = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has asked to stop: ``signal`` is its number, or 0."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def on_signal() -> Iterator[Stop]:
    """While the context lasts, the first SIGINT or SIGTERM is only noted; a second one does what it always did.

    Outside the main thread, where Python allows no handlers, signals do what they always do.

    >>> with on_signal() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    >>> stop.signal == signal.SIGINT
    True
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _ASKING}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()

    for number in _ASKING:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
