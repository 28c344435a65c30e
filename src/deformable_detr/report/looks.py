"""Explanations for the report: where the network looked for its best hit, its worst mistake, and a missed object."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from deformable_detr.core.boxes import overlap_ratio
from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import ConfigError, DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.images import read_image
from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.explain import MOST_EXPLAINED, explain
from deformable_detr.inference.explanation import Explanation
from deformable_detr.inference.explanation_drawing import draw_points
from deformable_detr.inference.explanation_words import in_words

_SIDE = 360
_QUALITY = 85
# The detection in one image alone is that of the evaluation from this IoU on: rounding may differ a little.
_SAME_IOU = 0.7


class Look(NamedTuple):
    """Explanation of one detection or missed object, with its picture."""

    title: str
    """Reason why it is shown, with its class."""
    words: str
    """Description of the picture."""
    image_name: str
    """Name of the image file, without its folder."""
    picture: str
    """Picture with the sampling points, a JPEG as a data URI."""
    size_wh: tuple[int, int]
    """Size of the picture, in pixels."""


class Looks(NamedTuple):
    """Explanations for the report."""

    shown: list[Look]
    """Explanations of the best hit, of the worst false positive, and of a missed object, as far as there are any."""
    note: str
    """Reason why something is missing; empty if nothing is."""


def looks_of(
    detector: Detector, analysis: Analysis, detections: Sequence[Detections], dataset: DetectionDataset
) -> Looks:
    """Explanations of the best hit, the worst false positive and a missed object of an evaluation.

    A network that cannot be explained and an image that cannot be read are said in the note, and no error.

    Args:
        detector: detector that was evaluated.
        analysis: analysis of the detections.
        detections: one entry for each image.
        dataset: images, in the same order.
    """
    found, truth, threshold = analysis.found, analysis.truth, analysis.threshold
    shown: list[Look] = []
    lost = ""
    try:
        for title, wanted in (("Best hit", found.is_hit), ("Worst false positive", ~found.is_hit)):
            chosen = np.flatnonzero(wanted & (found.scores >= threshold))
            if not len(chosen):
                continue
            position = int(chosen[found.scores[chosen].argmax()])
            image, row = int(found.image[position]), int(found.row[position])
            look = _of_detection(detector, dataset, image, detections[image][row : row + 1], title)
            if look is None:
                lost = "Not shown: a detection that this image has in a batch, and not alone."
            else:
                shown.append(look)
        missed = np.flatnonzero(truth.found_at < threshold)
        if len(missed):
            position = int(missed[np.lexsort((-truth.areas[missed], truth.found_at[missed]))[0]])
            shown.append(_of_object(detector, dataset, int(truth.image[position]), int(truth.row[position]), threshold))
    except (ConfigError, DataError) as error:
        return Looks(shown, f"Not shown: {error}.")
    except torch.OutOfMemoryError:
        return Looks(shown, f"Not shown: there is not enough memory on {detector.device}.")
    return Looks(shown, lost)


def _of_detection(
    detector: Detector, dataset: DetectionDataset, image: int, wanted: Detections, title: str
) -> Look | None:
    """Explanation of a detection; None if it is not among the best of its image when that is alone."""
    photo = read_image(dataset.samples[image])
    threshold = 0.9 * float(wanted.scores[0])
    explanation = explain(detector, photo, threshold=threshold, most=MOST_EXPLAINED)
    found = explanation.detections
    overlaps = overlap_ratio(wanted.boxes_xyxy[0].cpu(), found.boxes_xyxy)
    same = overlaps.where(found.class_ids == wanted.class_ids[0].cpu(), 0.0)
    if not len(found) or float(same.max()) < _SAME_IOU:
        return None
    index = int(same.argmax())
    return _look(f"{title}: {_class_name(dataset, found[index].class_id)}", explanation, index, photo, dataset, image)


def _of_object(detector: Detector, dataset: DetectionDataset, image: int, row: int, threshold: float) -> Look:
    """Explanation of a missed object: what is in its middle, or the query that came nearest."""
    sample = dataset.samples[image]
    photo = read_image(sample)
    left, top, right, bottom = (float(side) for side in sample.boxes_xyxy[row])
    place = (
        min(max((left + right) / 2, 0.0), float(photo.width)),
        min(max((top + bottom) / 2, 0.0), float(photo.height)),
    )
    explanation = explain(detector, photo, threshold=threshold, at=place)
    title = f"Missed: {_class_name(dataset, int(sample.class_ids[row]))}"
    return _look(title, explanation, 0, photo, dataset, image)


def _class_name(dataset: DetectionDataset, class_id: int) -> str:
    return dataset.classes[class_id]


def _look(
    title: str, explanation: Explanation, index: int, photo: Image.Image, dataset: DetectionDataset, image: int
) -> Look:
    picture = draw_points(photo, explanation, index, long_side=_SIDE, legend=False)
    stream = io.BytesIO()
    # Dots and thin lines need their colours whole.
    picture.save(stream, format="JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return Look(title, in_words(explanation, index), dataset.samples[image].path.name, uri, picture.size)
