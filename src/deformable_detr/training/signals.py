"""Handling of Ctrl-C and SIGTERM: they interrupt a run between two steps, never inside one."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SAME_ONE_S = 5.0
"""Seconds within which a second SIGTERM is ignored. A scheduler may send one to a process and one to its parent, which
passes it on: the process receives two, but one was meant."""


class Terminated(KeyboardInterrupt):
    """Interrupt by SIGTERM, which clusters send before they take a machine away."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM within the block; a second one, after 5 seconds, ends the process.

    It does nothing outside the main thread, or if the process already ignores or handles SIGTERM.
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
    """Delay Ctrl-C and SIGTERM until the end of the block, and raise KeyboardInterrupt or `Terminated` then.

    It does nothing outside the main thread. Ctrl-C is delayed only if the process does not ignore or handle it in its
    own way; SIGTERM is delayed only inside `terminable`.
    """
    with held() as arrived:
        yield
    answer(signal.SIGINT in arrived, signal.SIGTERM in arrived)


@contextmanager
def held() -> Iterator[list[int]]:
    """Hold back Ctrl-C and SIGTERM in the block without raising anything; the block may `answer` them itself.

    It works under the same conditions as `uninterrupted`, which may be used inside it.

    Yields:
        List of the signals that have arrived so far; it grows when another one arrives.
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
    """Raise `Terminated` or KeyboardInterrupt for signals that have arrived, SIGTERM first."""
    if terminated:
        raise Terminated
    if interrupted:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
