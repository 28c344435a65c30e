"""A detector against a data set: COCO's twelve numbers and every class's own."""

import time
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.core.detections import Detections
from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, ConfigError, DataError, listed
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.data.dataset import DetectionDataset, align_classes
from deformable_detr.data.loader import explained_worker_deaths, make_loader
from deformable_detr.data.open import FormatName
from deformable_detr.data.splits import num_bad_images, open_for_evaluation
from deformable_detr.evaluation.coco_metrics import Metrics, coco_metrics
from deformable_detr.inference.detector import Detector

_MAX_DETECTIONS = 100


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """What a detector reached on a data set."""

    metrics: Metrics
    detections: list[Detections]
    """One for each image of `dataset`, class ids being the detector's."""
    dataset: DetectionDataset
    """The images that were evaluated, with the detector's classes."""
    skipped: dict[str, str]
    """Path of each image that could not be read, and why."""
    num_skipped: int
    """Those, and the ones left out already when the data set was opened."""
    seconds: float


def evaluate(
    detector: Detector,
    data: str | Path | DetectionDataset,
    *,
    split: str | None = None,
    format: FormatName | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    skip_bad_images: bool = False,
    reporter: Reporter | None = None,
    ranks: Ranks = ALONE,
) -> EvaluationReport:
    """Detect in every image, without a score threshold, and compare.

    Several processes share the batches, and each gets the same report, that of one process to the last bit.

    Args:
        detector: what to judge.
        data: a data set in any known format, or one that is already open; its classes are matched to the detector's by
            name.
        split: which part of a path; "val" if left out, or all there is if it has no parts.
        format: of a path; recognised by itself if left out.
        batch_size: images of equal size that go through the network together, at most; no result depends on it.
        num_workers: processes that read images; 0 reads them in this one.
        skip_bad_images: leave out, and list, what is missing or cannot be read, instead of raising.
        reporter: is told how far it is.
        ranks: the processes that share the work.

    Raises:
        CheckpointError: the data set has objects of classes the detector does not know.
        ConfigError: `split` or `format` is given for a data set that is already open.
        DataError: the data set cannot be used or has no such split, an image cannot be read, or none is left.
    """
    reporter = reporter or Silence()
    started = time.monotonic()
    dataset = match_classes(detector, opened(data, split, format, skip_bad_images, reporter))
    detector.model.eval()  # it may come from the middle of a training
    loader = make_loader(
        dataset,
        detector.preprocessing,
        batch_size=batch_size,
        num_workers=num_workers,
        skip_bad_images=skip_bad_images,
        ranks=ranks,
    )
    found: dict[int, Detections] = {}
    with explained_worker_deaths():
        for batch in loader:
            detections = detector.detect(batch.images, batch.original_sizes_wh, max_detections=_MAX_DETECTIONS)
            found.update(zip(batch.sample_indices, detections, strict=True))
            done = min(len(found) * ranks.size, len(dataset))
            reporter.update("evaluating", done, len(dataset), f"{done / (time.monotonic() - started):.1f} images/s")
    found = {index: one for part in ranks.gathered(found) for index, one in part.items()}
    unreadable = {index: why for part in ranks.gathered(loader.skipped) for index, why in part.items()}
    if not found:
        raise DataError(f"{dataset.source}: none of the {len(dataset)} images could be read")
    seen = dataset.subset(sorted(found))
    in_order = [found[index] for index in sorted(found)]
    skipped = {str(dataset.samples[index].path): why for index, why in sorted(unreadable.items())}
    return EvaluationReport(
        metrics=coco_metrics(in_order, seen),
        detections=in_order,
        dataset=seen,
        skipped=skipped,
        num_skipped=len(skipped) + num_bad_images(dataset),
        seconds=time.monotonic() - started,
    )


def opened(
    data: str | Path | DetectionDataset,
    split: str | None,
    format: FormatName | None,
    skip_bad_images: bool,
    reporter: Reporter,
) -> DetectionDataset:
    """Data set to judge by, opened if `data` is a path; the arguments are those of `evaluate`.

    Raises:
        ConfigError: `split` or `format` is given for a data set that is already open.
        DataError: the data set cannot be used or has no such split.
    """
    if not isinstance(data, DetectionDataset):
        dataset = open_for_evaluation(data, split, format, skip_bad_images)
        reporter.say(f"data: {dataset.source}, {len(dataset)} images")
        return dataset
    for name, value in (("split", split), ("format", format)):
        if value is not None:
            raise ConfigError(f"{name} is {value!r}, but the data set is already open; give its path instead")
    return data


def match_classes(detector: Detector, dataset: DetectionDataset) -> DetectionDataset:
    """The data set with the detector's class ids.

    Raises:
        CheckpointError: it has objects of classes the detector does not know; both counts and the names are given.
    """
    try:
        return align_classes(dataset, detector.classes, detector.category_ids)
    except DataError as error:
        raise CheckpointError(
            f"the checkpoint has {_classes(detector.classes)}, the data set has {_classes(dataset.classes)}; "
            "it can be judged by the classes it knows only"
        ) from error


def _classes(names: tuple[str, ...]) -> str:
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({listed(names, 8)})"
