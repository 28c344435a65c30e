"""Detection in many files with many threads, with one, and with a process for each core.

`python -m benchmarks.model.bench_processes`. The model is that of a recipe with random weights, the images are drawn
scenes, and everything from file to detection counts but the start of the processes: the clock runs from the result
after the first images to the last one. The ways take turns; their detections are compared with each other. The table
goes to standard error; one line of JSON goes to standard output, last.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.model.bench_vs_transformers import our_model
from benchmarks.report import aligned, machine, say
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.files import find_images, predict_files
from deformable_detr.inference.image_results import ImageResult
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.runs.recipes import RECIPES

_SAME_BOX_PX = 0.5
_FEWEST_IMAGES = 9


def images_per_second(
    detector: Detector, paths: Sequence[Path], threads: int, processes: int, warm: int
) -> tuple[float, list[ImageResult]]:
    """Images per second after the first `warm` ones, and all results."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found: list[ImageResult] = []
        began = 0.0
        for result in predict_files(detector, paths, threshold=0.0, max_detections=10, processes=processes):
            found.append(result)
            if len(found) == warm:
                began = time.perf_counter()
        return (len(found) - warm) / (time.perf_counter() - began), found
    finally:
        torch.set_num_threads(before)


def check_equal(one: list[ImageResult], other: list[ImageResult]) -> None:
    """Check that two ways have found the same, up to rounding.

    Raises:
        SystemExit: they have not.
    """
    for a, b in zip(one, other, strict=True):
        assert a.detections is not None
        assert b.detections is not None
        best = (a.detections.boxes_xyxy[:1], b.detections.boxes_xyxy[:1])
        if a.path != b.path or float((best[0] - best[1]).abs().max()) > _SAME_BOX_PX:
            raise SystemExit(f"not the same: {a.path} {best[0].tolist()}, {b.path} {best[1].tolist()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, then the line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model.bench_processes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--recipe", choices=list(RECIPES), default="small")
    parser.add_argument("--image-size", type=int, default=320, help="short side in pixels")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    if given.images < _FEWEST_IMAGES:
        parser.error(f"--images is {given.images}; it must be at least {_FEWEST_IMAGES}, a third of them to warm up")
    config = RECIPES[given.recipe]().model
    assert isinstance(config, DeformableDETRConfig)
    cores = torch.get_num_threads()
    detector = Detector(
        our_model(config),
        [str(number) for number in range(config.num_classes)],
        list(range(config.num_classes)),
        Preprocessing(short_side=given.image_size, max_side=2 * given.image_size),
        device="cpu",
    )
    ways = {"one thread": (1, 1), f"{cores} threads": (cores, 1), f"{cores} processes": (cores, cores)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, list[ImageResult]] = {}
    with tempfile.TemporaryDirectory() as folder:
        draw_scenes(
            Path(folder),
            num_train=given.images,
            num_val=1,
            style=SceneStyle(size_wh=(given.image_size * 4 // 3, given.image_size)),
        )
        paths = find_images([str(Path(folder) / "train")])
        for _ in range(given.rounds):
            for name, (threads, processes) in ways.items():
                # Processes that start later would be counted as slow: each has its first images before the clock.
                speed, results[name] = images_per_second(detector, paths, threads, processes, warm=len(paths) // 3)
                speeds[name].append(speed)
    for name in ways:
        check_equal(results["one thread"], results[name])
    facts = {**machine("cpu"), "recipe": given.recipe, "image_size": given.image_size, "images": len(paths)}
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    base = medians["one thread"]
    rows = [(name, f"{speed:.2f}", f"{speed / base:.2f} x") for name, speed in medians.items()]
    say(aligned(("way", "images/s", "of one thread"), rows))
    content = {"benchmark": "processes", "baseline": "one thread", **facts, "images_per_second": medians, "all": speeds}
    sys.stdout.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
