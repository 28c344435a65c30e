"""Command `python -m benchmarks`: compare backends, or, with --ref, this code with that of a git ref.

Contenders take turns, so that a machine that becomes slower affects all of them. The results of each are checked before
it is timed. A table is written to standard error, and at the end one line of JSON to standard output.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.report import ROOT, Spread, json_line, say, spread, table

_SAME = 1e-3


class Failure(Exception):
    """Error of a worker that could not do what it was asked, with the worker's own message."""


class Process:
    """Worker process that measures the code in `source`."""

    def __init__(self, source: Path, device: str, threads: int) -> None:
        # The benchmarks are always this checkout's; only the code they measure differs.
        path = os.pathsep.join([str(source), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", str(source), device, str(threads)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, **request: Any) -> Any:
        """Ask the worker, and return its answer.

        Raises:
            Failure: the worker cannot answer, or has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise Failure("the worker has died; see above")
        content = json.loads(reply)
        if "error" in content:
            raise Failure(content["error"])
        return content["answer"]


class Contender(NamedTuple):
    """Contender of a measurement."""

    label: str
    """Label in the table."""
    process: Process
    """Worker that runs it."""
    name: str
    """Name by which the worker knows it."""


def measure(name: str, contenders: list[Contender], rounds: int) -> dict[str, Spread]:
    """Measure the contenders in turns.

    A contender that cannot run is named on standard error and left out.

    Returns:
        Spread of the times, by the label of the contender.

    Raises:
        SystemExit: contenders give different results.
    """
    # Check every contender against the first one that can run.
    able: list[Contender] = []
    expected: list[float] | None = None
    for contender in contenders:
        try:
            figures = contender.process.ask(do="prepare", name=name, contender=contender.name)
        except Failure as failure:
            say(f"{name}: {contender.label} is left out: {failure}")
            continue
        if expected is None:
            expected = figures
        elif not _equal(figures, expected):
            say(f"{name}: {contender.label} gives {figures}, {able[0].label} gives {expected}")
            raise SystemExit(1)
        able.append(contender)
    # Time them in turns, every second round in the opposite order.
    seconds: dict[str, list[float]] = {contender.label: [] for contender in able}
    for number in range(rounds):
        for contender in able if number % 2 == 0 else reversed(able):
            seconds[contender.label].append(contender.process.ask(do="run", name=name, contender=contender.name))
    for contender in able:
        contender.process.ask(do="forget", name=name, contender=contender.name)
    return {label: spread(times) for label, times in seconds.items()}


def _equal(figures: list[float], expected: list[float]) -> bool:
    return len(figures) == len(expected) and all(map(_close, figures, expected))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=1e-6)


@contextlib.contextmanager
def source_of(ref: str) -> Iterator[tuple[Path, str]]:
    """Path of the `src` folder of a git ref, in a temporary worktree, and the short name of the commit.

    Raises:
        SystemExit: there is no such ref.
    """
    try:
        commit = _git("rev-parse", "--short", f"{ref}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"no git ref {ref!r} here: {error.stderr.strip()}") from error
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        place = Path(folder).resolve() / "tree"
        _git("worktree", "add", "--detach", "--quiet", str(place), commit)
        try:
            yield place / "src", commit
        finally:
            _git("worktree", "remove", "--force", str(place))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measure, print the table, then the line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names of measurements; all of them if left out")
    parser.add_argument("--ref", help="a git ref to compare with, e.g. main")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each contender")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own choice")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    with contextlib.ExitStack() as stack:
        now = stack.enter_context(Process(ROOT / "src", options.device, options.threads))
        names = [
            name
            for name in now.ask(do="names", all=bool(options.names))
            if not options.names or any(part in name for part in options.names)
        ]
        if not names:
            parser.error(f"no measurement is called {' or '.join(options.names)}")
        facts = {**now.ask(do="machine"), "rounds": options.rounds}
        baseline = "baseline"
        then = None
        if options.ref:
            source, commit = stack.enter_context(source_of(options.ref))
            then = stack.enter_context(Process(source, options.device, options.threads))
            baseline, facts["ref"] = options.ref, commit
        say(", ".join(f"{key} {value}" for key, value in facts.items()))
        results = {}
        for name in names:
            contenders = (
                [Contender(options.ref, then, "auto"), Contender("now", now, "auto")]
                if then
                else [Contender(label, now, label) for label in now.ask(do="contenders", name=name)]
            )
            say(f"{name} ...")
            results[name] = measure(name, contenders, options.rounds)
    say(table(results, baseline))
    sys.stdout.write(json_line(results, baseline, facts) + "\n")


if __name__ == "__main__":
    main()
