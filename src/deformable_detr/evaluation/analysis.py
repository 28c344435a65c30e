"""Analysis of the detections on a data set beyond AP: thresholds, confusion, kinds of errors, calibration, sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from deformable_detr.core.detections import Detections
from deformable_detr.data.dataset import MEDIUM_AREA, SMALL_AREA, DetectionDataset
from deformable_detr.evaluation.box_outcomes import FAR, OVERLAP, FoundBoxes, TrueBoxes, match
from deformable_detr.evaluation.coco_metrics import category_ranks, coco_ground_truth, evaluated, to_coco_results
from deformable_detr.evaluation.evaluate import EvaluationReport

# Rounded to float32 as scores are. `predict` keeps a score of 0.3 at a threshold of 0.3; here it has to count, too.
THRESHOLDS = (np.arange(1, 100) / 100).astype(np.float32).astype(np.float64)
"""Score thresholds that are tried: 0.01, 0.02 ... 0.99, ascending."""
_CONFIDENT = 0.1
_BINS = 10


class Curves(NamedTuple):
    """Curves of one class, or means of all: precision, recall, F1 over the threshold; precision over recall."""

    name: str
    """Name of the class; "all classes" for the means."""
    num_objects: int
    """Objects to find; crowd regions do not count."""
    recalls: Float[np.ndarray, "101"]
    """Recalls 0, 0.01 ... 1, ascending."""
    precision_at: Float[np.ndarray, "101"]
    """Precision at each of `recalls`, 0..1, as COCO defines it: the best at this recall or a higher one; NaN without
    objects."""
    precision: Float[np.ndarray, "thresholds"]
    """Precision at each of `THRESHOLDS`, 0..1; NaN where no detection has such a score."""
    recall: Float[np.ndarray, "thresholds"]
    """Recall at each of `THRESHOLDS`, 0..1; NaN without objects."""
    f1: Float[np.ndarray, "thresholds"]
    """F1 at each of `THRESHOLDS`, 0..1."""

    @property
    def best(self) -> int:
        """Position in `THRESHOLDS` of the highest F1; the middle one where several are equally high."""
        equal = np.flatnonzero(self.f1 == self.f1.max())
        return int(equal[len(equal) // 2])

    @property
    def threshold(self) -> float:
        """Score threshold of the highest F1."""
        return float(THRESHOLDS[self.best])


class Calibration(NamedTuple):
    """Calibration of the scores: mean score and share of right detections in ten bins of the score."""

    counts: list[int]
    """Number of detections with a score in 0..0.1, 0.1..0.2, ... 0.9..1."""
    scores: list[float]
    """Mean score in each bin, 0..1; NaN in an empty bin."""
    shares: list[float]
    """Share of the detections in each bin that found an object, 0..1; NaN in an empty bin."""
    error: float
    """Expected calibration error, 0..1: distance between mean score and share, averaged over all detections."""
    confident_error: float
    """Expected calibration error over detections with a score of at least 0.1. The many with a score near 0 are
    rightly so, and make `error` look better."""


class Errors(NamedTuple):
    """Errors of one kind."""

    name: str
    """Name of the kind, for people."""
    meaning: str
    """Explanation of the kind, for people."""
    lost: float | None
    """AP50, 0..1, that would be gained if all errors of this kind were repaired; None without detections."""
    at_threshold: int
    """Number of these errors at the threshold."""


class SizeGroup(NamedTuple):
    """Accuracy on objects of one of COCO's sizes."""

    name: str
    """Name of the size: "small", "medium" or "large"."""
    ap: float
    """AP, 0..1; -1 without objects of this size."""
    ar: float
    """AR with 100 detections per class and image, 0..1; -1 without objects of this size."""
    objects: int
    """Number of objects of this size."""
    found: int
    """Number of these that are found at the threshold."""


class Analysis(NamedTuple):
    """Findings about the detections on a data set, all that a report shows."""

    found: FoundBoxes
    """Every detection that counts."""
    truth: TrueBoxes
    """Every object, and whether it was found."""
    classes: list[Curves]
    """Curves of each class, in the order of the data set's classes."""
    overall: Curves
    """Curves averaged over the classes that have objects."""
    threshold: float
    """Score threshold of the highest mean F1. Everything that is counted is counted at this threshold."""
    confusion: Int[np.ndarray, "truth found"]
    """Number of pairs of true class (row) and found class (column). The last row and column stand for nothing."""
    errors: list[Errors]
    """Errors of each kind; empty without objects."""
    calibration: Calibration
    """Calibration of the scores."""
    sizes: list[SizeGroup]
    """Accuracy on small, medium and large objects."""


_KINDS = {
    "Cls": ("wrong class", f"overlaps an object by {OVERLAP} or more and calls it something else"),
    "Loc": ("poor box", f"the right class, but overlaps its object by {FAR} to {OVERLAP} only"),
    "Both": ("wrong class, poor box", "both at once"),
    "Dupe": ("duplicate", "an object that a better-scored detection had found already"),
    "Bkg": ("background", f"nothing there: no object is overlapped by {FAR}"),
    "Miss": ("missed", "an object that no detection is about, not even a wrong one"),
}


def analyse(report: EvaluationReport) -> Analysis:
    """Analyse the detections of an evaluation, all that it counted: with `max_detections`, not with COCO's 100.

    Sizes alone have COCO's AP and AR.
    """
    # Every box is matched once, with the detections of all scores: curves, calibration and sizes need them.
    dataset, detections, most = report.dataset, report.detections, report.max_detections
    evaluation = _evaluated(detections, dataset, most)
    found, truth = match(evaluation, detections, dataset)
    ranks = category_ranks(dataset.category_ids)
    precision = np.asarray(evaluation.eval["precision"])[0, :, :, 0, 2]
    classes = [
        _curves(name, class_id, precision[:, ranks[category_id]], found, truth)
        for class_id, (name, category_id) in enumerate(zip(report.metrics.per_class, dataset.category_ids, strict=True))
    ]
    # Confusion and the counts of errors are about a detector in use, so only about detections at the threshold.
    overall = _mean_curves([one for one in classes if one.num_objects])
    chosen = _above(detections, dataset, found, overall.threshold)
    strict = _evaluated(chosen, dataset, most)
    matrix = np.asarray(strict.confusion_matrix(iou_thr=OVERLAP)["matrix"]).astype(np.int64)
    # From the order of category ids to that of the data set's classes.
    order = [ranks[category_id] for category_id in dataset.category_ids] + [len(ranks)]
    return Analysis(
        found=found,
        truth=truth,
        classes=classes,
        overall=overall,
        threshold=overall.threshold,
        confusion=matrix[np.ix_(order, order)],
        errors=_errors(evaluation, strict, len(found.scores), len(truth.areas)),
        calibration=_calibration(found),
        sizes=_sizes(report, truth, overall.threshold),
    )


def _evaluated(detections: Sequence[Detections], dataset: DetectionDataset, most: int) -> Any:
    return evaluated(coco_ground_truth(dataset), to_coco_results(detections, dataset), max_detections=most)


def _above(
    detections: Sequence[Detections], dataset: DetectionDataset, found: FoundBoxes, threshold: float
) -> list[Detections]:
    """Detections at or above the threshold, without those in crowd regions, which hotcoco's confusion matrix counts."""
    kept = found.scores >= threshold
    image, row = found.image[kept], found.row[kept]
    ends = np.searchsorted(image, np.arange(len(detections) + 1))
    chosen = []
    for position, one in enumerate(detections):
        chosen.append(one[row[ends[position] : ends[position + 1]]])
    return chosen


def _curves(
    name: str, class_id: int, precision_at: Float[np.ndarray, "101"], found: FoundBoxes, truth: TrueBoxes
) -> Curves:
    own = found.class_ids == class_id
    hits = _count_from(found.scores[own & found.is_hit])
    everything = _count_from(found.scores[own])
    num_objects = int((truth.class_ids == class_id).sum())
    with np.errstate(invalid="ignore"):
        return Curves(
            name=name,
            num_objects=num_objects,
            recalls=np.arange(101) / 100,
            precision_at=np.where(precision_at < 0, np.nan, precision_at),
            precision=np.where(everything > 0, hits / np.maximum(everything, 1), np.nan),
            recall=hits / num_objects if num_objects else np.full(len(THRESHOLDS), np.nan),
            f1=2 * hits / np.maximum(everything + num_objects, 1),
        )


def _count_from(scores: Float[np.ndarray, "detections"]) -> Float[np.ndarray, "thresholds"]:
    """Number of scores at or above each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left").astype(np.float64)


def _mean_curves(classes: Sequence[Curves]) -> Curves:
    """Curves averaged over classes; a class without detections at a threshold has no part in the mean precision."""
    none = np.full(len(THRESHOLDS), np.nan)
    precision, count = none.copy(), np.zeros(len(THRESHOLDS))
    for one in classes:
        known = np.isfinite(one.precision)
        precision = np.where(known, np.nan_to_num(precision) + np.nan_to_num(one.precision), precision)
        count += known
    return Curves(
        name="all classes",
        num_objects=sum(one.num_objects for one in classes),
        recalls=np.arange(101) / 100,
        precision_at=np.mean([one.precision_at for one in classes], axis=0) if classes else np.full(101, np.nan),
        precision=precision / np.maximum(count, 1),
        recall=np.mean([one.recall for one in classes], axis=0) if classes else none,
        f1=np.mean([one.f1 for one in classes], axis=0) if classes else np.zeros(len(THRESHOLDS)),
    )


def _errors(evaluation: Any, strict: Any, num_found: int, num_objects: int) -> list[Errors]:
    if num_objects == 0:
        return []
    lost = evaluation.tide_errors(pos_thr=OVERLAP, bg_thr=FAR)["delta_ap"] if num_found else {}
    counts = strict.tide_errors(pos_thr=OVERLAP, bg_thr=FAR)["counts"]
    return [Errors(name, meaning, lost.get(key), counts[key]) for key, (name, meaning) in _KINDS.items()]


def _calibration(found: FoundBoxes) -> Calibration:
    from hotcoco.metrics import calibration_curve, calibration_error

    bins = calibration_curve(found.scores, found.is_hit, _BINS)
    confident = found.scores >= _CONFIDENT
    return Calibration(
        counts=[one["count"] for one in bins],
        scores=[one["avg_confidence"] if one["count"] else float("nan") for one in bins],
        shares=[one["avg_accuracy"] if one["count"] else float("nan") for one in bins],
        error=calibration_error(found.scores, found.is_hit, _BINS)[0],
        confident_error=calibration_error(found.scores[confident], found.is_hit[confident], _BINS)[0],
    )


def _sizes(report: EvaluationReport, truth: TrueBoxes, threshold: float) -> list[SizeGroup]:
    metrics = report.metrics
    groups = {
        "small": (metrics.ap_small, metrics.ar_small, truth.areas < SMALL_AREA),
        "medium": (metrics.ap_medium, metrics.ar_medium, (truth.areas >= SMALL_AREA) & (truth.areas < MEDIUM_AREA)),
        "large": (metrics.ap_large, metrics.ar_large, truth.areas >= MEDIUM_AREA),
    }
    return [
        SizeGroup(name, ap, ar, int(own.sum()), int((own & (truth.found_at >= threshold)).sum()))
        for name, (ap, ar, own) in groups.items()
    ]
