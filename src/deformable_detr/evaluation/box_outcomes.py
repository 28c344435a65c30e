"""Outcome of every box: whether a detection is right, what is wrong with it, and whether an object was found."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from deformable_detr.core.detections import Detections
from deformable_detr.data.dataset import DetectionDataset, Sample

OVERLAP = 0.5
"""Smallest IoU at which a detection can find an object."""
FAR = 0.1
"""IoU below which a detection has nothing to do with an object (TIDE, Bolya et al. 2020)."""

Fault = Literal["background", "wrong class", "poor box", "wrong class, poor box", "duplicate"]
"""Kind of error of a detection that found no object."""


class FoundBoxes(NamedTuple):
    """Detections of all images, in the order of the images, without those that lie in a crowd region."""

    image: Int[np.ndarray, "detections"]
    """Position of the image in the data set, from 0."""
    row: Int[np.ndarray, "detections"]
    """Position of the detection among those of its image, from 0."""
    class_ids: Int[np.ndarray, "detections"]
    """Class that was found."""
    scores: Float[np.ndarray, "detections"]
    """Score, 0..1."""
    is_hit: Bool[np.ndarray, "detections"]
    """Whether it found an object that no detection of its class with a higher score had found."""


class TrueBoxes(NamedTuple):
    """Objects of all images, in the order of the images, without crowd regions."""

    image: Int[np.ndarray, "objects"]
    """Position of the image in the data set, from 0."""
    row: Int[np.ndarray, "objects"]
    """Position of the object among all boxes of its image, crowd regions included, from 0."""
    class_ids: Int[np.ndarray, "objects"]
    """Class of the object."""
    areas: Float[np.ndarray, "objects"]
    """Area in square pixels, as the annotations have it."""
    found_at: Float[np.ndarray, "objects"]
    """Score of the detection that found it, 0..1; -1 if no detection did."""


def match(evaluation: Any, detections: Sequence[Detections], dataset: DetectionDataset) -> tuple[FoundBoxes, TrueBoxes]:
    """Match detections and objects as COCO does, at an IoU of `OVERLAP`.

    Args:
        evaluation: what `coco_metrics.evaluated` returned for these detections and this data set.
        detections: one entry for each image.
        dataset: the images, in the same order.

    Returns:
        All detections with whether each is right, and all objects with the score at which each was found.
    """
    # Detections. hotcoco numbers them from 1 over all images, and gives no status to those that do not count.
    outcome = evaluation.image_diagnostics(iou_thr=OVERLAP, score_thr=0.0)
    image, row = _places([len(found.scores) for found in detections])
    class_ids = _joined([found.class_ids.cpu().numpy() for found in detections]).astype(np.int64)
    scores = _joined([found.scores.detach().cpu().numpy() for found in detections]).astype(np.float64)
    status = [outcome["dt_status"].get(position) for position in range(1, len(scores) + 1)]
    counts = np.array([one is not None for one in status], dtype=bool)
    is_hit = np.array([one == "tp" for one in status], dtype=bool)
    found = FoundBoxes(image[counts], row[counts], class_ids[counts], scores[counts], is_hit[counts])
    # Objects, numbered alike. Each names the detection that found it.
    image, row = _places([len(sample.class_ids) for sample in dataset.samples])
    is_crowd = _joined([sample.is_crowd for sample in dataset.samples]).astype(bool)
    finder = [outcome["gt_match"].get(position) for position in range(1, len(row) + 1)]
    found_at = np.array([-1.0 if one is None else scores[one - 1] for one in finder], dtype=np.float64)
    truth = TrueBoxes(
        image[~is_crowd],
        row[~is_crowd],
        _joined([sample.class_ids for sample in dataset.samples]).astype(np.int64)[~is_crowd],
        _joined([sample.areas for sample in dataset.samples]).astype(np.float64)[~is_crowd],
        found_at[~is_crowd],
    )
    return found, truth


def fault(box_xyxy: Float[np.ndarray, "4"], class_id: int, sample: Sample) -> tuple[Fault, int | None, float]:
    """Fault of a detection that is no hit, with the object it was about.

    The kinds are tried in TIDE's order. A detection that overlaps an object of its own class well, and yet is no hit,
    is a duplicate: a detection with a higher score found that object.

    Args:
        box_xyxy: box of the detection, in pixels of the image.
        class_id: its class.
        sample: its image.

    Returns:
        The kind of fault, the position in `sample` of the object that was meant (None if there is none), and the IoU
        with it.
    """
    overlaps = np.where(sample.is_crowd, 0.0, iou_with(box_xyxy, sample.boxes_xyxy.astype(np.float64)))
    same = np.where(sample.class_ids == class_id, overlaps, 0.0)
    other = np.where(sample.class_ids == class_id, 0.0, overlaps)
    best_same, best_other = same.max(initial=0.0), other.max(initial=0.0)
    if FAR <= best_same < OVERLAP:
        return "poor box", int(same.argmax()), float(best_same)
    if best_other >= OVERLAP:
        return "wrong class", int(other.argmax()), float(best_other)
    if best_same >= OVERLAP:
        return "duplicate", int(same.argmax()), float(best_same)
    if best_other > FAR:
        return "wrong class, poor box", int(other.argmax()), float(best_other)
    return "background", None, float(max(best_same, best_other))


def iou_with(
    box_xyxy: Float[np.ndarray, "4"], boxes_xyxy: Float[np.ndarray, "objects 4"]
) -> Float[np.ndarray, "objects"]:
    """IoU of one box with each of the others; 0 where neither box has an area."""
    corner = np.minimum(box_xyxy[2:], boxes_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], boxes_xyxy[:, :2])
    inside = corner.clip(min=0).prod(axis=1)
    union = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1) + (box_xyxy[2:] - box_xyxy[:2]).prod() - inside
    return np.divide(inside, union, out=np.zeros(len(boxes_xyxy)), where=union > 0)


def _places(counts: Sequence[int]) -> tuple[Int[np.ndarray, "boxes"], Int[np.ndarray, "boxes"]]:
    """Image of every box, and its position among the boxes of that image; `counts` are the boxes of each image."""
    image = np.repeat(np.arange(len(counts)), counts)
    row = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(count) for count in counts)])
    return image, row


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)
