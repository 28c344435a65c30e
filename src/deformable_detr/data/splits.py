"""Which images a run learns from and which it is judged by, with the same class ids in both."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, align_classes
from deformable_detr.data.open import FormatName, list_splits, open_dataset

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
    held_out: tuple[str, ...] = ()
    """Where `val` is a share of the images to learn from: which, by path below the folder that all of them share."""


def open_training_data(
    data: str | Path | DetectionDataset,
    val_data: str | Path | DetectionDataset | None = None,
    *,
    format: FormatName | None = None,
    val_share: float,
    seed: int,
    skip_bad_images: bool,
    held_out: Sequence[str] | None = None,
) -> TrainingData:
    """Training data of a path or of an open data set, with what they are judged by; classes are those of the former.

    Of a path it is the split "train", judged by the split "val" if there is one. Where neither that nor `val_data` is
    there, a share of the images is held out and not learnt from. The split "test" is never looked at, unless `data` is
    the very file of it.

    Args:
        data: a data set in any known format, or one that is already open.
        val_data: what to judge by instead, of either kind; of a path, its split "val" or the only one there is.
        format: of what is given as a path; recognised by itself if left out.
        val_share: how much to hold out where there is nothing else to judge by.
        seed: decides which images are held out.
        skip_bad_images: leave out images that the annotations of a path name but that are not there or have another
            size.
        held_out: those of an earlier time, which are held out again whatever has become of the others.

    Raises:
        DataError: a data set cannot be used, or `val_data` has objects of classes that `data` does not know.
    """
    val: DetectionDataset | None = None
    if isinstance(data, DetectionDataset):
        train = data
    else:
        names = list_splits(data, format=format)
        if "train" not in names and Path(data).expanduser().is_dir():
            raise DataError(f"{data}: no split to train on; there is {', '.join(names)}")
        train = open_split(data, "train" if "train" in names else None, format, skip_bad_images)
        if val_data is None and {"train", "val"} <= set(names):
            val = open_split(data, "val", format, skip_bad_images)
    if isinstance(val_data, DetectionDataset):
        val = val_data
    elif val_data is not None:
        val = open_for_evaluation(val_data, None, format, skip_bad_images)
    return pair(train, val, val_share=val_share, seed=seed, held_out=held_out)


def open_split(
    path: str | Path, split: str | None, format: FormatName | None, skip_bad_images: bool
) -> DetectionDataset:
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
    path: str | Path, split: str | None, format: FormatName | None, skip_bad_images: bool
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
            raise DataError(
                f"{path}: no split val; name one of {', '.join(names)} with --split, or split= in Python, "
                "or give the very file of it"
            )
    return open_split(path, split, format, skip_bad_images)


def pair(
    train: DetectionDataset,
    val: DetectionDataset | None,
    *,
    val_share: float,
    seed: int,
    held_out: Sequence[str] | None = None,
) -> TrainingData:
    """`train` with `val`, or with a share of itself held out: at least one image, unless there is only one.

    Args:
        train: all images.
        val: the validation split, if there is one.
        val_share: how much of `train` to hold out otherwise.
        seed: decides which.
        held_out: `TrainingData.held_out` of an earlier time. One image more or less would deal all of them anew, and
            what was learnt from would be judged by.

    Raises:
        DataError: no images, no classes, `val` has objects of classes that `train` does not know, or of the images
            held out before, or of the others, none is left.
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
    if held_out:
        out = _find(held_out, train)
        if not 0 < len(out) < len(train):
            what = "none" if not out else "all"
            raise DataError(
                f"{source}: of its {_images(len(train))} {what} were held out by this run, which began with "
                f"{_images(len(held_out))} to judge by; is it another data set?"
            )
        gone = f" ({len(held_out) - len(out)} more are gone)" if len(out) < len(held_out) else ""
    else:
        order = list(range(len(train)))
        random.Random(seed).shuffle(order)
        out, gone = set(order[: min(len(train) - 1, max(1, round(val_share * len(train))))]), ""
    origin = f"{_images(len(out))} held out, as there is no validation split{gone}"
    kept, judged = (
        train.subset([index for index in range(len(train)) if (index in out) is judges]) for judges in (False, True)
    )
    names = held_out or [_below_all(train)[index] for index in sorted(out)]
    return _training_data(kept, judged, origin, [train], names)


def _below_all(dataset: DetectionDataset) -> list[str]:
    """Path of each image below the folder that all of them share."""
    paths = [Path(os.path.abspath(sample.path)) for sample in dataset.samples]
    root = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(root).as_posix() for path in paths]


def _find(names: Sequence[str], dataset: DetectionDataset) -> set[int]:
    """Indices of these images. If some are not where they were, all whose path ends so, wherever they are by now."""
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
    """Images the reader left out because they are missing or have another size."""
    return sum(problem.fatal and problem.kind in _IMAGE_PROBLEMS for problem in dataset.problems)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
