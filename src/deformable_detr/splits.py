"""Which images a run learns from and which it is judged by, with the same class ids in both."""

import random
from pathlib import Path
from typing import NamedTuple

from deformable_detr.data.dataset import DetectionDataset, align_classes
from deformable_detr.data.open import FormatName, list_splits, open_dataset
from deformable_detr.errors import DataError

_IMAGE_PROBLEMS = ("missing_image", "unreadable_image", "size_mismatch")


class TrainingData(NamedTuple):
    """Images to learn from and images to judge by, and in words where the latter came from."""

    train: DetectionDataset
    val: DetectionDataset
    origin: str
    num_problems: int
    """What the readers found wrong and mended or left out, in both."""
    num_bad_images: int
    """Images among those that are missing or have another size."""


def open_training_data(
    path: Path, *, format: FormatName | None = None, val_share: float, seed: int, skip_bad_images: bool
) -> TrainingData:
    """The split "train", and the split "val" if there is one, else a share of "train" that is then not learnt from.

    The split "test" is never looked at, unless `path` is the very file of it.

    Args:
        path: a data set in any known format.
        format: which one; recognised by itself if left out.
        val_share: how much of "train" to hold out where there is no "val".
        seed: decides which images are held out.
        skip_bad_images: leave out images that the annotations name but that are not there or have another size.

    Raises:
        DataError: the data set cannot be used.
    """
    names = list_splits(path, format=format)
    if "train" not in names and path.is_dir():
        raise DataError(f"{path}: no split to train on; there is {', '.join(names)}")
    train = open_split(path, "train" if "train" in names else None, format, skip_bad_images)
    val = open_split(path, "val", format, skip_bad_images) if {"train", "val"} <= set(names) else None
    return pair(train, val, val_share=val_share, seed=seed)


def open_split(path: Path, split: str | None, format: FormatName | None, skip_bad_images: bool) -> DetectionDataset:
    """One split. With `skip_bad_images` every problem but that of an image still stops it.

    Raises:
        DataError: the data set cannot be used.
    """
    if not skip_bad_images:
        return open_dataset(path, split=split, format=format)
    dataset = open_dataset(path, split=split, format=format, strict=False)
    for problem in dataset.fatal_problems:
        if problem.kind not in _IMAGE_PROBLEMS:
            raise DataError(f"{problem.where}: {problem.message}")
    return dataset


def open_for_evaluation(
    path: Path, split: str | None, format: FormatName | None, skip_bad_images: bool
) -> DetectionDataset:
    """The split named, or "val", or the only one there is.

    Raises:
        DataError: the data set cannot be used, or no split is named and several could be meant.
    """
    names = list_splits(path, format=format)
    if split is None:
        if "val" in names:
            split = "val"
        elif len(names) == 1:
            split = names[0]
        else:
            raise DataError(f"{path}: no split val; name one of {', '.join(names)} with --split")
    return open_split(path, split, format, skip_bad_images)


def pair(train: DetectionDataset, val: DetectionDataset | None, *, val_share: float, seed: int) -> TrainingData:
    """`train` with `val`, or with a share of itself held out: at least one image, unless there is only one.

    Raises:
        DataError: no images, no classes, or `val` has objects of classes that `train` does not know.
    """
    source = train.source or "the data set"
    if len(train) == 0:
        raise DataError(f"{source}: there are no images to learn from")
    if not train.classes:
        raise DataError(f"{source}: there are no classes to learn")
    if val is not None and len(val) > 0:
        val = align_classes(val, train.classes, train.category_ids)
        return _training_data(train, val, f"the validation split, {_images(len(val))}", [train, val])
    if len(train) == 1:
        origin = "the training image itself, being the only one: no measure of quality"
        return _training_data(train, train, origin, [train])
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    count = min(len(train) - 1, max(1, round(val_share * len(train))))
    origin = f"{_images(count)} held out, as there is no validation split"
    kept, out = train.subset(sorted(order[count:])), train.subset(sorted(order[:count]))
    return _training_data(kept, out, origin, [train])


def _training_data(
    train: DetectionDataset, val: DetectionDataset, origin: str, read: list[DetectionDataset]
) -> TrainingData:
    return TrainingData(
        train,
        val,
        origin,
        num_problems=sum(len(dataset.problems) for dataset in read),
        num_bad_images=sum(num_bad_images(dataset) for dataset in read),
    )


def num_bad_images(dataset: DetectionDataset) -> int:
    """Images the reader left out because they are missing or have another size."""
    return sum(problem.fatal and problem.kind in _IMAGE_PROBLEMS for problem in dataset.problems)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
