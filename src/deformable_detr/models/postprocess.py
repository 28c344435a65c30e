"""From what the network says to boxes in pixels of the original image."""

from collections.abc import Sequence

import torch

from deformable_detr.core.boxes import cxcywh_to_xyxy
from deformable_detr.core.detections import Detections
from deformable_detr.core.types import Predictions


def to_detections(
    predictions: Predictions,
    sizes_wh: Sequence[tuple[int, int]],
    *,
    max_detections: int = 100,
    threshold: float = 0.0,
) -> list[Detections]:
    """The best (query, class) pairs of each image, best first; one query may appear with several classes.

    No suppression of overlapping boxes, and none is cut at the image's border: both as published.

    Args:
        predictions: Of the last decoder layer.
        sizes_wh: Of each original image, in pixels; boxes come out in these.
        max_detections: At most so many per image.
        threshold: Scores below it are left out.
    """
    batch, num_queries, num_classes = predictions.logits.shape
    if len(sizes_wh) != batch:
        raise ValueError(f"there are predictions for {batch} images but {len(sizes_wh)} sizes")
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; it must be at least 1")
    scores = predictions.logits.float().sigmoid().flatten(1)
    scores, pairs = scores.topk(min(max_detections, num_queries * num_classes), dim=1)
    queries = pairs // num_classes
    boxes = cxcywh_to_xyxy(predictions.boxes.float())
    boxes = boxes.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
    scale = torch.tensor([(w, h, w, h) for w, h in sizes_wh], dtype=boxes.dtype, device=boxes.device)
    boxes = boxes * scale.view(batch, 1, 4)
    detections = []
    for image in zip(boxes, scores, pairs % num_classes, queries, strict=True):
        everything = Detections(*image)
        detections.append(everything[everything.scores >= threshold])
    return detections
