"""Test-time augmentation: detections of mirrored and resized views of an image, merged (arXiv 2010.04159, Table 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.boxes import overlap_ratio
from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import ConfigError
from deformable_detr.data.preprocessing import Preprocessing

MOST_PER_VIEW = 100
"""Number of detections in each view that are merged, or that of the answer if it is larger: an object that is just
beyond a smaller number would count as one that this view has not found."""
_SCALE_RANGE = (0.1, 10.0)
_MOST_SCALES = 20


@dataclass(frozen=True, kw_only=True)
class TTA:
    """Settings of test-time augmentation: which views of an image are looked at, and how their detections are merged.

    The paper's last row is "horizontal flip and multi-scale testing"; it names neither scales nor merging. For its
    images of 800 pixels, the scales here are 600, 800 and 1000.

    Raises:
        ConfigError: there is no scale, one is out of range, or `iou` is.
    """

    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Sizes of the views: factors on both sides of the detector's preprocessing, 1 to 20 of them in 0.1..10."""
    hflip: bool = True
    """Whether every size is also looked at mirrored, left for right."""
    vflip: bool = False
    """Whether every size is also looked at upside down, for pictures without up and down; with `hflip` also both."""
    merge: Literal["wbf", "soft_nms"] = "wbf"
    """Merging of the views' boxes, for each class alone. "wbf": weighted box fusion, whose box is the mean weighted by
    scores, and whose score is the mean over all views, those that found nothing included. "soft_nms": the best box
    stays as it is, and lowers the scores of those that overlap it."""
    iou: float = 0.55
    """Overlap above which two boxes count as one object, above 0 and below 1."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.scales) <= _MOST_SCALES:
            raise ConfigError(f"tta.scales has {len(self.scales)} numbers; it needs 1 to {_MOST_SCALES}")
        low, high = _SCALE_RANGE
        wrong = [scale for scale in self.scales if not low <= scale <= high]
        if wrong:
            raise ConfigError(f"tta.scales has {wrong[0]}; each must be in {low:g}..{high:g}")
        if not 0 < self.iou < 1:
            raise ConfigError(f"tta.iou is {self.iou}; it must be above 0 and below 1")

    @property
    def num_views(self) -> int:
        """Number of views of an image, which is how many times it goes through the network."""
        return len(self.scales) * (1 + self.hflip) * (1 + self.vflip)


class Flip(NamedTuple):
    """Direction in which an image is looked at."""

    horizontal: bool
    """Left for right."""
    vertical: bool
    """Upside down."""


def chosen(tta: TTA | bool) -> TTA | None:
    """Settings that an argument `tta` means: True is the defaults, False is None."""
    return (TTA() if tta else None) if isinstance(tta, bool) else tta


def flips_of(tta: TTA | None) -> tuple[Flip, ...]:
    """Directions in which every size is looked at, as it is first; without augmentation no other."""
    horizontal = (False, True) if tta is not None and tta.hflip else (False,)
    vertical = (False, True) if tta is not None and tta.vflip else (False,)
    return tuple(Flip(*flip) for flip in product(horizontal, vertical))


def sizes_of(tta: TTA | None, preprocessing: Preprocessing) -> tuple[Preprocessing, ...]:
    """Preprocessing for each size that an image is looked at in; without augmentation, that of the detector.

    Raises:
        ConfigError: a size is larger than any image may be.
    """
    if tta is None:
        return (preprocessing,)
    sizes = []
    for scale in tta.scales:
        short, long = (max(1, round(side * scale)) for side in (preprocessing.short_side, preprocessing.max_side))
        try:
            sizes.append(replace(preprocessing, short_side=short, max_side=max(short, long)))
        except ConfigError as error:
            raise ConfigError(f"tta.scales has {scale}, too much for this detector: {error}") from error
    return tuple(sizes)


def flipped(images: Float[Tensor, "batch 3 height width"], flip: Flip) -> Float[Tensor, "batch 3 height width"]:
    """Images seen in a direction. They must have no padding."""
    axes = [axis for axis, turned in ((-1, flip.horizontal), (-2, flip.vertical)) if turned]
    return images.flip(axes) if axes else images


def flipped_back(detections: Detections, size_wh: tuple[int, int], flip: Flip) -> Detections:
    """Detections in a flipped image, with their boxes in pixels of the image itself.

    Args:
        detections: boxes in pixels, as if the flipped image were the original.
        size_wh: width and height of the original image in pixels.
        flip: direction it was seen in.
    """
    left, top, right, bottom = detections.boxes_xyxy.unbind(-1)
    width, height = size_wh
    if flip.horizontal:
        left, right = width - right, width - left
    if flip.vertical:
        top, bottom = height - bottom, height - top
    return Detections(
        torch.stack([left, top, right, bottom], dim=-1),
        detections.scores,
        detections.class_ids,
        detections.query_ids,
        classes=detections.classes,
        category_ids=detections.category_ids,
    )


def detect_views(
    detect: Callable[[Tensor], list[Detections]],
    images: Float[Tensor, "batch 3 height width"],
    sizes_wh: Sequence[tuple[int, int]],
    flips: Sequence[Flip],
) -> list[list[Detections]]:
    """Detections of each image of a batch, in each direction, all in pixels of the original images.

    Args:
        detect: detections of a batch of preprocessed images, in pixels of images of these sizes.
        images: preprocessed images without padding.
        sizes_wh: width and height of each original image in pixels.
        flips: directions.
    """
    by_flip = [
        [flipped_back(one, size, flip) for one, size in zip(detect(flipped(images, flip)), sizes_wh, strict=True)]
        for flip in flips
    ]
    return [list(views) for views in zip(*by_flip, strict=True)]


def merged(
    views: Sequence[Detections], settings: TTA, *, max_detections: int = 100, threshold: float = 0.0
) -> Detections:
    """Detections of all views of an image as one, best score first; boxes of different classes never meet.

    Merged boxes come from several queries, or none in particular: their `query_ids` are -1.

    Args:
        views: detections in each view, at least one, with boxes in pixels of the image itself.
        settings: how to merge.
        max_detections: largest number of detections.
        threshold: lowest score that is kept, in 0..1.
    """
    boxes = torch.cat([one.boxes_xyxy for one in views]).double().numpy()
    scores = torch.cat([one.scores for one in views]).double().numpy()
    labels = torch.cat([one.class_ids for one in views]).numpy()
    parts = []
    for label in np.unique(labels):
        own = labels == label
        if settings.merge == "wbf":
            found = weighted_box_fusion(boxes[own], scores[own], num_views=len(views), iou=settings.iou)
        else:
            found = soft_nms(boxes[own], scores[own], iou=settings.iou)
        parts.append((*found, np.full(len(found[1]), label)))
    if parts:
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    best = np.argsort(-scores, kind="stable")[:max_detections]
    best = best[scores[best] >= threshold]
    first = views[0]
    return Detections(
        torch.from_numpy(boxes[best]).to(first.boxes_xyxy.dtype),
        torch.from_numpy(scores[best]).to(first.scores.dtype),
        torch.from_numpy(labels[best]),
        classes=first.classes,
        category_ids=first.category_ids,
    )


def weighted_box_fusion(
    boxes_xyxy: np.ndarray, scores: np.ndarray, *, num_views: int, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fused boxes (fused, 4) and their scores (fused,), in no order (Solovyev et al. 2021, arXiv 1910.13302).

    From the best score on, each box joins the fused box that it overlaps most, or begins one where none overlaps
    enough. A fused box is the mean of its members, weighted by their scores. Its score is their mean, times the share
    of the views that it was found in; more members than views count as all of them.

    Args:
        boxes_xyxy: boxes of one class from all views, (boxes, 4).
        scores: their scores, (boxes,), in 0..1.
        num_views: number of views that were looked at.
        iou: overlap above which a box joins a fused one.
    """
    fused = np.zeros((len(boxes_xyxy), 4))
    weighted, weights, members = np.zeros_like(fused), np.zeros(len(fused)), np.zeros(len(fused))
    count = 0
    for index in np.argsort(-scores, kind="stable"):
        overlaps = _overlaps(boxes_xyxy[index], fused[:count])
        joined = int(overlaps.argmax()) if count else 0
        if not count or overlaps[joined] <= iou:
            joined, count = count, count + 1
        weighted[joined] += scores[index] * boxes_xyxy[index]
        weights[joined] += scores[index]
        members[joined] += 1
        # A score of exactly 0 has no weight; the box that began it is then as good as any.
        fused[joined] = weighted[joined] / weights[joined] if weights[joined] > 0 else boxes_xyxy[index]
    found = np.minimum(members, num_views)[:count] / num_views
    return fused[:count], weights[:count] / members[:count] * found


def soft_nms(boxes_xyxy: np.ndarray, scores: np.ndarray, *, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (boxes, 4), best first, and their lowered scores (boxes,) (Bodla et al. 2017, arXiv 1704.04503, linear).

    The best box is taken; those left that overlap it by more than `iou` keep the share 1 - IoU of their scores; and so
    on with the best of them.
    """
    boxes, left = boxes_xyxy.copy(), scores.copy()
    for taken in range(len(left)):
        best = taken + int(left[taken:].argmax())
        boxes[[taken, best]], left[[taken, best]] = boxes[[best, taken]], left[[best, taken]]
        overlaps = _overlaps(boxes[taken], boxes[taken + 1 :])
        left[taken + 1 :] *= np.where(overlaps > iou, 1 - overlaps, 1.0)
    return boxes, left


def _overlaps(box_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """IoU of one box with each of several."""
    return overlap_ratio(torch.from_numpy(box_xyxy), torch.from_numpy(boxes_xyxy)).numpy()
