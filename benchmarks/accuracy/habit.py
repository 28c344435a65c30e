"""How much the pattern of sampling points varies with what a query found: whether attention looks, or has habits.

    python -m benchmarks.accuracy.habit WEIGHTS... --data bccd

For every decoder layer, over the queries of each image of a split: the variance of the sampling offsets as a share of
their mean square, and the standard deviation of the attention weights as a share of their mean; then the median over
the images. An offset counts half-boxes, or pixels in networks without boxes as references, so that boxes of different
sizes are no variation. At 0, every query looks at the same places of its box. The table goes to standard error; one
line of JSON goes to standard output, last.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import aligned, machine, say
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.open import open_dataset
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.explain import explain

_HEAD = ("weights", "layer", "offsets vary", "weights vary")


def variation(detector: Detector, dataset: DetectionDataset, count: int) -> list[dict[str, float]]:
    """Variation of every decoder layer, first layer first: medians over at most `count` images."""
    rows: list[list[tuple[float, float]]] = []
    for sample in dataset.samples[:count]:
        found = explain(detector, sample.path, effects="none", most=1)
        rows.append([(layer.offset_variation, layer.weight_variation) for layer in found.layers])
    return [
        {"offsets": statistics.median(one[0] for one in layer), "weights": statistics.median(one[1] for one in layer)}
        for layer in zip(*rows, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, then the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+", help="trained detectors with sampling points")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    dataset = open_dataset(given.data, split=given.split)
    results: dict[str, Any] = {}
    lines: list[tuple[str, ...]] = []
    for weights in given.weights:
        name = weights.stem if weights.parent == Path() else f"{weights.parent.name}/{weights.stem}"
        results[name] = variation(Detector.load(weights, device="cpu"), dataset, given.images)
        for number, layer in enumerate(results[name], start=1):
            lines.append((name, str(number), f"{100 * layer['offsets']:.3f} %", f"{100 * layer['weights']:.1f} %"))
    say(aligned(_HEAD, lines))
    print(json.dumps({"benchmark": "habit", **machine("cpu"), "data": given.data.name, "variation": results}))


if __name__ == "__main__":
    main()
