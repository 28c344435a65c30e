"""Training and validation images of a run, with the same class ids in both."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, counted
from deformable_detr.core.format_names import FormatName
from deformable_detr.data.dataset import IMAGE_PROBLEMS, DetectionDataset, align_classes
from deformable_detr.data.formats.split_names import canonical_split, split_in_name
from deformable_detr.data.open import FoundDataset, recognise, refuse_fatal

_MANY_SPLITS = (".yaml", ".yml", ".data", ".zip")
"""Endings of files that describe or hold a whole data set; any other file holds one split."""


class TrainingSplits(NamedTuple):
    """Training and validation split of a data set as they were read, with all of their problems.

    Reading them needs none of the libraries that take long to import, so that what is wrong is said at once.
    """

    path: str | Path
    """Path of the data set, as it was given."""
    format: FormatName | None
    """Format that was asked for; None if it was recognised."""
    train: DetectionDataset
    """Images to learn from."""
    val: DetectionDataset | None
    """Images to validate with; None if there is no such split, or another data set takes its place."""

    def refuse_fatal(self, *, skip_bad_images: bool) -> None:
        """Refuse what would stop a training.

        Args:
            skip_bad_images: pass over images that are missing, cannot be read or have another size.

        Raises:
            DataError: there is such a problem; the message names it, and the ways out.
        """
        # Where no training image is left, the reason is what the first of them lacks.
        refuse_fatal(self.train, self.path, skip_bad_images=skip_bad_images and len(self.train) > 0)
        if self.val is not None:
            refuse_fatal(self.val, self.path, skip_bad_images=skip_bad_images)
        fitting_validation(self.train, self.val)


class TrainingData(NamedTuple):
    """Training images and validation images of a run."""

    train: DetectionDataset
    """Images to learn from."""
    val: DetectionDataset
    """Images to validate with."""
    origin: str
    """Words that say where the validation images come from."""
    num_problems: int
    """Number of problems that the readers mended or left out, in both data sets."""
    num_bad_images: int
    """Number of images left out because they are missing, cannot be read or have another size, in both data sets."""
    held_out: tuple[str, ...] = ()
    """Validation images that were held out of the training images, by path below the folder that all images share."""


def read_splits(path: str | Path, *, format: FormatName | None = None, with_validation: bool = True) -> TrainingSplits:
    """Training split and validation split of the data set at a path. The split "test" is never read.

    Args:
        path: a data set in any known format; a file of one split is read as the training split.
        format: of the data set; recognised if left out.
        with_validation: read the validation split, too.

    Raises:
        DataError: the data set cannot be read, or has no split to train on. Problems of images and boxes do not raise:
            see `TrainingSplits.refuse_fatal`.
    """
    found = recognise(path, format=format)
    check_has_training_split(path, found.splits)
    train = found.open(strict=False)
    val = None
    if with_validation and {"train", "val"} <= set(found.splits):
        val = found.open("val", strict=False)
    return TrainingSplits(path, format, train, val)


def check_has_training_split(path: str | Path, names: Sequence[str]) -> None:
    """Refuse a data set without a training split, unless it is the very file of one split.

    That is a file whose own name, or whose folder's, says which split it is. One that says so inside, in a column or
    for each image, is a data set like any other, of which only that split is left.

    Args:
        path: the data set.
        names: names of its splits.

    Raises:
        DataError: none is called train.
    """
    place = Path(path).expanduser()
    if "train" not in names and not (len(names) == 1 and _is_file_of(place, names[0])):
        raise DataError(
            f"{path}: no split to train on; there is {', '.join(names)}. Call one of them train, or give the very file "
            "of it"
        )


def _is_file_of(place: Path, split: str) -> bool:
    if not place.is_file() or place.suffix.lower() in _MANY_SPLITS:
        return False
    folders = [canonical_split(folder.name) for folder in place.absolute().parents[:2]]
    return split in (split_in_name(place.stem), *folders)


def open_training_data(
    data: str | Path | DetectionDataset | TrainingSplits,
    val_data: str | Path | DetectionDataset | None = None,
    *,
    format: FormatName | None = None,
    val_share: float,
    seed: int,
    skip_bad_images: bool,
    held_out: Sequence[str] | None = None,
) -> TrainingData:
    """Training and validation data from a path or an open data set; the classes are those of the training data.

    A path gives its split "train", validated with its split "val" if there is one. Where there is neither that nor
    `val_data`, a share of the training images is held out for validation. The split "test" is never read, unless
    `data` is the file of that split.

    Args:
        data: a data set in any known format, or one that is already open or read.
        val_data: data set to validate with, a path or an open one; a path gives its split "val" or its only split.
        format: of the data sets given as paths; recognised if left out.
        val_share: share of the training images to hold out where there are no other validation images, in 0..1.
        seed: decides which images are held out.
        skip_bad_images: leave out images that the annotations of a path name but that are missing, cannot be read or
            have another size.
        held_out: `TrainingData.held_out` of an earlier start of the run; these images are held out again.

    Raises:
        DataError: a data set cannot be used, or `val_data` has objects of classes that `data` does not know.
    """
    val: DetectionDataset | None = None
    if isinstance(data, DetectionDataset):
        train = data
    else:
        splits = data
        if not isinstance(splits, TrainingSplits):
            splits = read_splits(splits, format=format, with_validation=val_data is None)
        elif val_data is not None:
            splits = splits._replace(val=None)
        splits.refuse_fatal(skip_bad_images=skip_bad_images)
        train, val = splits.train, splits.val
    if isinstance(val_data, DetectionDataset):
        val = val_data
    elif val_data is not None:
        val = open_for_evaluation(val_data, None, format, skip_bad_images)
    return pair(train, val, val_share=val_share, seed=seed, held_out=held_out)


def open_split(
    path: str | Path, split: str | None, format: FormatName | None, skip_bad_images: bool
) -> DetectionDataset:
    """One split of the data set at a path.

    Args:
        path: a folder, an annotation file such as a COCO json, or a zip archive.
        split: name of the split; train if left out, else the first split there is.
        format: of the data set; recognised if left out.
        skip_bad_images: leave out images that are missing, cannot be read or have another size. Any other fatal
            problem is still raised.

    Raises:
        DataError: the data set cannot be used.
    """
    return _without_fatal(recognise(path, format=format), split, skip_bad_images)


def open_for_evaluation(
    path: str | Path, split: str | None, format: FormatName | None, skip_bad_images: bool
) -> DetectionDataset:
    """Split to evaluate on: the one that is named, else "val", else the only one there is.

    Raises:
        DataError: the data set cannot be used, or no split is named and several could be meant.
    """
    found = recognise(path, format=format)
    if split is None:
        if "val" in found.splits:
            split = "val"
        elif len(found.splits) == 1:
            split = found.splits[0]
        else:
            raise DataError(
                f"{path}: no split val; name one of {', '.join(found.splits)} with --split, or split= in Python, "
                "or give the very file of it"
            )
    return _without_fatal(found, split, skip_bad_images)


def _without_fatal(found: FoundDataset, split: str | None, skip_bad_images: bool) -> DetectionDataset:
    dataset = found.open(split, strict=False)
    refuse_fatal(dataset, found.path, skip_bad_images=skip_bad_images)
    return dataset


def pair(
    train: DetectionDataset,
    val: DetectionDataset | None,
    *,
    val_share: float,
    seed: int,
    held_out: Sequence[str] | None = None,
) -> TrainingData:
    """Training data with its validation data: a given split, or a share of the training images that is held out.

    At least one image is held out; a data set of one image is validated with that image.

    Args:
        train: all images to learn from.
        val: the validation split, if there is one.
        val_share: share of `train` to hold out otherwise, in 0..1.
        seed: decides which images are held out.
        held_out: `TrainingData.held_out` of an earlier start of the run. It is needed because one image more or less
            changes the whole random choice, and images already learnt from would then be used for validation.

    Raises:
        DataError: there are no images or no classes; `val` has objects of classes that `train` does not know; or none
            or all of the images are those held out before.
    """
    source = train.source or "the data set"
    fitting = fitting_validation(train, val)
    if fitting is not None:
        return _training_data(
            train, fitting, f"the validation split, {counted(len(fitting), 'image')}", [train, fitting]
        )
    read = [train] if val is None else [train, val]
    why = "there is no validation split" if val is None else "the validation split has no image that can be used"
    if len(train) == 1:
        origin = "the training image itself, being the only one: no measure of quality"
        return _training_data(train, train, origin, read)
    if held_out:
        out = _find(held_out, train)
        if not 0 < len(out) < len(train):
            what = "none" if not out else "all"
            raise DataError(
                f"{source}: of its {counted(len(train), 'image')} {what} were held out by this run, which began with "
                f"{counted(len(held_out), 'image')} for validation; is it another data set?"
            )
        gone = f" ({len(held_out) - len(out)} more are gone)" if len(out) < len(held_out) else ""
    else:
        order = list(range(len(train)))
        random.Random(seed).shuffle(order)
        out, gone = set(order[: min(len(train) - 1, max(1, round(val_share * len(train))))]), ""
    origin = f"{counted(len(out), 'image')} held out, as {why}{gone}"
    kept, judged = (
        train.subset([index for index in range(len(train)) if (index in out) is judges]) for judges in (False, True)
    )
    names = held_out or [_below_all(train)[index] for index in sorted(out)]
    return _training_data(kept, judged, origin, read, names)


def fitting_validation(train: DetectionDataset, val: DetectionDataset | None) -> DetectionDataset | None:
    """Validation split with the classes of the training split; None if there is none, or no image in it.

    Raises:
        DataError: there are no images or no classes to learn; or `val` has objects of classes that `train` does not
            know.
    """
    source = train.source or "the data set"
    if len(train) == 0:
        raise DataError(f"{source}: there are no images to learn from")
    if not train.classes:
        raise DataError(f"{source}: there are no classes to learn")
    if val is None or len(val) == 0:
        return None
    return align_classes(val, train.classes, train.category_ids)


def _below_all(dataset: DetectionDataset) -> list[str]:
    """Path of each image, relative to the folder that all of them share."""
    paths = [Path(os.path.abspath(sample.path)) for sample in dataset.samples]
    root = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(root).as_posix() for path in paths]


def _find(names: Sequence[str], dataset: DetectionDataset) -> set[int]:
    """Indices of the named images; if some have moved, of all images whose path ends with one of the names."""
    wanted = set(names)
    found = {index for index, name in enumerate(_below_all(dataset)) if name in wanted}
    if len(found) == len(wanted):
        return found
    endings = {tuple(name.split("/")) for name in names}
    lengths = {len(parts) for parts in endings}
    return {
        index
        for index, sample in enumerate(dataset.samples)
        if any(sample.path.parts[-length:] in endings for length in lengths)
    }


def _training_data(
    train: DetectionDataset,
    val: DetectionDataset,
    origin: str,
    read: list[DetectionDataset],
    held_out: Sequence[str] = (),
) -> TrainingData:
    return TrainingData(
        train,
        val,
        origin,
        num_problems=sum(len(dataset.problems) for dataset in read),
        num_bad_images=sum(num_bad_images(dataset) for dataset in read),
        held_out=tuple(held_out),
    )


def num_bad_images(dataset: DetectionDataset) -> int:
    """Number of images that the reader left out: missing, unreadable or of another size."""
    return sum(problem.fatal and problem.kind in IMAGE_PROBLEMS for problem in dataset.problems)
