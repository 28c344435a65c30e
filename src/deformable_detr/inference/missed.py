"""Missed objects: at a place without a detection, the query that came nearest, and why it is no detection."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.boxes import area, overlap_ratio
from deformable_detr.core.detections import Detections

_SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Missed:
    """Answer to the question why there is no detection at a place."""

    place: tuple[float, float]
    """(x, y) in pixels of the image as displayed."""
    distance_px: float
    """Distance from the place to the box of the query that came nearest; 0 if it holds the place."""
    score: float
    """Score of the query's best class, 0..1."""
    threshold: float
    """Lowest score of a detection."""
    overlap: float
    """Largest IoU of the query's box with a detection, 0..1."""
    overlapped: int | None
    """Position of that detection, best score first; None if no detection overlaps the box."""

    def reason(self) -> str:
        """Reason in words."""
        x, y = (f"{value:.0f}" for value in self.place)
        parts = []
        if self.distance_px > 0:
            parts.append(f"no query's box holds {x},{y}: the nearest ends {self.distance_px:.0f} pixels away")
        below = f"score {self.score:.2f} of its best class is below the threshold {self.threshold:.2f}"
        if self.score < self.threshold:
            parts.append(f"the {below}")
        if self.overlapped is not None and self.overlap >= _SAME_OBJECT_IOU:
            parts.append(
                f"detection {self.overlapped + 1} has nearly the same box (IoU {self.overlap:.2f}), and only one query "
                "of an object is meant to have a high score"
            )
        return "; ".join(parts)

    def record(self) -> dict[str, Any]:
        """Record as plain data, for JSON."""
        return {
            "at": [round(value, 1) for value in self.place],
            "distance_px": round(self.distance_px, 1),
            "score": round(self.score, 4),
            "threshold": self.threshold,
            "iou_with_detection": round(self.overlap, 4),
            "reason": self.reason(),
        }


def smallest_at(found: Detections, place: tuple[float, float]) -> Detections:
    """Detection of the smallest box that holds a place; none if no box holds it.

    Args:
        found: detections of an image.
        place: (x, y) in the pixels of their boxes.
    """
    holding = (_distances(found.boxes_xyxy, place) == 0).nonzero().squeeze(1)
    return found[holding[area(found.boxes_xyxy[holding]).argsort()[:1]]]


def nearest_query(
    every: Detections, found: Detections, place: tuple[float, float], threshold: float
) -> tuple[Detections, Missed]:
    """Query that came nearest to a place: of those whose boxes hold it the one of the best score, else the nearest box.

    Args:
        every: every query with its best class.
        found: detections of the image.
        place: (x, y) in the pixels of their boxes.
        threshold: lowest score of a detection.
    """
    distances = _distances(every.boxes_xyxy, place)
    scores = every.scores.where(distances == distances.min(), -1.0)
    best = int(scores.argmax())
    overlaps = overlap_ratio(every.boxes_xyxy[best], found.boxes_xyxy)
    overlapped = int(overlaps.argmax()) if len(found) and bool(overlaps.max() > 0) else None
    missed = Missed(
        place=place,
        distance_px=float(distances[best]),
        score=float(every.scores[best]),
        threshold=threshold,
        overlap=0.0 if overlapped is None else float(overlaps[overlapped]),
        overlapped=overlapped,
    )
    return every[[best]], missed


def _distances(boxes_xyxy: Float[Tensor, "boxes 4"], place: tuple[float, float]) -> Float[Tensor, "boxes"]:
    """Distance from a place to each box, in pixels; 0 inside."""
    point = boxes_xyxy.new_tensor(place)
    beyond = torch.maximum(boxes_xyxy[:, :2] - point, point - boxes_xyxy[:, 2:]).clamp(min=0)
    return torch.linalg.vector_norm(beyond, dim=-1)
