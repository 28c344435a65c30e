"""Check of a data set before training: its content, and all that would stop or spoil a training."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import DataError
from deformable_detr.core.format_names import FormatName
from deformable_detr.data.crowding import (
    FEWEST_QUERIES,
    MOST_EVALUATED,
    crowding,
    evaluation_text,
    queries_text,
)
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample, align_classes
from deformable_detr.data.images import SizeMismatchError, is_image_file, read_image
from deformable_detr.data.open import recognise
from deformable_detr.data.repeats import repeated_images
from deformable_detr.data.splits import check_has_training_split, fitting_validation
from deformable_detr.data.statistics import SplitStatistics, statistics_of

# Each has a file open, of which a process may have a few dozen in the worst case.
_MOST_THREADS = 32


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Report of `check_dataset`: the content of a data set and its problems."""

    path: str
    """Folder or file, as it was given."""
    format: FormatName
    """Format that was recognised, or the one that was asked for."""
    classes: tuple[str, ...]
    """Class names of the first split that could be read."""
    splits: dict[str, SplitStatistics]
    """Statistics of each split that could be read."""
    problems: tuple[Problem, ...]
    """Everything found wrong, in all splits."""
    images_decoded: bool
    """Whether every image was decoded; else only the annotations were read."""
    model: str = "the model"
    """Words for the model to train."""
    num_queries: int | None = None
    """Number of queries that it would have in a training on these data; None if that is not known."""

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Problems that do not stop training and spoil what comes of it: the headline of the report."""
        return tuple(problem for problem in self.problems if problem.kind in ("leak", "many_objects"))

    @property
    def ok(self) -> bool:
        """Whether no problem would stop training."""
        return not any(problem.fatal for problem in self.problems)

    def problem_counts(self) -> dict[str, int]:
        """Number of problems of each kind that occurs, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def to_json(self) -> dict[str, Any]:
        """Report as plain values for `json.dumps`."""
        return {
            "ok": self.ok,
            **asdict(self),
            "splits": [{"name": name, **asdict(statistics)} for name, statistics in self.splits.items()],
            "problem_counts": self.problem_counts(),
            "problems": [problem._asdict() for problem in self.problems],
        }


def check_dataset(
    path: str | Path,
    *,
    format: FormatName | None = None,
    decode: bool = True,
    num_queries: Callable[[DetectionDataset, DetectionDataset | None], int | None] | None = None,
    model: str = "the model",
    on_progress: Callable[[int, int], None] | None = None,
    on_read: Callable[[], object] | None = None,
) -> DatasetReport:
    """Report on all splits of a data set: what is in them, what would stop a training, and what would spoil it.

    Args:
        path: a folder, an annotation file such as a COCO json, or a zip archive.
        format: of the data set; recognised if left out.
        decode: decode every image, which is the only way to find damaged ones, and takes the longest.
        num_queries: function that returns the number of queries that the model to train would have, if that is known,
            from the training split and the validation split, if there is one; it is called only if an image has more
            than a few objects. Images with more objects than that are reported.
        model: words for that model.
        on_progress: called after each decoded image with the number of images done and their total.
        on_read: called when all annotations have been read.

    Raises:
        DataError: there is nothing at `path` that could be a data set.
    """
    problems: list[Problem] = []
    datasets: dict[str, DetectionDataset] = {}
    found = recognise(path, format=format)
    splits, recognised = found.splits, found.format
    for split in splits:
        try:
            datasets[split] = found.open(split, strict=False)
            problems += datasets[split].problems
        except DataError as error:
            problems.append(Problem("invalid_annotation", f"split {split}", str(error), True))
    del found  # with all that it keeps for further splits
    if on_read is not None:
        on_read()
    problems = list(dict.fromkeys(problems))  # Splits that overlap report the same file.
    problems += _class_problems(datasets)
    problems += _training_problems(path, splits, datasets, problems)
    if len(datasets) == len(splits):  # Else all images of a split that cannot be read would count as orphans.
        problems += _orphan_images(datasets.values(), problems)
    if decode:
        problems += _unreadable_images(datasets.values(), on_progress)
    problems += repeated_images(datasets)
    queries = _queries(datasets, num_queries)
    problems += _crowded_images(datasets, queries, model)
    first = next(iter(datasets.values()), None)
    return DatasetReport(
        path=str(path),
        format=recognised,
        classes=first.classes if first is not None else (),
        splits={split: statistics_of(dataset) for split, dataset in datasets.items()},
        problems=tuple(problems),
        images_decoded=decode,
        model=model,
        num_queries=queries,
    )


def _training_problems(
    path: str | Path, splits: Sequence[str], datasets: dict[str, DetectionDataset], known: Sequence[Problem]
) -> list[Problem]:
    """Whatever else a training would refuse, in its own words; nothing if it stops for a known problem anyway."""
    if any(problem.fatal for problem in known):
        return []
    try:
        check_has_training_split(path, splits)
        train = datasets["train" if "train" in datasets else splits[0]]
        fitting_validation(train, datasets.get("val"))
    except DataError as error:
        return [Problem("invalid_annotation", str(path), str(error).removeprefix(f"{path}: "), True)]
    return []


def _queries(
    datasets: dict[str, DetectionDataset],
    num_queries: Callable[[DetectionDataset, DetectionDataset | None], int | None] | None,
) -> int | None:
    """Number of queries that a training would take; None if it is not known, or nobody needs to ask."""
    if num_queries is None or crowding(datasets.values(), FEWEST_QUERIES) is None:
        return None
    if "train" in datasets:
        return num_queries(datasets["train"], datasets.get("val"))
    return num_queries(next(iter(datasets.values())), None)  # the very file of one split


def _crowded_images(datasets: dict[str, DetectionDataset], queries: int | None, model: str) -> list[Problem]:
    """Problems of objects beyond the queries of the model, and beyond the detections that an evaluation counts."""
    problems = []
    crowded = None if queries is None else crowding(datasets.values(), queries)
    if crowded is not None:
        problems.append(Problem("many_objects", "training", queries_text(crowded, model), False))
    judged = [dataset for split, dataset in datasets.items() if split != "train"] or list(datasets.values())
    crowded = crowding(judged, MOST_EVALUATED)
    if crowded is not None:
        problems.append(Problem("many_objects", "evaluation", evaluation_text(crowded), False))
    return problems


def _class_problems(datasets: dict[str, DetectionDataset]) -> list[Problem]:
    """Problems with classes: without any object in the first split, or of objects in other splits but not in it."""
    if not datasets:
        return []
    (first_name, first), *others = datasets.items()
    problems = []
    for split, dataset in others:
        try:
            align_classes(dataset, first.classes, first.category_ids)
        except DataError as error:
            text = f"its classes are not those of {first_name}: {error}"
            problems.append(Problem("unknown_class", f"split {split}", text, True))
    nothing_read = not len(first) or (not first.num_objects and first.fatal_problems)
    for name, count in first.objects_per_class().items():
        if count == 0 and not nothing_read:
            text = f"no object of split {first_name} is labelled {name!r}, so it cannot be learnt"
            problems.append(Problem("unused_class", first.source, text, False))
    return problems


def _orphan_images(datasets: Iterable[DetectionDataset], known: Sequence[Problem]) -> list[Problem]:
    """Image files that lie among those of the data set and that no split mentions."""
    used = {str(sample.path) for dataset in datasets for sample in dataset.samples}
    folders = sorted({os.path.dirname(path) for path in used})
    # An image that was left out because of its annotation, or cannot be read, has been reported already.
    reported = {os.path.splitext(os.path.basename(problem.where))[0] for problem in known if problem.fatal}
    return [
        Problem("orphan_image", path, "no annotation mentions this image: ignored", False)
        for folder in folders
        for path in sorted(os.path.join(folder, name) for name in os.listdir(folder) if is_image_file(name))
        if path not in used and os.path.splitext(os.path.basename(path))[0] not in reported
    ]


def _unreadable_images(
    datasets: Iterable[DetectionDataset], on_progress: Callable[[int, int], None] | None
) -> list[Problem]:
    samples = {(sample.path, sample.size_wh): sample for dataset in datasets for sample in dataset.samples}
    problems = []
    pool = ThreadPoolExecutor(max_workers=min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        for done, problem in enumerate(pool.map(_decode, samples.values()), start=1):
            if problem is not None:
                problems.append(problem)
            if on_progress is not None:
                on_progress(done, len(samples))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for all of them.
    return problems


def _decode(sample: Sample) -> Problem | None:
    try:
        read_image(sample)
    except DataError as error:
        kind: Any = "size_mismatch" if isinstance(error, SizeMismatchError) else "unreadable_image"
        return Problem(kind, str(sample.path), str(error).removeprefix(f"{sample.path}: "), True)
    return None
