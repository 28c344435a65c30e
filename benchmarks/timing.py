"""Timing of contenders in turns in one process, so that a machine that becomes slower affects all of them."""

import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.report import Spread, spread

Call = Callable[[], object]

# A shorter timing depends too much on the pause before it, so short calls are repeated within one timing.
SHORTEST_TIMING_S = 0.05
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 60
_WARM_UP_RUNS = 2
_CALLS_IN_GRAPH = 10


class Wall:
    """Clock for calls that are complete when they return: wall time."""

    name = "wall"

    def __init__(self, call: Call) -> None:
        self.call = call

    def time(self, repeats: int) -> float:
        """Seconds for one call, as the mean of `repeats` in a row."""
        started = time.perf_counter()
        for _ in range(repeats):
            self.call()
        return (time.perf_counter() - started) / repeats


class Queue:
    """Clock for calls on a GPU: CUDA events before and after many calls in a row.

    Nothing waits between the calls, because that would time the waiting. The result is the time of the kernels, or of
    their launches if these take longer.
    """

    name = "queue"

    def __init__(self, call: Call) -> None:
        self.call = call
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, repeats: int) -> float:
        """Seconds for one call, as the mean of `repeats` in a row."""
        torch.cuda.synchronize()
        self._start.record()
        for _ in range(repeats):
            self.call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000 / repeats


class Graph:
    """Clock for the kernels of a call alone: calls are recorded as a CUDA graph, and the graph is replayed.

    Raises:
        RuntimeError: the call cannot be recorded, because it waits for the device.
    """

    name = "graph"

    def __init__(self, call: Call) -> None:
        # A backward pass runs on the stream of its forward pass, so the warm-up runs on the stream of the recording.
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
        """Seconds for one call, as the mean over `repeats` replays."""
        return self._replay.time(repeats) / _CALLS_IN_GRAPH


Clock = Wall | Queue | Graph


def interleaved(clocks: Mapping[str, Clock], seconds: float) -> dict[str, Spread]:
    """Spread of the times of each contender, timed in turns.

    Args:
        clocks: clocks of the contenders, by label.
        seconds: time for each contender; it decides the number of rounds, at least 5 and at most 60.
    """
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
