"""Ctrl-C and SIGTERM as a request that the loop checks between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Gives a function that returns whether a stop was requested. A second signal has its usual effect.

    Outside the main thread, where Python allows no handlers, it always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number, frame) -> None:
        requested.set()
        restore()

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield requested.is_set
    finally:
        restore()


def leave_interrupt_to_parent(worker: int) -> None:
    """For data processes: Ctrl-C reaches them too, and if one died of it, the unsaved run would end as well.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
