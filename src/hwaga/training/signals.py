"""Ctrl-C and SIGTERM: the step is finished, a checkpoint is made, and then the work ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Set once the user or the system has asked for the end."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
        """The first asks for an orderly end; a second Ctrl-C ends at once (the last checkpoint is intact)."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stoppable(stop: Stop) -> Iterator[Stop]:
    """Inside, both signals set `stop`; after it the handlers are the caller's again. In another thread than the main
    one, where Python allows no handlers, it can be asked by hand."""
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
