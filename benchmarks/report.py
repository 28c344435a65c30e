"""Results of benchmarks for people and for programs: medians with quantiles, a table, facts about the machine."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Measurement(NamedTuple):
    """Measurement: a check of the result, and the call to time."""

    check: Callable[[], list[float]]
    """Check that `run` computes the right result; returns figures that must be equal for all contenders."""
    run: Callable[[], object]
    """Call to time."""


class Spread(NamedTuple):
    """Spread of the times of several runs."""

    q20: float
    """20 % quantile, in seconds."""
    median: float
    """Median, in seconds."""
    q80: float
    """80 % quantile, in seconds."""
    runs: int
    """Number of runs."""


def spread(seconds: Sequence[float]) -> Spread:
    """Spread of these times; with one run, the median and both quantiles are its time."""
    if len(seconds) == 1:
        return Spread(seconds[0], seconds[0], seconds[0], 1)
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Spread(fifths[0], statistics.median(seconds), fifths[3], len(seconds))


def machine(device: str) -> dict[str, Any]:
    """Facts about the machine that the results depend on: CPU or GPU, threads, versions."""
    import torch

    facts: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "commit": revision(),
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def revision(checkout: Path = ROOT) -> str:
    """Short name of the commit, with "+changes" if files differ from it; "unknown" outside of git."""
    try:
        commit = _git(checkout, "rev-parse", "--short", "HEAD")
        return commit + ("+changes" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else "")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"


def _git(checkout: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def say(line: str) -> None:
    """Write a line for people to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def table(results: Mapping[str, Mapping[str, Spread]], baseline: str) -> str:
    """Table with a row for each measurement and contender; "speed" is the baseline's median divided by its own."""
    rows = []
    for name, by_contender in results.items():
        for contender, own in by_contender.items():
            base = by_contender.get(baseline)
            speed = f"{base.median / own.median:.2f} x" if base else ""
            between = f"{1000 * own.q20:.2f} .. {1000 * own.q80:.2f}"
            rows.append((name, contender, f"{1000 * own.median:.2f}", between, speed))
    return aligned(("measurement", "contender", "median ms", "20 % .. 80 %", "speed"), rows)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text of a table: columns as wide as their widest cell, and a line under the head."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, ["-" * width for width in widths], *rows)
    )


def json_line(results: Mapping[str, Mapping[str, Spread]], baseline: str, facts: Mapping[str, Any]) -> str:
    """Line of JSON with all results, for benchmarks/results."""
    measured = {
        name: {contender: own._asdict() for contender, own in by_contender.items()}
        for name, by_contender in results.items()
    }
    return json.dumps({"baseline": baseline, **facts, "seconds": measured})
