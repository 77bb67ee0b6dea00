"""Ctrl-C and SIGTERM as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether a stop was asked for. The second signal does what it always did.

    Outside the main thread, where Python allows no handlers, nothing is ever asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number, frame) -> None:
        asked.set()
        restore()

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        restore()


def leave_interrupt_to_parent(worker: int) -> None:
    """For data processes: Ctrl-C reaches them too, and one that dies of it would take the unsaved run along.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
