"""What the detections on a data set say beyond their AP: thresholds, confusion, kinds of errors, calibration, sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from deformable_detr.core.detections import Detections
from deformable_detr.data.dataset import MEDIUM_AREA, SMALL_AREA, DetectionDataset
from deformable_detr.evaluation.box_outcomes import FAR, OVERLAP, FoundBoxes, TrueBoxes, match
from deformable_detr.evaluation.coco_metrics import category_ranks, coco_ground_truth, evaluated, to_coco_results
from deformable_detr.evaluation.evaluate import EvaluationReport

# Rounded as scores are: 0.3 as a float32 is not below 0.3 to `predict`, and must not be here.
THRESHOLDS = (np.arange(1, 100) / 100).astype(np.float32).astype(np.float64)
"""Scores that are tried; two digits, as people write them after --threshold."""
_CONFIDENT = 0.1
_BINS = 10


class Curves(NamedTuple):
    """Of one class, or of all: precision, recall and F1 over the score threshold, and precision over recall."""

    name: str
    num_objects: int
    recalls: Float[np.ndarray, "101"]
    precision_at: Float[np.ndarray, "101"]
    """COCO's: the best precision at this recall or a higher one; not a number without objects."""
    precision: Float[np.ndarray, "thresholds"]
    """Not a number where nothing has such a score."""
    recall: Float[np.ndarray, "thresholds"]
    f1: Float[np.ndarray, "thresholds"]

    @property
    def best(self) -> int:
        """Position in `THRESHOLDS` of the highest F1; in the middle where several are equal, away from the brink."""
        equal = np.flatnonzero(self.f1 == self.f1.max())
        return int(equal[len(equal) // 2])

    @property
    def threshold(self) -> float:
        """The score threshold of the highest F1."""
        return float(THRESHOLDS[self.best])


class Calibration(NamedTuple):
    """How far scores are from the share of detections that are right."""

    counts: list[int]
    """Detections with a score in 0..0.1, 0.1..0.2, ..."""
    scores: list[float]
    """Their mean score, not a number without any."""
    shares: list[float]
    """The share that found an object."""
    error: float
    """Expected calibration error: the distance of the two, averaged over all detections."""
    confident_error: float
    """The same over detections with a score of at least 0.1: most of the others are rightly near 0 and flatter."""


class Errors(NamedTuple):
    """One kind of error."""

    name: str
    meaning: str
    lost: float | None
    """AP50 that mending all of them would gain; None without detections."""
    at_threshold: int
    """How many there are at the threshold."""


class SizeGroup(NamedTuple):
    """Objects of one of COCO's sizes."""

    name: str
    ap: float
    ar: float
    objects: int
    found: int
    """At the threshold."""


class Analysis(NamedTuple):
    """All that a report shows of the detections on a data set."""

    found: FoundBoxes
    truth: TrueBoxes
    classes: list[Curves]
    """In the order of the data set's classes."""
    overall: Curves
    """Means over the classes that have objects."""
    threshold: float
    """The score threshold of the highest mean F1; what is counted is counted at it."""
    confusion: Int[np.ndarray, "truth found"]
    """Rows: what is there; columns: what was found there. The last of each is nothing."""
    errors: list[Errors]
    calibration: Calibration
    sizes: list[SizeGroup]


_KINDS = {
    "Cls": ("wrong class", f"overlaps an object by {OVERLAP} or more and calls it something else"),
    "Loc": ("poor box", f"the right class, but overlaps its object by {FAR} to {OVERLAP} only"),
    "Both": ("wrong class, poor box", "both at once"),
    "Dupe": ("duplicate", "an object that a better-scored detection had found already"),
    "Bkg": ("background", f"nothing there: no object is overlapped by {FAR}"),
    "Miss": ("missed", "an object that no detection is about, not even a wrong one"),
}


def analyse(report: EvaluationReport) -> Analysis:
    """Match detections and objects once, and read everything from that."""
    dataset, detections = report.dataset, report.detections
    evaluation = _evaluated(detections, dataset)
    found, truth = match(evaluation, detections, dataset)
    ranks = category_ranks(dataset.category_ids)
    precision = np.asarray(evaluation.eval["precision"])[0, :, :, 0, 2]
    classes = [
        _curves(name, class_id, precision[:, ranks[category_id]], found, truth)
        for class_id, (name, category_id) in enumerate(zip(report.metrics.per_class, dataset.category_ids, strict=True))
    ]
    overall = _mean_curves([one for one in classes if one.num_objects])
    chosen = _above(detections, dataset, found, overall.threshold)
    strict = _evaluated(chosen, dataset)
    matrix = np.asarray(strict.confusion_matrix(iou_thr=OVERLAP)["matrix"]).astype(np.int64)
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


def _evaluated(detections: Sequence[Detections], dataset: DetectionDataset) -> Any:
    return evaluated(coco_ground_truth(dataset), to_coco_results(detections, dataset))


def _above(
    detections: Sequence[Detections], dataset: DetectionDataset, found: FoundBoxes, threshold: float
) -> list[Detections]:
    """The detections that count and have such a score. hotcoco's confusion matrix does not know crowd regions."""
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
    """How many scores are at or above each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left").astype(np.float64)


def _mean_curves(classes: Sequence[Curves]) -> Curves:
    """Precision where nothing was found does not count into the mean."""
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
