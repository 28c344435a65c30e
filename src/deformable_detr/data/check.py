"""Looks a data set through before training: what is in it, and what would stop or spoil a training."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import (
    MEDIUM_AREA,
    SMALL_AREA,
    DetectionDataset,
    Problem,
    Sample,
    align_classes,
)
from deformable_detr.data.images import SizeMismatchError, is_image_file, read_image
from deformable_detr.data.open import FormatName, list_splits, open_dataset, recognise_format

if TYPE_CHECKING:
    from rich.console import Group

_MAIN_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What one split holds, after what cannot be used was left out."""

    name: str
    source: str
    images: int
    boxes: int
    crowd_boxes: int
    images_without_objects: int
    boxes_per_image: tuple[int, float, int]
    """Fewest, median, most."""
    small: int
    medium: int
    large: int
    smallest_wh: tuple[int, int]
    """Least width and least height of an image, in pixels, not necessarily of the same one."""
    largest_wh: tuple[int, int]
    boxes_per_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What `check_dataset` found."""

    path: str
    format: FormatName
    classes: tuple[str, ...]
    splits: tuple[SplitSummary, ...]
    problems: tuple[Problem, ...]
    images_decoded: bool
    """Whether every image was decoded, or only the annotations were looked at."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would stop training."""
        return not any(problem.fatal for problem in self.problems)

    def problem_counts(self) -> dict[str, int]:
        """Number of problems of each kind there is, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def to_json(self) -> dict[str, Any]:
        """The report as plain values for `json.dumps`."""
        problems = [problem._asdict() for problem in self.problems]
        counts = self.problem_counts()
        return {"ok": self.ok, **asdict(self), "problem_counts": counts, "problems": problems}


def check_dataset(
    path: str | Path,
    *,
    format: FormatName | None = None,
    decode: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Reads all splits of a data set and reports what is in them and what is wrong.

    With `decode`, every image is decoded, which is the only way to find damaged ones and takes the longest;
    `on_progress` is then called with the number of images done and their total.

    Raises:
        DataError: nothing that could be a data set is there.
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
    if len(datasets) == len(splits):  # Else the images of a split that cannot be read would all seem forgotten.
        problems += _orphan_images(datasets.values(), problems)
    if decode:
        problems += _unreadable_images(datasets.values(), on_progress)
    problems += _repeated_images(datasets)
    first = next(iter(datasets.values()), None)
    return DatasetReport(
        path=str(path),
        format=recognise_format(path, format=format),
        classes=first.classes if first else (),
        splits=tuple(_summarise(split, dataset) for split, dataset in datasets.items()),
        problems=tuple(problems),
        images_decoded=decode,
    )


def _summarise(name: str, dataset: DetectionDataset) -> SplitSummary:
    samples = dataset.samples
    counts = np.array([len(sample.class_ids) for sample in samples], dtype=np.int64)
    areas = np.concatenate([np.zeros(0), *(sample.areas for sample in samples)])
    sizes_wh = np.array([sample.size_wh for sample in samples] or [(0, 0)], dtype=np.int64)
    small, up_to_medium = int((areas < SMALL_AREA).sum()), int((areas < MEDIUM_AREA).sum())
    return SplitSummary(
        name=name,
        source=dataset.source,
        images=len(samples),
        boxes=int(counts.sum()),
        crowd_boxes=sum(int(sample.is_crowd.sum()) for sample in samples),
        images_without_objects=int((counts == 0).sum()),
        boxes_per_image=(int(counts.min()), float(np.median(counts)), int(counts.max()))
        if len(counts)
        else (0, 0.0, 0),
        small=small,
        medium=up_to_medium - small,
        large=len(areas) - up_to_medium,
        smallest_wh=(int(sizes_wh[:, 0].min()), int(sizes_wh[:, 1].min())),
        largest_wh=(int(sizes_wh[:, 0].max()), int(sizes_wh[:, 1].max())),
        boxes_per_class=dataset.objects_per_class(),
    )


def _class_problems(datasets: dict[str, DetectionDataset]) -> list[Problem]:
    """Classes that the first split has and never shows, and objects of other splits whose class it does not have."""
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
    # An image that was left out because of its annotation is reported by that; so is one that cannot be read.
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
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
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
    """Pictures of the same bytes, in one split or in two; two splits then no longer test one another."""
    # A list such as trainval repeats the main splits on purpose.
    compared = [split for split in datasets if split in _MAIN_SPLITS] or list(datasets)
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
    """Paths in groups of equal content. Only files of equal length are read."""
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
                with open(path, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha1").digest()
            except OSError:
                continue
            by_digest[digest].append(path)
        groups += by_digest.values()
    return groups


def render(report: DatasetReport, *, examples: int = 5) -> "Group":
    """The report as tables for a terminal, for `rich` to print; at most so many examples of each kind of problem."""
    from rich.console import Group
    from rich.text import Text

    title = f"{report.path} ({report.format.upper()}, {_counted(len(report.classes), 'class', 'classes')})"
    parts: list[Any] = [Text(title, style="bold"), _split_table(report), _class_table(report)]
    if report.problems:
        parts.append(_problem_table(report, examples))
    unchecked = "" if report.images_decoded else " Images were not decoded."
    if report.ok:
        remarks = _counted(len(report.problems), "remark", "remarks") + ", nothing that stops training"
        parts.append(Text(f"OK: {remarks if report.problems else 'no problems'}.{unchecked}", style="green"))
    else:
        fatal = sum(problem.fatal for problem in report.problems)
        stopping = _counted(fatal, "problem", "problems")
        parts.append(Text(f"Not usable as it is: {stopping} would stop training.{unchecked}", style="red"))
    return Group(*parts)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _split_table(report: DatasetReport) -> Any:
    from rich.table import Table

    table = Table(title="Splits", title_justify="left")
    table.add_column("")
    for summary in report.splits:
        table.add_column(summary.name, justify="right")
    rows: list[tuple[str, Callable[[SplitSummary], str]]] = [
        ("images", lambda s: str(s.images)),
        ("  without objects", lambda s: str(s.images_without_objects)),
        ("  width, px", lambda s: f"{s.smallest_wh[0]} .. {s.largest_wh[0]}"),
        ("  height, px", lambda s: f"{s.smallest_wh[1]} .. {s.largest_wh[1]}"),
        ("boxes", lambda s: str(s.boxes)),
        ("  crowd", lambda s: str(s.crowd_boxes)),
        ("  per image: fewest, median, most", lambda s: "  ".join(f"{value:g}" for value in s.boxes_per_image)),
        ("  small, below 32 x 32 px", lambda s: str(s.small)),
        ("  medium", lambda s: str(s.medium)),
        ("  large, from 96 x 96 px", lambda s: str(s.large)),
    ]
    for label, value in rows:
        table.add_row(label, *(value(summary) for summary in report.splits))
    return table


def _class_table(report: DatasetReport) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Boxes per class", title_justify="left")
    table.add_column("class")
    for summary in report.splits:
        table.add_column(summary.name, justify="right")
    for name in dict.fromkeys(name for summary in report.splits for name in summary.boxes_per_class):
        table.add_row(Text(name), *(str(summary.boxes_per_class.get(name, 0)) for summary in report.splits))
    return table


def _problem_table(report: DatasetReport, examples: int) -> Any:
    """One row for each kind of problem, those that stop training first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Problems", title_justify="left")
    table.add_column("kind")
    table.add_column("count", justify="right")
    table.add_column("stops training")
    table.add_column("where and what", overflow="fold")
    folder = os.path.join(os.path.abspath(report.path), "")
    groups: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
    for problem in report.problems:
        groups[not problem.fatal, problem.kind].append(problem)
    for (harmless, kind), group in sorted(groups.items()):
        style = "" if harmless else "red"
        lines = [f"{problem.where}: {problem.message}".replace(folder, "") for problem in group[:examples]]
        if len(group) > examples:
            lines.append(f"... and {len(group) - examples} more; --json lists all")
        label = Text(kind.replace("_", " "), style=style)
        table.add_row(label, str(len(group)), "no" if harmless else "YES", Text("\n".join(lines), style=style))
    return table
