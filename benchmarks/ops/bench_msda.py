"""The operator: every backend against one `grid_sample` for each level, forward and backward.

`python -m benchmarks.ops.bench_msda`, or a part of it by `python -m benchmarks`. Each contender is checked against the
definition in float64, then all of one measurement take turns. The table goes to standard error; one line of JSON goes
to standard output, last.

A backward pass is timed alone, through a graph that is kept. The tensors are the same in every run, so what fits into a
cache is found there, as values are after their projection. "memory" is the most that one call holds beyond its inputs,
in a process of its own; for a backward pass it includes the forward pass that belongs to it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch

from benchmarks.cases import ONLY_WHEN_NAMED, OPERATOR_CASES
from benchmarks.memory import peak_extra
from benchmarks.ops import peak_memory
from benchmarks.ops.check import Expected, check
from benchmarks.ops.contenders import BASELINE, COMPILED, Calls, able
from benchmarks.ops.problem import FORMS, LOCATIONS, Form, Locations, Problem, make
from benchmarks.ops.roofline import Traffic, copy_bandwidth, traffic
from benchmarks.report import Measurement, Spread, aligned, machine, say
from benchmarks.timing import Clock, Graph, Queue, Wall, interleaved
from deformable_detr.core.errors import DeformableDetrError

DIRECTIONS = ("forward", "backward")
_DTYPES = ("float32", "bfloat16", "float16")
# What a contender may say that cannot do it here; all but a wrong result, which ends the run.
_CANNOT = (DeformableDetrError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Point(NamedTuple):
    """One measurement: everything that makes its figures what they are, but the contender."""

    case: str
    locations: Locations
    batch: int
    dtype: str
    form: Form
    direction: str

    def __str__(self) -> str:
        return f"{self.case}/{self.locations}/b{self.batch}/{self.dtype}/{self.form}/{self.direction}"

    def problem(self, device: str) -> Problem:
        """Its tensors."""
        return make(OPERATOR_CASES[self.case], self.locations, self.batch, getattr(torch, self.dtype), device)


class Row(NamedTuple):
    """One contender's figures; `clock` says what was timed."""

    point: Point
    contender: str
    clock: str
    seconds: Spread
    memory: int | None
    memory_by: str | None


# ---- for `python -m benchmarks`, which compares versions of the code


def names() -> list[str]:
    """Every measurement, as msda/CASE/FORM/DIRECTION."""
    return [f"msda/{case}/{form}/{direction}" for case in OPERATOR_CASES for form in FORMS for direction in DIRECTIONS]


def only_when_named(name: str) -> bool:
    """Whether the measurement is left out of a run that names none."""
    return name.split("/")[1] in ONLY_WHEN_NAMED


def contenders(name: str, device: str) -> list[str]:
    """The baseline and the backends that can run the case."""
    return able(_point(name).problem(device), compiled=False, named=[])


def prepare(name: str, contender: str, device: str) -> Measurement:
    """One contender on one case; "auto" is the backend the library chooses."""
    point = _point(name)
    problem = point.problem(device)
    calls = Calls(contender, point.form, problem)
    run = calls.forward if point.direction == "forward" else calls.backward
    return Measurement(lambda: check(calls, Expected(problem, point.form), problem), run)


def _point(name: str) -> Point:
    _, case, form, direction = name.split("/")
    return Point(case, "realistic", 1, "float32", cast(Form, form), direction)


# ---- the full benchmark


def measure(point: Point, options: argparse.Namespace) -> Iterator[Row]:
    """Figures of all contenders that can run and are right; the others are named on standard error and left out.

    Raises:
        SystemExit: a contender is wrong.
    """
    problem = point.problem(options.device)
    expected = Expected(problem, point.form)
    clocks: dict[tuple[str, str], Clock] = {}
    for contender in able(problem, compiled=options.compile, named=options.contenders):
        try:
            check(Calls(contender, point.form, problem), expected, problem)
        except AssertionError as error:
            raise SystemExit(f"{point}: {contender} is wrong: {error}") from error
        except _CANNOT as error:
            say(f"{point}: {contender} is left out: {_first_line(error)}")
            continue
        clocks |= {(contender, clock.name): clock for clock in _clocks(contender, point, problem)}
    spreads = interleaved(
        {f"{contender} {name}": clock for (contender, name), clock in clocks.items()}, options.seconds
    )
    say(f"{point}: " + ", ".join(f"{label} {1000 * one.median:.3f} ms" for label, one in spreads.items()))
    for contender, name in clocks:
        memory, how = _memory(contender, point, problem, options)
        yield Row(point, contender, name, spreads[f"{contender} {name}"], memory, how)


def _clocks(contender: str, point: Point, problem: Problem) -> Iterator[Clock]:
    def call() -> Any:
        # Each clock has calls of its own: a backward pass runs on the stream of its forward pass.
        calls = Calls(contender, point.form, problem)
        return calls.forward if point.direction == "forward" else calls.backward

    if not problem.value.is_cuda:
        yield Wall(call())
        return
    try:
        yield Graph(call())
    except _CANNOT as error:
        say(f"{point}: {contender} cannot be recorded as a graph: {_first_line(error)}")
    yield Queue(call())


def _memory(
    contender: str, point: Point, problem: Problem, options: argparse.Namespace
) -> tuple[int | None, str | None]:
    if not options.memory:
        return None, None
    if problem.value.is_cuda:
        return peak_extra(peak_memory.call(contender, point.form, point.direction, problem), options.device)
    return peak_memory.in_a_fresh_process([*map(str, point), contender], options.threads)


def report(rows: list[Row], traffics: dict[Point, Traffic], bandwidth: float) -> str:
    """The table, with the floor that copying the minimal bytes sets."""
    cells = []
    for row in rows:
        base = _baseline(row, rows)
        moved = traffics[row.point]
        median = row.seconds.median
        cells.append(
            (
                str(row.point),
                row.contender,
                row.clock,
                f"{1000 * median:.3f}",
                f"{1000 * row.seconds.q20:.3f} .. {1000 * row.seconds.q80:.3f}",
                f"{base.seconds.median / median:.2f} x" if base else "",
                f"{median / moved.samples * 1e9:.2f}",
                f"{1000 * moved.minimal_bytes / bandwidth:.3f}",
                f"{100 * moved.minimal_bytes / bandwidth / median:.1f} %",
                f"{moved.gathered_bytes / median / 1e9:.1f}",
                "" if row.memory is None else f"{row.memory / 2**20:.1f}",
            )
        )
    head = ("measurement", "contender", "clock", "median ms", "20 % .. 80 %", "speed", "ns/sample", "floor ms")
    return aligned((*head, "of floor", "gathered GB/s", "memory MiB"), cells)


def _baseline(row: Row, rows: list[Row]) -> Row | None:
    same = [one for one in rows if one.contender == BASELINE and one.point == row.point and one.clock == row.clock]
    return same[0] if same else None


def as_json(rows: list[Row], traffics: dict[Point, Traffic], facts: dict[str, Any]) -> str:
    """Everything on one line."""
    results = []
    for row in rows:
        base = _baseline(row, rows)
        figures = row._asdict() | row.point._asdict() | traffics[row.point]._asdict()
        del figures["point"]
        figures["seconds"] = row.seconds._asdict()
        figures["speed"] = base.seconds.median / row.seconds.median if base else None
        results.append(figures)
    return json.dumps({"benchmark": "msda", **facts, "results": results})


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, then the line of JSON."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    bandwidth = copy_bandwidth(options.device)
    facts = {**machine(options.device), "copy_bytes_per_second": bandwidth}
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    rows: list[Row] = []
    traffics: dict[Point, Traffic] = {}
    for point in points(options):
        rows += measure(point, options)
        traffics[point] = traffic(point.problem(options.device), point.form, point.direction)
    say(report(rows, traffics, bandwidth))
    sys.stdout.write(as_json(rows, traffics, facts) + "\n")


def points(options: argparse.Namespace) -> list[Point]:
    """Every combination that was asked for."""
    return [
        Point(case, locations, batch, dtype, form, direction)
        for case in options.cases
        for locations in options.locations
        for batch in options.batches
        for dtype in options.dtypes
        for form in options.forms
        for direction in options.directions
    ]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    usual = [case for case in OPERATOR_CASES if case not in ONLY_WHEN_NAMED]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops.bench_msda", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(OPERATOR_CASES), default=usual, metavar="CASE")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=list(FORMS), help="attend makes the locations, too"
    )
    parser.add_argument("--dtypes", nargs="+", choices=_DTYPES, help="of the values; on the CPU not float16 by default")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], metavar="N")
    parser.add_argument("--locations", nargs="+", choices=LOCATIONS, default=list(LOCATIONS))
    parser.add_argument(
        "--contenders", nargs="+", default=[], metavar="NAME", help="besides the baseline; all if left out"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own choice")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each contender, roughly")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help=f"measure {COMPILED}, too; on by default on a GPU, where it takes seconds and not minutes",
    )
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory, too")
    options = parser.parse_args(arguments)
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU that torch can use")
    if min(options.batches) < 1:
        parser.error("--batches must be at least 1")
    if options.compile is None:
        options.compile = COMPILED in options.contenders or (cuda and not options.contenders)
    options.dtypes = options.dtypes or list(_DTYPES if cuda else _DTYPES[:2])
    return options


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main()
