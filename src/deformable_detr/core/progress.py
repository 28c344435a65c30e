"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, or nothing."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from deformable_detr.core.short_text import LONGEST_LINE, printable

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.progress import Progress, TaskID

_PLAIN_SECONDS = 30.0
SILENT_S = 2.0
"""Seconds before work that may be short is shown."""


@runtime_checkable
class Reporter(Protocol):
    """Receiver of the progress that `train` and `evaluate` report."""

    def say(self, line: str) -> None:
        """Show a line that stays."""
        ...

    def update(self, stage: str, done: int, total: int, details: str = "") -> None:
        """Show that a stage has done so many of its steps; the first call with another stage ends the one before."""
        ...


class Silence:
    """Reporter that shows nothing; the default in Python."""

    def say(self, line: str) -> None:
        """Ignore the line."""

    def update(self, stage: str, done: int, total: int, details: str = "") -> None:
        """Ignore the progress."""


class TerminalReporter:
    """Reporter on standard error: a bar if that is a terminal, else a line every half minute. Use it in a `with`.

    A terminal that is closed takes nothing more, and the work goes on: it may be about to be saved.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self._console = console
        self._last_line = time.monotonic()
        self._bar: _Bar | None = None

    def __enter__(self) -> "TerminalReporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()

    def say(self, line: str) -> None:
        """Show a line above the bar, with escapes for what cannot be printed."""
        line = printable(line, LONGEST_LINE)
        with suppress(OSError):
            console = self._opened()
            if self._bar is not None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                self._plain(console, line)

    def update(self, stage: str, done: int, total: int, details: str = "") -> None:
        """Move the bar, or print a line if the last one is old enough."""
        details = printable(details, LONGEST_LINE)
        with suppress(OSError):
            console = self._opened()
            if self._bar is not None:
                self._bar.update(stage, done, total, details)
            elif time.monotonic() - self._last_line >= _PLAIN_SECONDS:
                self._plain(console, f"{stage} {done}/{total} {details}".rstrip())

    def _opened(self) -> "Console":
        """Console, with its bar if it is a terminal: from the first word on, so that a wrong path needs no Rich."""
        from rich.console import Console

        if self._console is None:
            self._console = Console(stderr=True)
        if self._bar is None and self._console.is_terminal:
            self._bar = _Bar(self._console)
        return self._console

    def _plain(self, console: "Console", line: str) -> None:
        self._last_line = time.monotonic()
        # Past the console, which would wrap the line to a width that nobody chose.
        console.file.write(line + "\n")
        console.file.flush()


class _Bar:
    """Bar at the foot of a terminal with the details below it; it begins at once."""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._stage, self._details = "", ""
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            console=console,
            expand=True,
        )
        self._live = Live(get_renderable=self._picture, console=console, transient=True, refresh_per_second=4)
        self._live.start()

    def close(self) -> None:
        """Take it off the terminal."""
        self._live.stop()

    def update(self, stage: str, done: int, total: int, details: str) -> None:
        """Move the bar; another stage begins another one."""
        if stage != self._stage or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total)
        self._bar.update(self._task, completed=done, total=total)
        self._details = details

    def _picture(self) -> "Group":
        """Bar with the details below it: beside it they would not fit into 80 columns."""
        from rich.console import Group
        from rich.text import Text

        return Group(self._bar, Text(self._details)) if self._task is not None else Group()


@contextmanager
def shown_wait(doing: str) -> Iterator[None]:
    """Block of which nobody knows how long it takes: after two seconds standard error shows what is being done.

    A terminal shows it with the time so far until the block ends, anything else has a line every half minute.

    Args:
        doing: words for it, such as "reading the annotations".
    """
    over = threading.Event()
    thread = threading.Thread(target=_show_wait, args=(doing, over), name=doing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show_wait(doing: str, over: threading.Event) -> None:
    began = time.monotonic()
    if over.wait(SILENT_S):
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        while not over.wait(_PLAIN_SECONDS):
            console.file.write(f"{doing} {duration(time.monotonic() - began)}\n")
            console.file.flush()
        return
    with console.status(Text(doing)) as status:
        while not over.wait(1.0):
            status.update(Text(f"{doing} {duration(time.monotonic() - began)}"))


@contextmanager
def shown_progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Context with a function to report progress, which a bar shows after two seconds: images done, and their total."""
    began = time.monotonic()
    bar: Progress | None = None

    def on_progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and time.monotonic() - began > SILENT_S:
            bar = _bar_of(doing)
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield on_progress
    finally:
        if bar is not None:
            bar.stop()


def _bar_of(doing: str) -> "Progress":
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task(doing)
    bar.start()
    return bar


def duration(seconds: float) -> str:
    """Duration as hours, minutes and seconds: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float) -> str:
    """Metric in percent, as 43.8; "-" for -1, which says that the data has no such object."""
    return "-" if share < 0 else f"{100 * share:.1f}"


def memory_in_use() -> int:
    """Bytes of main memory that this process holds now, or held at its peak where the system tells only that."""
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
