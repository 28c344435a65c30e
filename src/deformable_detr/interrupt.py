"""Ctrl-C and SIGTERM between two steps, never inside one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as clusters send it before they take a machine away."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block the first SIGTERM raises `Terminated`; a second one ends the process at once.

    Does nothing outside the main thread, and where the process ignores or handles SIGTERM in a way of its own.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the block finish when Ctrl-C or SIGTERM arrives in it, and raise KeyboardInterrupt or `Terminated` after.

    Does nothing outside the main thread, with Ctrl-C where the process ignores or handles it in a way of its own, and
    with SIGTERM outside of `terminable`.
    """
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    if not _in_main_thread():
        yield
        return
    ours = {number: handler for number, handler in ours.items() if signal.getsignal(number) is handler}
    arrived: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in ours:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in ours.items():
            if number not in arrived or number == signal.SIGINT:
                signal.signal(number, handler)
    if signal.SIGTERM in arrived:
        raise Terminated
    if arrived:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
