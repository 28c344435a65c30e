"""Worker process that measures one version of the code: it reads requests and writes answers, each a line of JSON."""

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import deformable_detr
from benchmarks.report import Measurement, machine
from deformable_detr.core.errors import DeformableDetrError

_MODULES = {"msda": "benchmarks.ops.bench_msda", "training_step": "benchmarks.model.bench_training_step"}
_WARM_UP_RUNS = 2
# Shorter calls are repeated within one timing, because a single one depends too much on the pause before it.
_SHORTEST_TIMING_S = 0.1
# Errors of an older version of the code that lacks something; the parent reports them and continues with the rest.
_CANNOT = (
    DeformableDetrError,
    ImportError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
)


class Worker:
    """Worker that answers requests: names, contenders, prepare (check and warm up), run (one timed run), machine."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.prepared: dict[tuple[str, str], tuple[Measurement, int]] = {}

    def answer(self, request: dict[str, Any]) -> Any:
        """Answer to a request, as JSON can hold it."""
        what = request["do"]
        if what == "machine":
            return machine(self.device)
        if what == "names":
            modules = [import_module(path) for path in _MODULES.values()]
            return [name for module in modules for name in module.names() if request["all"] or _usual(module, name)]
        name = request["name"]
        module = _module_of(name)
        if what == "contenders":
            return module.contenders(name, self.device)
        contender = request["contender"]
        if what == "prepare":
            measurement = module.prepare(name, contender, self.device)
            figures = measurement.check()
            for _ in range(_WARM_UP_RUNS):
                once = self._time(measurement, 1)
            repeats = max(1, round(_SHORTEST_TIMING_S / once))
            self.prepared[name, contender] = measurement, repeats
            return figures
        if what == "forget":
            self.prepared.pop((name, contender), None)
            return None
        assert what == "run", what
        return self._time(*self.prepared[name, contender])

    def _time(self, measurement: Measurement, repeats: int) -> float:
        """Seconds for one run, as the mean of `repeats` in a row."""
        self._wait()
        started = time.perf_counter()
        for _ in range(repeats):
            measurement.run()
        self._wait()
        return (time.perf_counter() - started) / repeats

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)


def _usual(module: ModuleType, name: str) -> bool:
    return not module.only_when_named(name)


def _module_of(name: str) -> ModuleType:
    # Only the module that is needed is imported: an older version of the code may lack something that another needs.
    return import_module(_MODULES[name.split("/")[0]])


def main() -> None:
    """Answer requests until the input ends. Arguments: folder of the source to measure, device, number of threads."""
    source, device, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if threads:
        torch.set_num_threads(threads)
    worker = Worker(device)
    answers = sys.stdout
    sys.stdout = sys.stderr  # only answers may be written to standard output
    for line in sys.stdin:
        try:
            assert Path(deformable_detr.__file__).is_relative_to(source), f"measuring {deformable_detr.__file__}"
            reply = {"answer": worker.answer(json.loads(line))}
        except _CANNOT as error:
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
