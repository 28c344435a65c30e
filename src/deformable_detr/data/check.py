"""Check of a data set before training: its content, and all that would stop or spoil a training."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import DataError
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.reading import open_file
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample, align_classes
from deformable_detr.data.formats.split_names import MAIN_SPLITS
from deformable_detr.data.images import SizeMismatchError, is_image_file, read_image
from deformable_detr.data.open import list_splits, open_dataset, recognise_format
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
    """Class names of the first split."""
    splits: dict[str, SplitStatistics]
    """Statistics of each split that could be read."""
    problems: tuple[Problem, ...]
    """Everything found wrong, in all splits."""
    images_decoded: bool
    """Whether every image was decoded; else only the annotations were read."""

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
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Report on all splits of a data set: what is in them and what is wrong.

    Args:
        path: a folder, a COCO json or a YOLO yaml.
        format: of the data set; recognised if left out.
        decode: decode every image, which is the only way to find damaged ones, and takes the longest.
        on_progress: called after each decoded image with the number of images done and their total.

    Raises:
        DataError: there is nothing at `path` that could be a data set.
    """
    problems: list[Problem] = []
    datasets: dict[str, DetectionDataset] = {}
    splits = list_splits(path, format=format)
    for split in splits:
        try:
            datasets[split] = open_dataset(path, split=split, format=format, strict=False)
            problems += datasets[split].problems
        except DataError as error:
            problems.append(Problem("invalid_annotation", f"split {split}", str(error), True))
    problems = list(dict.fromkeys(problems))  # Splits that overlap report the same file.
    problems += _class_problems(datasets)
    if len(datasets) == len(splits):  # Else all images of a split that cannot be read would count as orphans.
        problems += _orphan_images(datasets.values(), problems)
    if decode:
        problems += _unreadable_images(datasets.values(), on_progress)
    problems += _repeated_images(datasets)
    first = next(iter(datasets.values()), None)
    return DatasetReport(
        path=str(path),
        format=recognise_format(path, format=format),
        classes=first.classes if first else (),
        splits={split: statistics_of(dataset) for split, dataset in datasets.items()},
        problems=tuple(problems),
        images_decoded=decode,
    )


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
    for name, count in first.objects_per_class().items():
        if count == 0:
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


def _repeated_images(datasets: dict[str, DetectionDataset]) -> list[Problem]:
    """Images with the same bytes in one split or in two; an image in two splits spoils the evaluation."""
    # A list such as trainval repeats the main splits on purpose.
    compared = [split for split in datasets if split in MAIN_SPLITS] or list(datasets)
    splits_of: dict[str, list[str]] = defaultdict(list)
    for split in compared:
        for sample in datasets[split].samples:
            splits_of[str(sample.path)].append(split)
    problems = []
    for group in _same_content(splits_of):
        first, *others = group
        splits = sorted({split for path in group for split in splits_of[path]}, key=compared.index)
        same = f"the same picture as {', '.join(others)}" if others else "the same file"
        if len(splits) > 1:
            text = f"{same}, in the splits {' and '.join(splits)}"
            problems.append(Problem("shared_image", first, text, False))
        elif others:
            problems.append(Problem("duplicate_image", first, f"{same}, in the split {splits[0]}", False))
    return problems


def _same_content(paths: Iterable[str]) -> list[list[str]]:
    """Paths grouped by the content of their files; only files of equal length are read."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        try:
            by_length[os.stat(path).st_size].append(path)
        except OSError:
            continue  # Gone since the annotations were read; decoding reports it.
    groups: list[list[str]] = []
    for candidates in by_length.values():
        if len(candidates) == 1:
            groups.append(candidates)
            continue
        by_digest: dict[bytes, list[str]] = defaultdict(list)
        for path in candidates:
            try:
                with open_file(path) as stream:
                    digest = hashlib.file_digest(stream, "sha1").digest()
            except OSError:
                continue  # It is gone, or a pipe or a device; decoding reports that, too.
            by_digest[digest].append(path)
        groups += by_digest.values()
    return groups
