"""COCO metrics of detections: the twelve numbers and those of each class, as pycocotools defines them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import ConfigError, DataError
from deformable_detr.data.crowding import MOST_EVALUATED
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.coco_document import to_document

AT_QUERIES = "@queries"
"""End of the name of a metric with as many detections of an image as the model has queries, which is not COCO's."""


class ClassMetrics(NamedTuple):
    """Average precision and recall of one class, 0..1; -1 where the data set has no object of it."""

    ap: float
    """AP, the mean over IoU thresholds 0.50, 0.55 ... 0.95."""
    ap50: float
    """AP at an IoU threshold of 0.50."""
    ap75: float
    """AP at an IoU threshold of 0.75."""
    ar: float
    """Recall with 100 detections per image, or as many as count, the mean over the IoU thresholds."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """COCO's twelve numbers, 0..1; -1 where there is no object to find (none at all, or none of that size).

    They are COCO's if `max_detections` is 100. Another number stands in the place of 100 everywhere below: such numbers
    are like COCO's, but must not be called so or compared with them.

    AP is the mean over classes and over the IoU thresholds 0.50, 0.55 ... 0.95. AR is the recall reached with a given
    number of detections per class and image, the mean over the same. Small objects have an area below 32 x 32 pixels,
    large ones of 96 x 96 pixels or more.
    """

    ap: float
    """AP over all sizes."""
    ap50: float
    """AP at an IoU threshold of 0.50."""
    ap75: float
    """AP at an IoU threshold of 0.75."""
    ap_small: float
    """AP of small objects."""
    ap_medium: float
    """AP of medium objects."""
    ap_large: float
    """AP of large objects."""
    ar_1: float
    """AR with 1 detection."""
    ar_10: float
    """AR with 10 detections."""
    ar_100: float
    """AR with 100 detections."""
    ar_small: float
    """AR with 100 detections, small objects."""
    ar_medium: float
    """AR with 100 detections, medium objects."""
    ar_large: float
    """AR with 100 detections, large objects."""
    per_class: dict[str, ClassMetrics] = field(default_factory=dict)
    """Metrics by class name, in the order of the data set's classes; a name that occurs twice has its category id
    added."""
    max_detections: int = MOST_EVALUATED
    """Most detections per class and image that count, all but in `ar_1` and `ar_10`."""

    def twelve(self) -> dict[str, float]:
        """Twelve numbers by name, in COCO's order; "ar_100" is called after `max_detections`, such as "ar_300"."""
        own = f"ar_{self.max_detections}"
        return {own if name == "ar_100" else name: getattr(self, name) for name in _TWELVE}

    def value(self, name: str) -> float:
        """Metric by its name: one of the twelve, such as "ap50", or of a class, such as "cat/ap".

        "@queries" behind the name says which metrics are asked, not which of them, and is left out.

        Raises:
            ConfigError: there is no such metric or class.
        """
        check_metric_name(name)
        name = name.removesuffix(AT_QUERIES)
        class_name, slash, kind = name.rpartition("/")
        if not slash:
            return float(getattr(self, name))
        if class_name not in self.per_class:
            raise ConfigError(f"there is no {name}: the classes are {', '.join(self.per_class)}")
        return float(getattr(self.per_class[class_name], kind))


_TWELVE = tuple(one.name for one in fields(Metrics) if one.name not in ("per_class", "max_detections"))


def check_metric_name(name: str) -> None:
    """Refuse a name that is no metric for any data set; see `Metrics.value`.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    _, slash, kind = name.removesuffix(AT_QUERIES).rpartition("/")
    if kind not in (ClassMetrics._fields if slash else _TWELVE):
        hint = ""
        if not slash and re.fullmatch(r"ar_\d+", kind):  # as `Metrics.twelve` calls it
            hint = f"; the recall with as many detections as queries, such as {kind}, is ar_100{AT_QUERIES}"
        raise ConfigError(
            f"no metric {name!r}; there are {', '.join(_TWELVE)}, and of each class CLASS/"
            f"{', CLASS/'.join(ClassMetrics._fields)}; with {AT_QUERIES} behind it for more than COCO's 100 detections"
            f"{hint}"
        )


def coco_metrics(
    detections: Sequence[Detections], dataset: DetectionDataset, *, max_detections: int = MOST_EVALUATED
) -> Metrics:
    """COCO metrics of detections on a data set.

    A detection that overlaps a crowd region does not count as wrong. Sizes are by the samples' `areas`.

    Args:
        detections: one entry for each sample, in the order of the samples.
        dataset: the ground truth.
        max_detections: most detections per class and image that count, at least 11; COCO's number is 100. It is the
            last of pycocotools' `params.maxDets`.
    """
    return metrics_from_coco(
        coco_ground_truth(dataset), to_coco_results(detections, dataset), max_detections=max_detections
    )


def metrics_from_coco(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, max_detections: int = MOST_EVALUATED
) -> Metrics:
    """COCO metrics of a result file's content against an annotation file's content.

    Annotation ids play no part. With pycocotools they do: there an object with id 0 is never found.

    Args:
        ground_truth: content of an annotation file.
        results: content of a result file.
        max_detections: see `coco_metrics`.

    Raises:
        ValueError: `max_detections` is less than 11, so that it is not the largest of the numbers that count.
        DataError: there is nothing to evaluate, ids are not unique, or a detection is of an image or category that the
            ground truth does not list.
    """
    evaluation = evaluated(ground_truth, results, max_detections=max_detections)
    ranks = category_ranks([category["id"] for category in ground_truth["categories"]])
    arrays = evaluation.eval
    assert arrays is not None
    return _summary(
        np.asarray(arrays["precision"]),
        np.asarray(arrays["recall"]),
        [(ranks[category["id"]], category) for category in ground_truth["categories"]],
        max_detections,
    )


def evaluated(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, max_detections: int = MOST_EVALUATED
) -> Any:
    """Evaluation by hotcoco, accumulated; more than the metrics can be read from it.

    Inside it, the ids of images and categories are their ranks, from 1. The ids of annotations and detections are
    their positions, from 1.

    Raises:
        DataError: see `metrics_from_coco`.
    """
    from hotcoco import COCO, COCOeval

    if max_detections <= 10:
        raise ValueError(f"max_detections is {max_detections}; it must be at least 11, as COCO counts 10 apart")
    images = _ranks("image", [image["id"] for image in ground_truth["images"]])
    categories = _ranks("category", [category["id"] for category in ground_truth["categories"]])
    if not images or not categories:
        raise DataError(f"nothing to evaluate: {len(images)} images, {len(categories)} classes")
    truth = COCO(_renumbered(ground_truth, images, categories))
    evaluation = COCOeval(truth, truth.load_res(_result_rows(results, images, categories)), "bbox")
    evaluation.params.max_dets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def category_ranks(category_ids: Sequence[int]) -> dict[int, int]:
    """Position of each category in the arrays of `evaluated`, from 0, by category id."""
    return {id_: rank - 1 for id_, rank in _ranks("category", category_ids).items()}


def to_coco_results(detections: Sequence[Detections], dataset: DetectionDataset) -> list[dict[str, Any]]:
    """Detections as the entries of a COCO result file.

    Numbers are the exact values of the tensors: a file that is written and read again gives the same metrics.

    Args:
        detections: one entry for each sample, in the order of the samples.
        dataset: the images; their ids and the category ids are used.

    Returns:
        For each detection its image id, category id, box as left, top, width and height in pixels, and score.

    Raises:
        ValueError: there are more or fewer entries than images.
    """
    if len(detections) != len(dataset):
        raise ValueError(f"there are detections for {len(detections)} images, the data set has {len(dataset)}")
    return [
        result
        for sample, found in zip(dataset.samples, detections, strict=True)
        for result in found.with_classes(dataset.classes, dataset.category_ids).to_coco(sample.image_id)
    ]


def coco_ground_truth(dataset: DetectionDataset) -> dict[str, Any]:
    """Content of a COCO annotation file for the data set, with the ids of its source."""
    return to_document(dataset, [sample.path.name for sample in dataset.samples])


def _ranks(what: str, ids: Sequence[int]) -> dict[int, int]:
    """Rank of each id, from 1. Ranks allow any integers as ids, and keep COCO's order where scores are equal."""
    ranks = {id_: rank for rank, id_ in enumerate(sorted(ids), start=1)}
    if len(ranks) < len(ids):
        twice = next(id_ for id_, count in Counter(ids).items() if count > 1)
        raise DataError(f"{what} id {twice} occurs more than once; evaluation needs ids that differ")
    return ranks


def _renumbered(ground_truth: dict[str, Any], images: dict[int, int], categories: dict[int, int]) -> dict[str, Any]:
    return {
        "images": [
            {"id": images[image["id"]], "width": image["width"], "height": image["height"]}
            for image in ground_truth["images"]
        ],
        "categories": [{"id": rank, "name": str(rank)} for rank in categories.values()],
        "annotations": [
            {
                "id": position,
                "image_id": images[annotation["image_id"]],
                "category_id": categories[annotation["category_id"]],
                "bbox": annotation["bbox"],
                "area": annotation["area"],
                "iscrowd": annotation["iscrowd"],
            }
            for position, annotation in enumerate(ground_truth["annotations"], start=1)
        ],
    }


def _result_rows(
    results: Sequence[dict[str, Any]], images: dict[int, int], categories: dict[int, int]
) -> Float[np.ndarray, "detections 7"]:
    for result in results:
        if result["image_id"] not in images or result["category_id"] not in categories:
            raise DataError(
                f"a detection has image id {result['image_id']} and category id {result['category_id']}; "
                "the ground truth does not have both"
            )
    rows = [
        (images[result["image_id"]], *result["bbox"], result["score"], categories[result["category_id"]])
        for result in results
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 7)


def _summary(
    precision: Float[np.ndarray, "thresholds recalls categories areas limits"],
    recall: Float[np.ndarray, "thresholds categories areas limits"],
    categories: Sequence[tuple[int, dict[str, Any]]],
    max_detections: int,
) -> Metrics:
    """Metrics from the arrays of an evaluation.

    Areas are all, small, medium and large; limits are 1, 10 and `max_detections` detections. Categories come with their
    positions in the arrays.
    """
    names = Counter(category["name"] for _, category in categories)
    per_class = {}
    for position, category in categories:
        name = category["name"] if names[category["name"]] == 1 else f"{category['name']} ({category['id']})"
        own = precision[:, :, position, 0, 2]
        per_class[name] = ClassMetrics(_mean(own), _mean(own[0]), _mean(own[5]), _mean(recall[:, position, 0, 2]))
    return Metrics(
        ap=_mean(precision[..., 0, 2]),
        ap50=_mean(precision[0, ..., 0, 2]),
        ap75=_mean(precision[5, ..., 0, 2]),
        ap_small=_mean(precision[..., 1, 2]),
        ap_medium=_mean(precision[..., 2, 2]),
        ap_large=_mean(precision[..., 3, 2]),
        ar_1=_mean(recall[..., 0, 0]),
        ar_10=_mean(recall[..., 0, 1]),
        ar_100=_mean(recall[..., 0, 2]),
        ar_small=_mean(recall[..., 1, 2]),
        ar_medium=_mean(recall[..., 2, 2]),
        ar_large=_mean(recall[..., 3, 2]),
        per_class=per_class,
        max_detections=max_detections,
    )


def _mean(values: Float[np.ndarray, "..."]) -> float:
    """Mean of the values that are defined; -1 if none is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
