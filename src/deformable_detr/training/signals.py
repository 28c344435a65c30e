"""Handling of Ctrl-C, SIGTERM and SIGHUP: they interrupt a run between two steps, never inside one."""

import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_SAME_ONE_S = 5.0
"""Seconds within which a second SIGTERM or SIGHUP is ignored. A scheduler may send one to a process and one to its
parent, which passes it on, and a terminal that closes may send several: the process receives two, but one was meant."""

# SIGHUP is sent when the terminal closes, or the connection to the machine breaks; Windows has none.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTING: tuple[int, ...] = (*_ENDING, signal.SIGINT)
"""Signals that interrupt a run, in the order in which they are answered if several have arrived."""


class Terminated(KeyboardInterrupt):
    """Interrupt by SIGTERM, which clusters send before they take a machine away, or by SIGHUP."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number
        """Number of the signal."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM or SIGHUP within the block; another, after 5 seconds, ends the process.

    It does nothing outside the main thread, nor for a signal that the process already ignores or handles. So a run that
    was started with nohup goes on when the terminal closes.
    """
    ours = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL] if _in_main_thread() else []
    for number in ours:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    _expect_another([one for one in _ENDING if signal.getsignal(one) is _terminate])
    raise Terminated(number)


def _expect_another(ours: Sequence[int]) -> None:
    first = time.monotonic()

    def end(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - first > _SAME_ONE_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in ours:
        signal.signal(number, end)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP until the end of the block, and raise KeyboardInterrupt or `Terminated` then.

    It does nothing outside the main thread. Ctrl-C is delayed only if the process does not ignore or handle it in its
    own way; the others are delayed only inside `terminable`.
    """
    with held() as arrived:
        yield
    answer(arrived)


@contextmanager
def held() -> Iterator[list[int]]:
    """Hold back the same signals in the block without raising anything; the block may `answer` them itself.

    It works under the same conditions as `uninterrupted`, which may be used inside it.

    Yields:
        List of the signals that have arrived so far; it grows when another one arrives.
    """
    arrived: list[int] = []
    if not _in_main_thread():
        yield arrived
        return
    handlers = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(_ENDING, _terminate)
    ours = {number: handler for number, handler in handlers.items() if signal.getsignal(number) is handler}
    ending = [number for number in ours if number in _ENDING]

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if number in ending:
            _expect_another(ending)

    for number in ours:
        signal.signal(number, remember)
    try:
        yield arrived
    finally:
        # Once one of them has arrived, another is expected, see above.
        expects_another = any(number in ending for number in arrived)
        for number, handler in ours.items():
            if number not in ending or not expects_another:
                signal.signal(number, handler)


def answer(arrived: Collection[int]) -> None:
    """Raise `Terminated` or KeyboardInterrupt for signals that have arrived, if any, SIGTERM first."""
    for number in INTERRUPTING:
        if number in arrived:
            raise Terminated(number) if number in _ENDING else KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
