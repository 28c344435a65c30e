"""Process that calls the operator once and reports its peak memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import OPERATOR_CASES
from benchmarks.memory import peak_extra
from benchmarks.ops.contenders import Calls
from benchmarks.ops.problem import Form, Problem, make
from benchmarks.report import ROOT

_WARM_UP_CASE = "tiny_decoder"


def call(contender: str, form: Form, direction: str, problem: Problem) -> Callable[[], object]:
    """One forward pass without a graph, or one forward pass and the backward pass that belongs to it."""
    calls = Calls(contender, form, problem)
    if direction == "forward":
        return calls.forward
    return lambda: torch.autograd.grad(calls.with_graph(), calls.wanted, calls.towards)


def in_a_fresh_process(point: list[str], threads: int) -> tuple[int, str]:
    """Bytes, and how they were found.

    Args:
        point: case, locations, batch, type, form, direction and contender.
        threads: of torch; 0 leaves its own choice.
    """
    command = [sys.executable, "-m", "benchmarks.ops.peak_memory", *point, str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    size, how = json.loads(done.stdout.splitlines()[-1])
    return size, how


def main() -> None:
    """Answer with one line of JSON."""
    case, locations, batch, dtype, form, direction, contender, threads = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))

    def prepared(name: str, images: int) -> Callable[[], object]:
        settings: Any = (locations, images, getattr(torch, dtype), "cpu")
        own_form: Any = form
        return call(contender, own_form, direction, make(OPERATOR_CASES[name], *settings))

    # The first call of all loads code and starts threads.
    prepared(_WARM_UP_CASE, 1)()
    sys.stdout.write(json.dumps(peak_extra(prepared(case, int(batch)), "cpu")) + "\n")


if __name__ == "__main__":
    main()
