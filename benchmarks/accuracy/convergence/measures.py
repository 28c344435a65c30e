"""Average precision of stored detections: by size of the objects, and of images drawn anew for the bootstrap.

Both are exact. For sizes, pictures, boxes and areas are multiplied by 4 before they go to the evaluator, so that its
bounds of 32^2 and 96^2 pixels fall on 8^2 and 24^2 of ours; IoU does not change by a power of two. For the bootstrap,
detections are matched once, because a match depends on nothing outside its image; an image that is drawn n times then
counts n times. Copies of a correct detection one after another only raise the precision and copies of a wrong one only
lower it, so that precision at every recall is that of a data set which has the image n times.
"""

import gzip
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from benchmarks.accuracy.convergence.scenes import SCALE
from deformable_detr.core.files import write_atomically
from deformable_detr.evaluation.coco_metrics import Metrics, metrics_from_coco

Results = Sequence[dict[str, Any]]
"""Entries of a COCO result file."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100


def metrics_by_size(document: dict[str, Any], results: Results, scale: int = SCALE) -> Metrics:
    """COCO's metrics, where objects are small below (32 / scale)^2 pixels and large from (96 / scale)^2 on.

    Args:
        document: content of an annotation file.
        results: detections in its images.
        scale: a power of two.
    """

    def larger(box: Sequence[float]) -> list[float]:
        return [scale * side for side in box]

    images = [{**one, "width": scale * one["width"], "height": scale * one["height"]} for one in document["images"]]
    objects = [
        {**one, "bbox": larger(one["bbox"]), "area": scale * scale * one["area"]} for one in document["annotations"]
    ]
    found = [{**one, "bbox": larger(one["bbox"])} for one in results]
    return metrics_from_coco({**document, "images": images, "annotations": objects}, found)


class Matched(NamedTuple):
    """Detections of one class in all images, best first, and the IoU thresholds at which they are right."""

    images: Int[np.ndarray, "detections"]
    """Position of the image of each detection."""
    right: Bool[np.ndarray, "thresholds detections"]
    """Whether the detection is matched to an object of the class."""
    objects: Int[np.ndarray, "images"]
    """Number of objects of the class in each image."""


def match(document: dict[str, Any], results: Results) -> list[Matched]:
    """Matches of the detections of each class, as pycocotools finds them; crowd regions are not supported.

    Raises:
        ValueError: there is a crowd region.
    """
    if any(one["iscrowd"] for one in document["annotations"]):
        raise ValueError("there are crowd regions, which are not supported here")
    image_ids = sorted(one["id"] for one in document["images"])
    objects = _by_place(document["annotations"])
    found = _by_place(results)
    classes = []
    for category in document["categories"]:
        scores: list[float] = []
        places: list[int] = []
        right: list[Bool[np.ndarray, "thresholds detections"]] = []
        counts = np.zeros(len(image_ids), dtype=np.int64)
        for place, image_id in enumerate(image_ids):
            own = objects.get((image_id, category["id"]), [])
            best_first = sorted(found.get((image_id, category["id"]), []), key=lambda one: -one["score"])[:_MOST]
            counts[place] = len(own)
            scores += [one["score"] for one in best_first]
            places += [place] * len(best_first)
            right.append(_right(_ious(best_first, own)))
        order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
        everything = np.concatenate(right, axis=1) if right else np.zeros((len(THRESHOLDS), 0), dtype=bool)
        classes.append(Matched(np.asarray(places, dtype=np.int64)[order], everything[:, order], counts))
    return classes


def average_precision(classes: Sequence[Matched], times: Int[np.ndarray, "images"]) -> float:
    """AP over classes and thresholds where each image counts so many times; nan without any object.

    Args:
        classes: matches, from `match`.
        times: number of times that each image, in the order of the ids, is there.
    """
    values = []
    for one in classes:
        num_objects = int((one.objects * times).sum())
        if num_objects == 0:
            continue
        weights = times[one.images]
        hits = np.cumsum(one.right * weights, axis=1)
        precision = hits / np.maximum(np.cumsum(weights), 1)
        # The highest precision at this recall or a higher one.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.pad(precision, ((0, 0), (0, 1)))  # a recall that is never reached
        for recall, own in zip(hits / num_objects, precision, strict=True):
            values.append(own[np.searchsorted(recall, _RECALLS, side="left")].mean())
    return float(np.mean(values)) if values else float("nan")


def bootstrap(
    arms: Sequence[Sequence[Matched]], num_images: int, replicates: int, seed: int = 0
) -> Float[np.ndarray, "replicates arms"]:
    """AP of each arm on images drawn with replacement; one draw is the same for all arms."""
    rng = np.random.default_rng(seed)
    draws = [np.bincount(rng.integers(num_images, size=num_images), minlength=num_images) for _ in range(replicates)]
    return np.array([[average_precision(arm, times) for arm in arms] for times in draws])


def write_results(path: Path, results: Results) -> None:
    """Write detections as a compressed COCO result file."""
    content = gzip.compress(json.dumps(list(results)).encode(), mtime=0)
    write_atomically(path, partial(Path.write_bytes, data=content))


def read_results(path: Path) -> Results:
    """Detections that `write_results` has written."""
    found: Results = json.loads(gzip.decompress(path.read_bytes()))
    return found


def _by_place(entries: Results) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Entries by image and category, in the order in which they come."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in entries:
        found.setdefault((one["image_id"], one["category_id"]), []).append(one)
    return found


def _ious(detections: Results, objects: Results) -> Float[np.ndarray, "detections objects"]:
    first = np.array([one["bbox"] for one in detections], dtype=np.float64).reshape(-1, 1, 4)
    second = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(1, -1, 4)
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    common = (high - low).clip(0).prod(-1)
    return common / (first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - common)


def _right(ious: Float[np.ndarray, "detections objects"]) -> Bool[np.ndarray, "thresholds detections"]:
    """Greedy matching: each detection, best first, takes the free object that it overlaps most, the last of equals."""
    num_detections, num_objects = ious.shape
    right = np.zeros((len(THRESHOLDS), num_detections), dtype=bool)
    if num_objects == 0:
        return right
    for index, threshold in enumerate(THRESHOLDS):
        free = np.ones(num_objects, dtype=bool)
        for detection in range(num_detections):
            own = np.where(free, ious[detection], -1.0)
            best = num_objects - 1 - int(np.argmax(own[::-1]))
            if own[best] >= min(threshold, 1 - 1e-10):
                free[best] = False
                right[index, detection] = True
    return right
