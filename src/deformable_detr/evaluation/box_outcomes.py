"""Which detection found which object: every detection that counts, and every object, with what became of it."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from deformable_detr.core.detections import Detections
from deformable_detr.data.dataset import DetectionDataset, Sample

OVERLAP = 0.5
"""IoU from which a detection may count as having found an object."""
FAR = 0.1
"""IoU below which a detection has nothing to do with an object, as TIDE has it (Bolya et al. 2020)."""

Fault = Literal["background", "wrong class", "poor box", "wrong class, poor box", "duplicate"]


class FoundBoxes(NamedTuple):
    """Detections of all images, one after the other. Those that lie in a crowd region are left out."""

    image: Int[np.ndarray, "detections"]
    """Position of the image in the data set."""
    row: Int[np.ndarray, "detections"]
    """Position of the detection in its image's."""
    class_ids: Int[np.ndarray, "detections"]
    scores: Float[np.ndarray, "detections"]
    is_hit: Bool[np.ndarray, "detections"]
    """Whether it found an object that no better-scored detection of its class had found."""


class TrueBoxes(NamedTuple):
    """Objects of all images, one after the other. Crowd regions are left out."""

    image: Int[np.ndarray, "objects"]
    row: Int[np.ndarray, "objects"]
    class_ids: Int[np.ndarray, "objects"]
    areas: Float[np.ndarray, "objects"]
    found_at: Float[np.ndarray, "objects"]
    """Score of the detection that found it; -1 for an object that none did."""


def match(evaluation: Any, detections: Sequence[Detections], dataset: DetectionDataset) -> tuple[FoundBoxes, TrueBoxes]:
    """What COCO's matching at an overlap of `OVERLAP` makes of every box.

    Args:
        evaluation: of `to_coco_results` and `coco_ground_truth`, as `metrics.evaluated` returned it.
        detections: one entry for each image.
        dataset: the images.
    """
    outcome = evaluation.image_diagnostics(iou_thr=OVERLAP, score_thr=0.0)
    image, row = _places([len(found.scores) for found in detections])
    class_ids = _joined([found.class_ids.cpu().numpy() for found in detections]).astype(np.int64)
    scores = _joined([found.scores.detach().cpu().numpy() for found in detections]).astype(np.float64)
    status = [outcome["dt_status"].get(position) for position in range(1, len(scores) + 1)]
    counts = np.array([one is not None for one in status], dtype=bool)
    is_hit = np.array([one == "tp" for one in status], dtype=bool)
    found = FoundBoxes(image[counts], row[counts], class_ids[counts], scores[counts], is_hit[counts])

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
    """What is wrong with a detection that is no hit, in TIDE's order; with the object meant, if any, and the overlap.

    The object is a position in `sample`. What overlaps an object of its own class well enough, and yet is no hit, found
    it once more.
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
    """Overlap of one box with each of the others; 0 where neither has any extent."""
    corner = np.minimum(box_xyxy[2:], boxes_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], boxes_xyxy[:, :2])
    inside = corner.clip(min=0).prod(axis=1)
    union = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1) + (box_xyxy[2:] - box_xyxy[:2]).prod() - inside
    return np.divide(inside, union, out=np.zeros(len(boxes_xyxy)), where=union > 0)


def _places(counts: Sequence[int]) -> tuple[Int[np.ndarray, "boxes"], Int[np.ndarray, "boxes"]]:
    """Of so many boxes in each image: the image of every box, and its position among the image's."""
    image = np.repeat(np.arange(len(counts)), counts)
    row = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(count) for count in counts)])
    return image, row


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)
