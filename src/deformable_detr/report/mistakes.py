"""Worst mistakes as pictures: detections that are wrong, and objects that were missed."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.images import read_image
from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.evaluation.box_outcomes import FAR, fault, iou_with
from deformable_detr.inference.drawing import draw_detections

_MOST = 12
_PER_IMAGE = 2
_SIDE = 300
_QUALITY = 80
# Smallest side of the part of the image that is shown: in sides of the box, and as a share of the image's longer side.
_AROUND, _LEAST_SHARE = 3.0, 0.25


class Mistake(NamedTuple):
    """Mistake of the detector, with a picture."""

    title: str
    """Class, and score or size."""
    explanation: str
    """Reason why it is a mistake, for people."""
    image_name: str
    """Name of the image file, without its folder."""
    picture: str
    """Picture of the place, a JPEG as a data URI."""
    size_wh: tuple[int, int]
    """Size of the picture, in pixels."""


class Mistakes(NamedTuple):
    """Worst mistakes of each kind, the worst first."""

    false_positives: list[Mistake]
    """Detections that are wrong, the highest score first."""
    misses: list[Mistake]
    """Objects that were missed, those found with the lowest score first, then the largest first."""
    unreadable: list[str]
    """Reasons why pictures are missing."""


def worst_examples(
    analysis: Analysis,
    detections: Sequence[Detections],
    dataset: DetectionDataset,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Mistakes:
    """Worst mistakes at the threshold of the analysis, at most 12 of each kind and two of each kind from one image.

    Args:
        analysis: the analysis of the detections.
        detections: one entry for each image.
        dataset: the images, in the same order.
        on_progress: called with the number of pictures that are drawn, and the number of all.
    """
    pictures = _Pictures(detections, dataset, analysis.threshold)
    false, missed = _false_positives(analysis), _misses(analysis)
    examples: tuple[list[Mistake], list[Mistake]] = ([], [])
    done = 0
    for number, (positions, make) in enumerate(((false, pictures.false_positive), (missed, pictures.miss))):
        for position in positions:
            example = make(analysis, position)
            done += 1
            if example is not None:
                examples[number].append(example)
            if on_progress is not None:
                on_progress(done, len(false) + len(missed))
    return Mistakes(*examples, list(dict.fromkeys(pictures.unreadable)))


def _false_positives(analysis: Analysis) -> list[int]:
    found = analysis.found
    wrong = np.flatnonzero(~found.is_hit & (found.scores >= analysis.threshold))
    return _spread(wrong[np.argsort(-found.scores[wrong], kind="stable")].tolist(), found.image.tolist())


def _misses(analysis: Analysis) -> list[int]:
    truth = analysis.truth
    missed = np.flatnonzero(truth.found_at < analysis.threshold)
    worst_first = np.lexsort((-truth.areas[missed], truth.found_at[missed]))
    return _spread(missed[worst_first].tolist(), truth.image.tolist())


def _spread(positions: Sequence[int], image_of: Sequence[int]) -> list[int]:
    """First 12 of these positions, with at most two from one image."""
    chosen: list[int] = []
    taken: dict[int, int] = {}
    for position in positions:
        image = image_of[position]
        if taken.get(image, 0) < _PER_IMAGE:
            taken[image] = taken.get(image, 0) + 1
            chosen.append(position)
        if len(chosen) == _MOST:
            break
    return chosen


class _Pictures:
    """Pictures of mistakes: a part of the image, with detections and objects drawn in."""

    def __init__(self, detections: Sequence[Detections], dataset: DetectionDataset, threshold: float) -> None:
        self._detections, self._dataset, self._threshold = detections, dataset, threshold
        self.unreadable: list[str] = []

    def false_positive(self, analysis: Analysis, position: int) -> Mistake | None:
        """Picture of a wrong detection with all objects of its image; None if the image cannot be read."""
        found, classes = analysis.found, self._dataset.classes
        image, row = int(found.image[position]), int(found.row[position])
        sample = self._dataset.samples[image]
        one = self._detections[image][row : row + 1]
        class_id, score = int(found.class_ids[position]), float(found.scores[position])
        kind, meant, overlap = fault(one.boxes_xyxy[0].double().cpu().numpy(), class_id, sample)
        meaning = {
            "background": "nothing is there" if overlap == 0 else f"nothing is there (overlap {overlap:.2f})",
            "duplicate": f"found already (overlap {overlap:.2f})",
            "poor box": f"the box is off (overlap {overlap:.2f})",
        }
        if meant is not None and kind.startswith("wrong class"):
            actual = classes[int(sample.class_ids[meant])]
            meaning[kind] = f"it is {actual!r} (overlap {overlap:.2f})"
        return self._example(f"{classes[class_id]} {score:.2f}", meaning[kind], sample, one, sample)

    def miss(self, analysis: Analysis, position: int) -> Mistake | None:
        """Picture of a missed object with the detections that overlap it; None if the image cannot be read."""
        truth = analysis.truth
        image, row = int(truth.image[position]), int(truth.row[position])
        sample = self._dataset.samples[image]
        one = replace(
            sample,
            boxes_xyxy=sample.boxes_xyxy[row : row + 1],
            class_ids=sample.class_ids[row : row + 1],
            is_crowd=sample.is_crowd[row : row + 1],
            areas=sample.areas[row : row + 1],
            object_ids=sample.object_ids[row : row + 1],
        )
        width, height = (one.boxes_xyxy[0, 2:] - one.boxes_xyxy[0, :2]).tolist()
        score = float(truth.found_at[position])
        why = "found at no score" if score < 0 else f"found with a score of {score:.2f} only"
        title = f"{self._dataset.classes[int(truth.class_ids[position])]}, {width:.0f} x {height:.0f} px"
        # Only detections that may have been about this object: all detections would hide it.
        every = self._detections[image]
        near = iou_with(one.boxes_xyxy[0].astype(np.float64), every.boxes_xyxy.double().cpu().numpy()) >= FAR
        return self._example(title, why, sample, every[near], one)

    def _example(
        self, title: str, explanation: str, sample: Sample, shown: Detections, truth: Sample
    ) -> Mistake | None:
        try:
            image = read_image(sample)
        except DataError as error:
            self.unreadable.append(str(error))
            return None
        boxes = shown.boxes_xyxy if len(shown.scores) == 1 and truth is sample else None
        centre = truth.boxes_xyxy[0].astype(np.float64) if boxes is None else boxes[0].double().cpu().numpy()
        left, top, right, bottom = _cut(centre, image.size)
        scale = _SIDE / max(right - left, bottom - top)
        picture = draw_detections(
            image.crop((left, top, right, bottom)),
            Detections(shown.boxes_xyxy - shown.boxes_xyxy.new_tensor([left, top] * 2), shown.scores, shown.class_ids),
            self._dataset.classes,
            threshold=self._threshold,
            ground_truth=replace(truth, boxes_xyxy=truth.boxes_xyxy - np.array([left, top, left, top])),
            scale=scale,
        )
        return Mistake(title, explanation, sample.path.name, _data_uri(picture), picture.size)


def _cut(box_xyxy: Float[np.ndarray, "4"], size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """Window around a box, as left, top, right and bottom in pixels: inside the image, and square if it has room."""
    longest = max(box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1])
    side = max(longest * _AROUND, _LEAST_SHARE * max(size_wh), 16)
    edges = []
    for axis, length in enumerate(size_wh):
        extent = min(round(side), length)
        middle = (box_xyxy[axis] + box_xyxy[axis + 2]) / 2
        first = int(min(max(0, round(middle - extent / 2)), length - extent))
        edges.append((first, first + extent))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _data_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
