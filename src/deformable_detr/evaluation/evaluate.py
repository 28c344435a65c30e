"""Evaluation of a detector on a data set: COCO's twelve numbers and those of each class."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from deformable_detr.core.detections import Detections
from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, ConfigError, DataError, listed
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.data.crowding import MOST_EVALUATED, crowding, evaluation_text, queries_text
from deformable_detr.data.dataset import DetectionDataset, align_classes
from deformable_detr.data.loader import explained_worker_deaths, make_loader
from deformable_detr.data.splits import num_bad_images, open_for_evaluation
from deformable_detr.evaluation.coco_metrics import AT_QUERIES, Metrics, coco_metrics
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.tta import MOST_PER_VIEW, TTA, chosen, detect_views, flips_of, merged, sizes_of
from deformable_detr.models.interface import num_queries_of


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Result of an evaluation."""

    metrics: Metrics
    """COCO's twelve numbers and those of each class, of the 100 best detections of an image."""
    metrics_at_n: Metrics | None = None
    """Metrics of the `max_detections` best detections of an image, which are not COCO's; None if that is 100."""
    max_detections: int = MOST_EVALUATED
    """Most detections of an image that `evaluate` was asked to count."""
    detections: list[Detections]
    """Detections in each image of `dataset`, in the order of the images, with the detector's class ids."""
    dataset: DetectionDataset
    """Images that were evaluated, with the detector's classes."""
    skipped: dict[str, str]
    """Reason for each image that could not be read, by the path of the image."""
    num_skipped: int
    """Number of images in `skipped`, and of those that were left out when the data set was opened."""
    seconds: float
    """Duration of the evaluation."""

    def value(self, name: str) -> float:
        """Metric by its name, see `Metrics.value`; COCO's, unless it ends in "@queries".

        Raises:
            ConfigError: there is no such metric or class.
        """
        own = self.metrics_at_n if name.endswith(AT_QUERIES) else None
        return (own or self.metrics).value(name)


def evaluate(
    detector: Detector,
    data: str | Path | DetectionDataset,
    *,
    split: str | None = None,
    format: FormatName | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    max_detections: int = MOST_EVALUATED,
    skip_bad_images: bool = False,
    tta: TTA | bool = False,
    reporter: Reporter | None = None,
    ranks: Ranks = ALONE,
) -> EvaluationReport:
    """Evaluate a detector on a data set: detect in every image without a score threshold, and compare.

    Several processes share the batches. Each gets the same report, equal to that of a single process to the last bit.

    Args:
        detector: the detector to evaluate.
        data: path of a data set in any known format, or an open data set. Its classes are matched to the detector's by
            name.
        split: split to evaluate, if `data` is a path: "val" if left out, or all images if there are no splits.
        format: format of the data set, if `data` is a path; recognised automatically if left out.
        batch_size: most images of equal size that go through the network together; the result does not depend on it.
        num_workers: processes that read images; 0 reads them in this process.
        max_detections: most detections of an image that count, at least 11. With another number than COCO's 100, there
            are metrics for it besides COCO's, see `EvaluationReport.metrics_at_n`.
        skip_bad_images: leave out and list images that are missing or cannot be read, instead of raising.
        tta: test-time augmentation: whether, or with which settings, mirrored and resized views of each image are
            looked at, too, and their detections merged. Images are read anew for each size.
        reporter: receives messages and the progress.
        ranks: the processes that share the work.

    Returns:
        Metrics, and the detections they come from.

    Raises:
        CheckpointError: the data set has objects of classes the detector does not know.
        ConfigError: `split` or `format` is given for a data set that is already open, or a view of test-time
            augmentation would be larger than any image may be.
        DataError: the data set cannot be used or has no such split, an image cannot be read, or none is left.
        ValueError: `max_detections` is less than 11.
    """
    if max_detections <= 10:
        raise ValueError(f"max_detections is {max_detections}; it must be at least 11, as COCO counts 10 apart")
    # Open the data, in the detector's class ids.
    reporter = reporter or Silence()
    started = time.monotonic()
    dataset = match_classes(detector, opened(data, split, format, skip_bad_images, reporter))
    views = chosen(tta)
    # COCO's numbers need 100 detections, whatever counts besides; merging needs its own number of each view.
    most = max(max_detections, MOST_EVALUATED, 0 if views is None else MOST_PER_VIEW)
    sizes, flips = sizes_of(views, detector.preprocessing), flips_of(views)
    # With the network as it is: a prepared one may differ in the last bits from one process to another. In bfloat16
    # nothing is exact, and what counts is that predictions are made in the same way.
    exact = detector.around(detector.model, as_it_is=detector.as_it_is or detector.precision == "float32")
    # Detect in this process' share of the images, once in each size; which images it has may differ between sizes.
    in_each_size: list[dict[int, list[Detections]]] = []
    unread: dict[int, str] = {}
    for number, size in enumerate(sizes):
        loader = make_loader(
            dataset,
            size,
            batch_size=batch_size,
            num_workers=num_workers,
            skip_bad_images=skip_bad_images,
            ranks=ranks,
        )
        here: dict[int, list[Detections]] = {}
        with explained_worker_deaths():
            for batch in loader:
                detect = partial(exact.detect, sizes_wh=batch.original_sizes_wh, max_detections=most)
                detections = detect_views(detect, batch.images, batch.original_sizes_wh, flips)
                here.update(zip(batch.sample_indices, detections, strict=True))
                done = min(len(here) * ranks.size, len(dataset))
                pace = f"{(done + number * len(dataset)) / len(sizes) / (time.monotonic() - started):.1f} images/s"
                reporter.update(_task(number, len(sizes)), done, len(dataset), pace)
        in_each_size.append(here)
        unread |= loader.skipped
    # Put together what all processes found, in the order of the images: the report must not depend on their number.
    gathered = [{index: one for part in ranks.gathered(here) for index, one in part.items()} for here in in_each_size]
    complete = sorted(set.intersection(*map(set, gathered)))
    seen_in = {index: [view for of_size in gathered for view in of_size[index]] for index in complete}
    found = {
        index: of_one[0] if views is None else merged(of_one, views, max_detections=most)
        for index, of_one in seen_in.items()
    }
    unreadable = {index: why for part in ranks.gathered(unread) for index, why in part.items()}
    if not found:
        raise DataError(f"{dataset.source}: none of the {len(dataset)} images could be read")
    seen = dataset.subset(list(found))
    in_order = list(found.values())
    skipped = {str(dataset.samples[index].path): why for index, why in sorted(unreadable.items())}
    # COCO's numbers are always those of 100 detections. Scores fall, so that a slice has the best.
    own = [one[:max_detections] for one in in_order]
    is_coco = max_detections == MOST_EVALUATED
    return EvaluationReport(
        metrics=coco_metrics([one[:MOST_EVALUATED] for one in in_order], seen),
        metrics_at_n=None if is_coco else coco_metrics(own, seen, max_detections=max_detections),
        max_detections=max_detections,
        detections=own,
        dataset=seen,
        skipped=skipped,
        num_skipped=len(skipped) + num_bad_images(dataset),
        seconds=time.monotonic() - started,
    )


def _task(number: int, count: int) -> str:
    return "evaluating" if count == 1 else f"evaluating, size {number + 1} of {count}"


def opened(
    data: str | Path | DetectionDataset,
    split: str | None,
    format: FormatName | None,
    skip_bad_images: bool,
    reporter: Reporter,
) -> DetectionDataset:
    """Data set to evaluate on, opened if `data` is a path; the arguments are those of `evaluate`.

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


def counted_detections(model: nn.Module, dataset: DetectionDataset, best_by: str = "ap") -> int:
    """Number of detections of an image that an evaluation in a training counts.

    COCO's 100, unless an image has more objects, or `best_by` ends in "@queries": then as many as the model has
    queries, if those are more.

    Args:
        model: the network.
        dataset: images to evaluate on.
        best_by: metric that decides, as in `CheckpointConfig.best_by`.
    """
    crowded = crowding([dataset], MOST_EVALUATED)
    if crowded is None and not best_by.endswith(AT_QUERIES):
        return MOST_EVALUATED
    queries = num_queries_of(model)
    if queries is None:  # of a network that does not say, as many as there may be to find
        queries = MOST_EVALUATED if crowded is None else crowded.most
    return max(MOST_EVALUATED, queries)


def limits(detector: Detector, dataset: DetectionDataset, max_detections: int) -> list[str]:
    """Sentences on images with more objects than can be found, or than detections count; none if there are none."""
    sentences = []
    queries = num_queries_of(detector.model)
    crowded = None if queries is None else crowding([dataset], queries)
    if crowded is not None:
        way_out = "evaluate a detector with more of them, or cut the images into tiles"
        sentences.append(queries_text(crowded, "this detector", way_out=way_out))
    crowded = crowding([dataset], max_detections)
    if crowded is not None:
        sentences.append(evaluation_text(crowded))
    return sentences


def match_classes(detector: Detector, dataset: DetectionDataset) -> DetectionDataset:
    """Data set with the detector's class ids.

    Raises:
        CheckpointError: there are objects of classes that the detector does not know; the message names all classes.
    """
    try:
        return align_classes(dataset, detector.classes, detector.category_ids)
    except DataError as error:
        raise CheckpointError(
            f"the checkpoint has {_classes(detector.classes)}, the data set has {_classes(dataset.classes)}; "
            "it can be evaluated only on classes that it knows"
        ) from error


def _classes(names: tuple[str, ...]) -> str:
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({listed(names, 8)})"
