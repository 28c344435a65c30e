"""Contenders take turns in one process, so that a machine that slows down slows all of them."""

import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.report import Spread, spread

Call = Callable[[], object]

# A timing shorter than this says more about the pause before it; short calls are repeated within one timing.
SHORTEST_TIMING_S = 0.05
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 60
_WARM_UP_RUNS = 2
_CALLS_IN_GRAPH = 10


class Wall:
    """Seconds by the clock of the process; the call is over when it returns."""

    name = "wall"

    def __init__(self, call: Call) -> None:
        self.call = call

    def time(self, repeats: int) -> float:
        """Seconds for one call, as the mean of so many in a row."""
        started = time.perf_counter()
        for _ in range(repeats):
            self.call()
        return (time.perf_counter() - started) / repeats


class Queue:
    """Seconds by the GPU's events around many launches that nothing waits for: kernels, or launches if they are slower.

    To wait after every launch would time the waiting.
    """

    name = "queue"

    def __init__(self, call: Call) -> None:
        self.call = call
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, repeats: int) -> float:
        """Seconds for one call, as the mean of so many in a row."""
        torch.cuda.synchronize()
        self._start.record()
        for _ in range(repeats):
            self.call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000 / repeats


class Graph:
    """Seconds of the kernels alone: calls are recorded once as a CUDA graph, which is replayed.

    Raises:
        RuntimeError: the call cannot be recorded, because it waits for the device.
    """

    name = "graph"

    def __init__(self, call: Call) -> None:
        # The backward pass runs on the stream its forward pass ran on: the warm-up makes both on this one.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            for _ in range(_CALLS_IN_GRAPH):
                call()
        self._replay = Queue(self.graph.replay)

    def time(self, repeats: int) -> float:
        """Seconds for one call, as the mean of that many replays."""
        return self._replay.time(repeats) / _CALLS_IN_GRAPH


Clock = Wall | Queue | Graph


def interleaved(clocks: Mapping[str, Clock], seconds: float) -> dict[str, Spread]:
    """Spread of each, from as many rounds as fit in `seconds` for each of them, 5 at least and 60 at most."""
    once = {label: min(clock.time(1) for _ in range(_WARM_UP_RUNS)) for label, clock in clocks.items()}
    repeats = {label: max(1, round(SHORTEST_TIMING_S / one)) for label, one in once.items()}
    one_round = sum(one * repeats[label] for label, one in once.items())
    rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, round(seconds * len(clocks) / one_round)))
    times: dict[str, list[float]] = {label: [] for label in clocks}
    for number in range(rounds):
        order = list(clocks.items())
        for label, clock in order if number % 2 == 0 else reversed(order):
            times[label].append(clock.time(repeats[label]))
    return {label: spread(found) for label, found in times.items()}
