"""Detection in image files by several processes, one for each core, with the results in the order of the images.

Many threads share the work of one image, and wait for each other; processes with one thread each do not. They cost a
start of some seconds and memory, so whether they pay is measured on the first images.
"""

import multiprocessing
import pickle
import signal
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from deformable_detr.core.errors import ConfigError, first_line
from deformable_detr.core.memory import free_memory
from deformable_detr.core.progress import Reporter, memory_in_use
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.image_results import ImageResult, PredictionSettings, results_here

NumProcesses = int | Literal["auto"]
"""Number of processes that detect, 1..256; "auto" measures whether one for each core is faster."""
MOST_PROCESSES = 256
"""Largest number of processes."""

# Seconds until a process has imported everything and has its network; more on a slow disk.
_START_S = 12.0
_TRIED = 3
_LEAST_IMAGES = 4 * _TRIED
_LEAST_GAIN = 1.1
# Several processes share caches and memory: two on two cores do less than twice as much.
_EFFICIENCY = 0.9
_AHEAD = 3

_detector: Detector | None = None


def results_of(
    detector: Detector,
    paths: Sequence[Path],
    settings: PredictionSettings,
    processes: NumProcesses,
    reporter: Reporter,
) -> Iterator[tuple[ImageResult, Image.Image | None]]:
    """Results of image files, with the images where they are at hand; files that cannot be read come last.

    Args:
        detector: the detector; several processes are used only on a CPU.
        paths: image files.
        settings: how to detect.
        processes: number of processes, or "auto".
        reporter: is told what has been chosen, and why.

    Raises:
        ConfigError: the number of processes is out of range, there are several on another device than the CPU, or the
            detector cannot be copied to them.
        DataError: a file cannot be read, and the settings do not say that such files are skipped.
    """
    check_processes(processes, detector.device)
    pickled = b"" if processes in (1, "auto") else _pickled(detector)
    bad: list[ImageResult] = []
    tried = 0
    if processes == "auto":
        cores = torch.get_num_threads()
        if detector.device.type != "cpu" or cores < 2 or len(paths) < _LEAST_IMAGES * settings.batch_size:
            processes = 1
        else:
            trial = _Trial(detector, paths, settings)
            for result, image in trial:
                if result.error is None:
                    yield result, image
                else:
                    bad.append(result)
            tried = trial.num_tried
            processes = trial.best_number(cores, len(paths) - tried, reporter)
            try:
                pickled = b"" if processes == 1 else _pickled(detector)
            except ConfigError as error:
                reporter.say(f"a single process after all: {error}")
                processes = 1
    rest = paths[tried:]
    found = (
        results_here(detector, rest, settings)
        if processes == 1
        else _by_many(detector, pickled, rest, settings, processes, reporter)
    )
    for result, image in found:
        if result.error is None:
            yield result, image
        else:
            bad.append(result)
    yield from ((result, None) for result in bad)


def check_processes(processes: NumProcesses, device: torch.device) -> None:
    """Check a number of processes before the work.

    Raises:
        ConfigError: it is out of range, or there are several on another device than the CPU.
    """
    if processes == "auto" or processes == 1:
        return
    if not 1 <= processes <= MOST_PROCESSES:
        raise ConfigError(f"processes is {processes}; it must be in 1..{MOST_PROCESSES}, or auto")
    if device.type != "cpu":
        raise ConfigError(f"processes is {processes}, but the device is {device}: several processes are for the CPU")


class _Trial:
    """Trial on the first images: seconds of each with all threads, then with one; its results count like any."""

    def __init__(self, detector: Detector, paths: Sequence[Path], settings: PredictionSettings) -> None:
        self._detector, self._paths, self._settings = detector, paths, settings
        self.num_tried = 0
        self._seconds: dict[int, list[float]] = {}

    def __iter__(self) -> Iterator[tuple[ImageResult, Image.Image | None]]:
        many = torch.get_num_threads()
        size = self._settings.batch_size
        for threads in (many, 1):
            # The first images prepare the network for this number of threads, and are not counted.
            detector = self._detector if threads == many else self._detector.around(self._detector.model)
            for number in range(_TRIED):
                paths = self._paths[self.num_tried : self.num_tried + size]
                self.num_tried += size
                torch.set_num_threads(threads)
                try:
                    began = time.perf_counter()
                    found = list(results_here(detector, paths, self._settings))
                    seconds = (time.perf_counter() - began) / size
                finally:
                    torch.set_num_threads(many)  # also for whoever takes the results
                if number > 0:
                    self._seconds.setdefault(threads, []).append(seconds)
                yield from found

    def best_number(self, cores: int, remaining: int, reporter: Reporter) -> int:
        """Number of processes for the remaining images; 1 stands for many threads in this one."""
        together, alone = (statistics.median(self._seconds[threads]) for threads in (cores, 1))
        number = min(cores, _fitting(), remaining)
        apart = alone / (number * _EFFICIENCY)
        if number < 2 or together < _LEAST_GAIN * apart or remaining * (together - apart) < _START_S:
            return 1
        reporter.say(
            f"from here on {number} processes with one thread each: an image takes {together:.2f} s with {cores} "
            f"threads and {alone:.2f} s with one"
        )
        return number


def _fitting() -> int:
    """Number of processes like this one that fit into the free memory."""
    free, mine = free_memory(torch.device("cpu")), memory_in_use()
    return MOST_PROCESSES if free is None or not mine else free // mine


def _pickled(detector: Detector) -> bytes:
    try:
        return pickle.dumps(detector)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"this detector cannot be copied to other processes ({first_line(error)}); use processes=1"
        ) from error


def _by_many(
    detector: Detector,
    pickled: bytes,
    paths: Sequence[Path],
    settings: PredictionSettings,
    processes: int,
    reporter: Reporter,
) -> Iterator[tuple[ImageResult, None]]:
    parts = [list(paths[at : at + settings.batch_size]) for at in range(0, len(paths), settings.batch_size)]
    waiting: deque[tuple[list[Path], Future[bytes]]] = deque()
    # A fresh interpreter: a copy of this process would hold locks of threads that it does not have.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(pickled,),
    )
    taken = 0
    try:
        while waiting or taken < len(parts):
            while taken < len(parts) and len(waiting) < _AHEAD * processes:
                waiting.append((parts[taken], pool.submit(_detect, parts[taken], settings)))
                taken += 1
            _, answer = waiting[0]
            results: list[ImageResult] = pickle.loads(answer.result())
            waiting.popleft()
            yield from ((result, None) for result in results)
    except BrokenProcessPool:
        reporter.say("a process has ended, perhaps for lack of memory: the rest goes on in a single one")
        left = [path for part, _ in waiting for path in part] + [path for part in parts[taken:] for path in part]
        yield from ((result, None) for result, _ in results_here(detector, left, settings))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(pickled: bytes) -> None:
    """Set up a process: one thread, the detector, and no answer to Ctrl-C, which ends the process that waits for it."""
    global _detector
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _detector = pickle.loads(pickled)


def _detect(paths: list[Path], settings: PredictionSettings) -> bytes:
    """Results of some images; as bytes, because PyTorch would hand each tensor over as a file."""
    assert _detector is not None
    return pickle.dumps([result for result, _ in results_here(_detector, paths, settings)])
