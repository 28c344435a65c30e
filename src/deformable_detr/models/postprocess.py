"""Post-processing: predictions of the network to detections in pixels of the original image."""

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
    """Detections of each image: its best pairs of query and class, best score first.

    One query may appear with several classes. As in the official code, overlapping boxes stay (no NMS), and boxes are
    not clipped to the image.

    Args:
        predictions: predictions of the last decoder layer.
        sizes_wh: width and height of each original image in pixels; the boxes refer to them.
        max_detections: largest number of detections per image, at least 1.
        threshold: lowest score that is kept, in 0..1.

    Returns:
        One `Detections` per image, in the order of the batch, with boxes xyxy in pixels and without class names.

    Raises:
        ValueError: the number of sizes is not that of the images, or `max_detections` is below 1.
    """
    batch, num_queries, num_classes = predictions.logits.shape
    if len(sizes_wh) != batch:
        raise ValueError(f"there are predictions for {batch} images but {len(sizes_wh)} sizes")
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; it must be at least 1")
    # Every class of every query competes in one ranking.
    scores = predictions.logits.float().sigmoid().flatten(1)
    scores, pairs = scores.topk(min(max_detections, num_queries * num_classes), dim=1)
    queries = pairs // num_classes
    # From 0..1 of the network's input to pixels of the original.
    boxes = cxcywh_to_xyxy(predictions.boxes.float())
    boxes = boxes.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
    scale = torch.tensor([(w, h, w, h) for w, h in sizes_wh], dtype=boxes.dtype, device=boxes.device)
    boxes = boxes * scale.view(batch, 1, 4)
    detections = []
    for image in zip(boxes, scores, pairs % num_classes, queries, strict=True):
        everything = Detections(*image)
        detections.append(everything[everything.scores >= threshold])
    return detections
