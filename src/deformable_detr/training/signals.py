"""Ctrl-C and SIGTERM between two steps, never inside one."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SAME_ONE_S = 5.0
"""A scheduler may send SIGTERM to a process and to what started it, which passes it on: that is one, not two."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as clusters send it before they take a machine away."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block the first SIGTERM raises `Terminated`; one that comes later ends the process at once.

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
    _expect_another()
    raise Terminated


def _expect_another() -> None:
    first = time.monotonic()

    def end(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - first > _SAME_ONE_S:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the block finish when Ctrl-C or SIGTERM arrives in it, and raise KeyboardInterrupt or `Terminated` after.

    Does nothing outside the main thread, with Ctrl-C where the process ignores or handles it in a way of its own, and
    with SIGTERM outside of `terminable`.
    """
    with held() as arrived:
        yield
    answer(signal.SIGINT in arrived, signal.SIGTERM in arrived)


@contextmanager
def held() -> Iterator[list[int]]:
    """The same, but nothing is raised: the block asks what has arrived and may `answer`. `uninterrupted` nests in it.

    Yields:
        The signals that have arrived so far.
    """
    arrived: list[int] = []
    if not _in_main_thread():
        yield arrived
        return
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    ours = {number: handler for number, handler in ours.items() if signal.getsignal(number) is handler}

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if number == signal.SIGTERM:
            _expect_another()

    for number in ours:
        signal.signal(number, remember)
    try:
        yield arrived
    finally:
        for number, handler in ours.items():
            if number not in arrived or number == signal.SIGINT:
                signal.signal(number, handler)


def answer(interrupted: bool, terminated: bool) -> None:
    """Raise what stands for the signals that have arrived, if any has."""
    if terminated:
        raise Terminated
    if interrupted:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
