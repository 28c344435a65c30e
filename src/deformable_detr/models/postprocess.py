"""Post-processing: predictions of the network to detections in pixels of the original image."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.boxes import cxcywh_to_xyxy
from deformable_detr.core.detections import Detections
from deformable_detr.core.types import ClassScores, Predictions


def to_detections(
    predictions: Predictions,
    sizes_wh: Sequence[tuple[int, int]],
    *,
    max_detections: int = 100,
    threshold: float = 0.0,
    class_scores: ClassScores = "sigmoid",
) -> list[Detections]:
    """Detections of each image: its best pairs of query and class, best score first.

    With sigmoid scores one query may appear with several classes; with softmax scores, which exclude each other, it
    appears with its best class alone, as in DETR. Of equal scores that of the lower query comes first, and of one query
    that of the lower class, whatever `max_detections` is. As in the official codes, overlapping boxes stay (no NMS),
    and boxes are not clipped to the image.

    Args:
        predictions: predictions of the last decoder layer.
        sizes_wh: width and height of each original image in pixels; the boxes refer to them.
        max_detections: largest number of detections per image, at least 1.
        threshold: lowest score that is kept, in 0..1.
        class_scores: way from logits to scores, from `class_scores_of(model)`.

    Returns:
        One `Detections` per image, in the order of the batch, with boxes xyxy in pixels and without class names.

    Raises:
        ValueError: the number of sizes is not that of the images, or `max_detections` is below 1.
    """
    batch = len(predictions.logits)
    if len(sizes_wh) != batch:
        raise ValueError(f"there are predictions for {batch} images but {len(sizes_wh)} sizes")
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; it must be at least 1")
    scores, class_ids, queries = _ranked(scores_of(predictions.logits, class_scores), class_scores, max_detections)
    # From 0..1 of the network's input to pixels of the original.
    boxes = cxcywh_to_xyxy(predictions.boxes.float())
    boxes = boxes.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
    scale = torch.tensor([(w, h, w, h) for w, h in sizes_wh], dtype=boxes.dtype, device=boxes.device)
    boxes = boxes * scale.view(batch, 1, 4)
    detections = []
    for image in zip(boxes, scores, class_ids, queries, strict=True):
        everything = Detections(*image)
        detections.append(everything[everything.scores >= threshold])
    return detections


def scores_of(
    logits: Float[Tensor, "batch predictions rows"], class_scores: ClassScores
) -> Float[Tensor, "batch predictions classes"]:
    """Scores of the classes, in 0..1 and float32, without a row for "no object".

    Args:
        logits: output of a class head.
        class_scores: way from logits to scores.
    """
    return logits.float().sigmoid() if class_scores == "sigmoid" else logits.float().softmax(-1)[..., :-1]


def _ranked(scores: Tensor, class_scores: ClassScores, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score, class and query of the best pairs of each image, (batch, pairs) each."""
    num_classes = scores.shape[-1]
    if class_scores == "softmax":
        scores, class_ids = scores.max(-1)
        queries = _best(scores, most)
        return scores.gather(1, queries), class_ids.gather(1, queries), queries
    # Every class of every query competes in one ranking.
    scores = scores.flatten(1)
    pairs = _best(scores, most)
    return scores.gather(1, pairs), pairs % num_classes, pairs // num_classes


def _best(scores: Tensor, most: int) -> Tensor:
    """Positions of the best scores of each row, best first; of equals the first, which topk alone does not promise.

    So the best 100 are the first 100 of the best 300, also where many scores are equal, as in half precision.
    """
    # Bits of floats that are not negative rank as the floats do. Positions in the lower half leave no two keys equal.
    keys = scores.view(torch.int32).long() * 2**32 - torch.arange(scores.shape[1], device=scores.device)
    return keys.topk(min(most, scores.shape[1]), dim=1).indices
