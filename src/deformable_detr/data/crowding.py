"""Images with more objects than a model has queries, or than an evaluation counts detections."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from deformable_detr.data.dataset import DetectionDataset

MOST_EVALUATED = 100
"""Most detections of an image that COCO's numbers count."""
FEWEST_QUERIES = 25
"""Number of queries that every recipe has at least: with fewer objects there is nothing to say."""
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


def queries_text(crowded: Crowding, model: str, *, way_out: str | None = None) -> str:
    """Sentence on objects beyond the number of queries.

    Args:
        crowded: the objects; its limit is the number of queries.
        model: whose queries these are, in words.
        way_out: what to do about it; a setting for training, if left out.
    """
    wanted = (crowded.most // _STEP + 1) * _STEP
    return (
        f"{_subject(crowded)} more objects than the {crowded.limit} queries of {model}, up to {crowded.most}: "
        f"{crowded.num_beyond} of {crowded.num_objects} objects can be neither learnt nor found; "
        f"{way_out or f'train with --set model.num_queries={wanted}'}"
    )


def denoising_text(crowded: Crowding) -> str:
    """Sentence on objects beyond the number of denoising queries."""
    return (
        f"{_subject(crowded)} more objects than the {crowded.limit} denoising queries, up to {crowded.most}: each step "
        f"learns denoising from {crowded.limit} of them, drawn anew; for all of them train with --set "
        f"model.denoising_queries={crowded.most}, which needs more memory"
    )


def evaluation_text(crowded: Crowding) -> str:
    """Sentence on objects beyond the number of detections that an evaluation counts."""
    reached = 1 - crowded.num_beyond / crowded.num_objects
    return (
        f"{_subject(crowded)} more objects than the {crowded.limit} detections of an image that the evaluation counts, "
        f"up to {crowded.most}: no detector can find more than {100 * reached:.1f} % of the objects there; "
        f"evaluate with --max-detections {(crowded.most // _STEP + 1) * _STEP}, or cut the images into tiles"
    )


def _subject(crowded: Crowding) -> str:
    have = "has" if crowded.num_crowded == 1 else "have"
    return f"{crowded.num_crowded} of {crowded.num_images} images {have}"
