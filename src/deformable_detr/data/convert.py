"""Conversion of data sets: all splits of one in any known format, written in another, and what that cannot hold."""

import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.core.errors import DataError, OutputError, counted, listed
from deformable_detr.core.format_names import FormatName, TargetName
from deformable_detr.data.archives import is_archive
from deformable_detr.data.dataset import IMAGE_PROBLEMS, DetectionDataset, Problem, Sample, align_classes
from deformable_detr.data.formats import coco, voc, yolo
from deformable_detr.data.formats.split_names import MAIN_SPLITS
from deformable_detr.data.formats.writing import Placement
from deformable_detr.data.images import image_size
from deformable_detr.data.open import FoundDataset, recognise, refuse_fatal

_WRITERS = {"coco": coco.save, "yolo": yolo.save, "voc": voc.save}
_PARTIAL = ".partial"
_REASONS = dict(zip(IMAGE_PROBLEMS, ("missing", "unreadable", "of another size than annotated"), strict=True))


@dataclass(frozen=True, kw_only=True)
class ConvertedSplit:
    """Split that was written."""

    name: str
    """Name of the split."""
    images: int
    """Number of its images."""
    objects: int
    """Number of its objects, crowd regions included."""


@dataclass(frozen=True, kw_only=True)
class DataConversion:
    """Result of `convert_dataset`."""

    output: Path
    """Folder that was written."""
    to: TargetName
    """Format that it was written in."""
    source_format: FormatName
    """Format that was read."""
    classes: tuple[str, ...]
    """Names of the classes of all splits."""
    splits: tuple[ConvertedSplit, ...]
    """Splits that were written."""
    not_kept: tuple[Problem, ...]
    """Content that the format cannot hold, and images that could not be taken along."""
    mended: dict[str, int]
    """Number of problems of each kind that were mended while reading; `ddetr check-data` lists them."""


def convert_dataset(
    path: str | Path,
    output: str | Path,
    *,
    to: TargetName,
    format: FormatName | None = None,
    images: Placement = "copy",
    on_progress: Callable[[int, int], None] | None = None,
) -> DataConversion:
    """Write all splits of a data set in another format, read them back, and count images and objects.

    Boxes, classes, crowd marks and areas go along; masks, keypoints and the like do not. Images that are missing or
    cannot be read are left out and counted. All splits get the same classes: those of the training split, then those
    that only other splits have. The folder is complete or not there at all.

    Args:
        path: a data set in any known format.
        output: folder to write, which must be empty or not exist.
        to: format to write.
        format: format of the data set; recognised if left out.
        images: copy the image files, or make symbolic links to them.
        on_progress: called after each image with the number of images done and their total.

    Raises:
        DataError: the data set cannot be used, nothing of it fits into the format, or images of an archive were to be
            linked.
        OutputError: the folder is not empty, lies among the images of the data set, or cannot be written.
    """
    folder = Path(os.path.abspath(os.path.expanduser(output)))
    _refuse_what_is_there(folder, output)
    if images == "link" and is_archive(path):
        raise DataError(
            f"{path}: links would lead into the cache, from where an unpacked archive is removed when it is no longer "
            "used; copy the images, or unpack it yourself and give the folder"
        )
    found = recognise(path, format=format)
    source_format = found.format
    datasets, not_kept = _all_splits(found)
    del found  # with all that it keeps for further splits
    mended = Counter(problem.kind for one in datasets.values() for problem in one.problems if not problem.fatal)
    if to == "yolo":
        datasets, more = _for_yolo(datasets, path)
        not_kept += more
    datasets, more = _without_empty(datasets, path)
    not_kept += more
    datasets = _with_equal_classes(datasets)
    _refuse_among_images(folder, output, datasets.values())
    total = sum(map(len, datasets.values()))
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    with _complete_or_gone(folder) as partial:
        for split, dataset in datasets.items():
            lost = _WRITERS[to](dataset, partial, split=split, images=images, on_image=count)
            not_kept += [problem._replace(where=f"split {split}") for problem in lost]
        _read_back(partial, to, datasets)
    return DataConversion(
        output=folder,
        to=to,
        source_format=source_format,
        classes=next(iter(datasets.values())).classes,
        splits=tuple(
            ConvertedSplit(name=split, images=len(dataset), objects=dataset.num_objects)
            for split, dataset in datasets.items()
        ),
        not_kept=tuple(not_kept),
        mended={str(kind): number for kind, number in mended.items()},
    )


def _refuse_what_is_there(folder: Path, output: str | Path) -> None:
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
        is_full = is_folder and any(folder.iterdir())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"cannot write to the output folder {output}: {reason}") from error
    if is_full or not is_folder:
        what = "not empty" if is_folder else "not a folder"
        raise OutputError(f"output folder {output} is {what}; name another one")


def _all_splits(found: FoundDataset) -> tuple[dict[str, DetectionDataset], list[Problem]]:
    """All splits, and the images that had to be left out."""
    datasets: dict[str, DetectionDataset] = {}
    not_kept = []
    for split in found.splits:
        dataset = found.open(split, strict=False)
        refuse_fatal(dataset, found.path, skip_bad_images=len(dataset) > 0)
        bad = Counter(problem.kind for problem in dataset.fatal_problems if problem.kind in IMAGE_PROBLEMS)
        for kind, number in bad.items():
            text = (
                f"{counted(number, 'image')} left out as {_REASONS[kind]}; `ddetr check-data {found.path}` lists them"
            )
            not_kept.append(Problem("not_kept", f"split {split}", text, False))
        datasets[split] = dataset
    return datasets, not_kept


def _for_yolo(
    datasets: dict[str, DetectionDataset], path: str | Path
) -> tuple[dict[str, DetectionDataset], list[Problem]]:
    """Splits that YOLO has, with the images whose boxes it can express, and what it has no place for.

    Raises:
        DataError: it has none of the splits.
    """
    kept = {split: dataset for split, dataset in datasets.items() if split in MAIN_SPLITS}
    if not kept:
        raise DataError(
            f"{path}: YOLO has the splits {', '.join(MAIN_SPLITS)}, and this data set has {', '.join(datasets)}; "
            "rename them, or convert to coco or voc"
        )
    not_kept = []
    taken = {sample.path for dataset in kept.values() for sample in dataset.samples}
    for split in [split for split in datasets if split not in kept]:
        lost = sum(sample.path not in taken for sample in datasets[split].samples)
        text = f"YOLO has no such split: left out, and {lost} of its {len(datasets[split])} images are in no other"
        not_kept.append(Problem("not_kept", f"split {split}", text, False))
    for split, dataset in kept.items():
        fits = [_is_as_displayed(sample) for sample in dataset.samples]
        if not all(fits):
            text = (
                f"{counted(fits.count(False), 'image')} left out as annotated in another size than displayed, of which "
                "YOLO has shares; save them turned, without EXIF orientation"
            )
            not_kept.append(Problem("not_kept", f"split {split}", text, False))
            kept[split] = dataset.subset([index for index, fit in enumerate(fits) if fit])
    return kept, not_kept


def _is_as_displayed(sample: Sample) -> bool:
    try:
        return image_size(sample.path) == sample.size_wh
    except DataError:
        return False


def _without_empty(
    datasets: dict[str, DetectionDataset], path: str | Path
) -> tuple[dict[str, DetectionDataset], list[Problem]]:
    empty = [split for split, dataset in datasets.items() if not len(dataset)]
    if len(empty) == len(datasets):
        raise DataError(f"{path}: there are no images to convert in {listed(empty)}")
    problems = [Problem("not_kept", f"split {split}", "it has no images: not written", False) for split in empty]
    return {split: dataset for split, dataset in datasets.items() if split not in empty}, problems


def _with_equal_classes(datasets: dict[str, DetectionDataset]) -> dict[str, DetectionDataset]:
    """Splits with the classes of all: those of the first split, then what only others have objects or names of."""
    names: dict[str, int] = {}
    for dataset in datasets.values():
        for name, category_id in zip(dataset.classes, dataset.category_ids, strict=True):
            if name not in names:
                free = category_id not in names.values()
                names[name] = category_id if free else max(names.values()) + 1
    return {split: align_classes(dataset, tuple(names), tuple(names.values())) for split, dataset in datasets.items()}


def _refuse_among_images(folder: Path, output: str | Path, datasets: Iterable[DetectionDataset]) -> None:
    """Refuse a folder where the source would find the new images the next time it is read."""
    holders = {os.path.realpath(sample.path.parent) for dataset in datasets for sample in dataset.samples}
    place = os.path.realpath(folder)
    for holder in sorted(holders):
        if place == holder or place.startswith(holder + os.sep):
            raise OutputError(f"output folder {output} lies among the images in {holder}; name one that does not")


@contextmanager
def _complete_or_gone(folder: Path) -> Iterator[Path]:
    """Context with a folder to write in, whose content becomes that of `folder` if nothing fails, and else is removed.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    partial = folder / _PARTIAL
    existed = folder.is_dir()
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    try:
        yield partial
        try:
            for entry in sorted(partial.iterdir()):
                entry.rename(folder / entry.name)
        except OSError as error:
            raise OutputError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed:
            with suppress(OSError):  # it has content: the new data set
                folder.rmdir()


def _read_back(folder: Path, to: TargetName, datasets: dict[str, DetectionDataset]) -> None:
    """Compare what was written with what was to be written, by numbers.

    Raises:
        OutputError: they differ, so that the result is of no use.
    """
    found = recognise(folder, format=to)
    there = found.splits
    if len(datasets) > 1 and set(there) != set(datasets):
        raise OutputError(
            f"the splits {', '.join(datasets)} are read back from {to.upper()} as {', '.join(there)}; rename them first"
        )
    for split, dataset in datasets.items():
        again = found.open(split if split in there else there[0], strict=False)
        written, wanted = ((len(one), one.num_objects, len(one.classes)) for one in (again, dataset))
        if written != wanted:
            raise OutputError(
                f"split {split} is read back from {to.upper()} with {written[0]} images, {written[1]} objects and "
                f"{written[2]} classes, and has {wanted[0]}, {wanted[1]} and {wanted[2]}; please report this"
            )
