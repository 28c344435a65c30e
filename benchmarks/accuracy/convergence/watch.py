"""Clock and end of a run: CPU seconds and wall seconds of every epoch, and a stop between two steps."""

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.accuracy.convergence.place import read_lines
from benchmarks.report import say

_EPOCH = re.compile(r"epoch (\d+)/\d+\b")


class End:
    """End of a command: after some minutes, or at SIGTERM.

    Args:
        minutes: minutes from now on; None is without a limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self._last = None if minutes is None else time.monotonic() + 60 * minutes
        self.asked = False
        """Whether SIGTERM has come."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context in which SIGTERM is answered; the package leaves a signal alone that is answered already."""
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @property
    def has_come(self) -> bool:
        """Whether it is time to stop."""
        return self.asked or (self._last is not None and time.monotonic() >= self._last)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class Watch:
    """Reporter that writes the seconds of every epoch, and ends a run between two steps when it is time.

    Each line has the epoch that ended, or null where a process stopped within one, and the seconds since the line
    before or since the process began. What a process took that was killed is not known, and its steps are done again.

    Args:
        path: file of the lines.
        end: when to stop.
        label: name of the run, for people.
    """

    def __init__(self, path: Path, end: End, label: str) -> None:
        self._path, self._end, self._label = path, end, label
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def say(self, line: str) -> None:
        """Show the line, and note the epoch if it is about one that has ended."""
        found = _EPOCH.match(line)
        if found is not None:
            self.note(int(found[1]))
        say(f"{self._label}: {line}")

    def update(self, stage: str, done: int, total: int, details: str = "") -> None:
        """Stop if it is time.

        Raises:
            KeyboardInterrupt: it is; training saves the run and ends.
        """
        if self._end.has_come:
            raise KeyboardInterrupt

    def note(self, epoch: int | None) -> None:
        """Write the seconds since the last line."""
        cpu, wall = time.process_time(), time.monotonic()
        line = {"epoch": epoch, "cpu_seconds": cpu - self._cpu, "wall_seconds": wall - self._wall}
        self._cpu, self._wall = cpu, wall
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def seconds_until(path: Path, epochs: int) -> list[dict[str, float]]:
    """CPU and wall seconds from the beginning of a run to the end of each of its epochs."""
    lines: list[dict[str, Any]] = read_lines(path)
    ends: list[dict[str, float]] = []
    total = {"cpu_seconds": 0.0, "wall_seconds": 0.0}
    for line in lines:
        total = {name: total[name] + line[name] for name in total}
        # An epoch without a line, whose process was killed between saving and writing, ends with the next.
        if line["epoch"] is not None:
            ends += [dict(total)] * (line["epoch"] - len(ends))
    ends += [dict(total)] * (epochs - len(ends))
    return ends[:epochs]
