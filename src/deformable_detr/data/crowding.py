"""Images with more objects than a model has queries, or than an evaluation counts detections."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from deformable_detr.data.dataset import DetectionDataset

MOST_EVALUATED = 100
"""Most detections of an image that COCO's numbers count."""
FEWEST_QUERIES = 25
"""Number of queries that every recipe has at least: with fewer objects there is nothing to say."""
MOST_FITTED = 1000
"""Most queries that a training takes by itself: DINO's 900 and some. More are a choice, for what they cost."""
_STEP = 100


class Crowding(NamedTuple):
    """Objects of images that have more of them than a limit; crowd regions do not count."""

    limit: int
    """Number of objects that an image may have."""
    num_crowded: int
    """Number of images with more objects."""
    num_images: int
    """Number of all images."""
    most: int
    """Most objects of an image."""
    num_beyond: int
    """Number of objects beyond the limit, in all images."""
    num_objects: int
    """Number of all objects."""


def crowding(datasets: Iterable[DetectionDataset], limit: int) -> Crowding | None:
    """Objects beyond a limit in the images of data sets; None if no image has more."""
    counts = [int((~sample.is_crowd).sum()) for dataset in datasets for sample in dataset.samples]
    most = max(counts, default=0)
    if most <= limit:
        return None
    array = np.array(counts)
    return Crowding(
        limit, int((array > limit).sum()), len(counts), most, int(np.maximum(array - limit, 0).sum()), sum(counts)
    )


def most_objects(dataset: DetectionDataset) -> int:
    """Most objects of an image of a data set; crowd regions do not count."""
    return max((int((~sample.is_crowd).sum()) for sample in dataset.samples), default=0)


def wanted_queries(most: int) -> int:
    """Number of queries for images of up to `most` objects: the smallest multiple of 100 from 1.5 x `most` on.

    With as many queries as objects, a query that looks at the wrong place or at the same one as another costs an
    object; half as many again are to spare.
    """
    return -(-3 * most // (2 * _STEP)) * _STEP


def fitted_queries(own: int, most: int) -> int:
    """Number of queries that a training takes for images of up to `most` objects.

    Args:
        own: number in the settings, which is never lowered.
        most: most objects of a training image.

    Returns:
        `own` if that is at least 1.5 x `most`; else `wanted_queries`, but not more than `MOST_FITTED`.
    """
    return own if 2 * own >= 3 * most else max(own, min(MOST_FITTED, wanted_queries(most)))


def queries_text(crowded: Crowding, model: str, *, way_out: str | None = None) -> str:
    """Sentence on objects beyond the number of queries.

    Args:
        crowded: the objects; its limit is the number of queries.
        model: whose queries these are, in words.
        way_out: what to do about it; a setting for training, if left out.
    """
    return (
        f"{_subject(crowded)} more objects than the {crowded.limit} queries of {model}, up to {crowded.most}: "
        f"{crowded.num_beyond} of {crowded.num_objects} objects can be neither learnt nor found; "
        f"{way_out or f'train with --set model.num_queries={wanted_queries(crowded.most)}'}"
    )


def denoising_text(crowded: Crowding) -> str:
    """Sentence on objects beyond the number of denoising queries."""
    return (
        f"{_subject(crowded)} more objects than the {crowded.limit} denoising queries, up to {crowded.most}: each step "
        f"learns denoising from {crowded.limit} of them, drawn anew; for all of them train with --set "
        f"model.denoising_queries={crowded.most}, which needs more memory"
    )


def evaluation_text(crowded: Crowding, *, way_out: str | None = None) -> str:
    """Sentence on objects beyond the number of detections that an evaluation counts.

    Args:
        crowded: the objects; its limit is the number of detections.
        way_out: what to do about it; an option for an evaluation, if left out.
    """
    reached = 1 - crowded.num_beyond / crowded.num_objects
    return (
        f"{_subject(crowded)} more objects than the {crowded.limit} detections of an image that the evaluation counts, "
        f"up to {crowded.most}: no detector can find more than {100 * reached:.1f} % of the objects there; "
        f"{way_out or f'evaluate with --max-detections {wanted_queries(crowded.most)}, or cut the images into tiles'}"
    )


def _subject(crowded: Crowding) -> str:
    have = "has" if crowded.num_crowded == 1 else "have"
    return f"{crowded.num_crowded} of {crowded.num_images} images {have}"
