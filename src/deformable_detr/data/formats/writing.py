"""Writing of data sets: text files in one go, image files next to their annotations, and unique names."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from deformable_detr.core.errors import OutputError
from deformable_detr.core.files import write_atomically, write_text
from deformable_detr.data.dataset import DetectionDataset, Problem, Sample
from deformable_detr.data.images import IMAGE_SUFFIXES

Placement = Literal["copy", "link"]
"""Placement of image files: copied, or symbolic links to the originals."""


def write_in(folder: Path, name: str, text: str) -> None:
    """Write a text file of a data set in one go, and make its folder.

    Raises:
        OutputError: it cannot be written.
    """
    _make(folder)
    write_text(folder / name, text, durable=False)


def place_image(source: Path, target: Path, placement: Placement) -> None:
    """Make `target` a copy of `source` or a link to it, in place of any earlier file.

    Raises:
        OutputError: the image cannot be read or the target cannot be written.
    """
    if target.exists() and target.samefile(source):
        return

    def write(partial: Path) -> None:
        if placement == "copy":
            shutil.copyfile(source, partial)
        else:
            partial.unlink()
            partial.symlink_to(os.path.abspath(source))

    _make(target.parent)
    write_atomically(target, write, durable=False)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error


def unique_names(samples: Sequence[Sample], taken: Iterable[str] = ()) -> list[str]:
    """File name for each image: its own name made printable, and numbered where another has the same stem.

    Formats find an annotation by the stem of its image, and some disks ignore case. So stems must differ, in more than
    their case.

    Args:
        samples: the images.
        taken: stems that are in use already.
    """
    used = {stem.lower() for stem in taken}
    names = []
    for sample in samples:
        stem, suffix = os.path.splitext(sample.path.name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = sample.path.name, ".jpg"
        stem = "".join(letter if letter.isprintable() else "_" for letter in stem).strip()
        stem = f"_{stem}" if stem.startswith((".", "#")) or not stem else stem
        free, number = stem, 1
        while free.lower() in used:
            number += 1
            free = f"{stem}_{number}"
        used.add(free.lower())
        names.append(free + suffix)
    return names


def not_kept(dataset: DetectionDataset, where: str, *, crowd: bool, areas: bool) -> tuple[Problem, ...]:
    """Problems for content that a format cannot hold.

    Args:
        dataset: to be written.
        where: place that the problems name.
        crowd: the format cannot mark crowd regions.
        areas: the format cannot hold an area other than width x height.
    """
    problems = []
    num_crowd = sum(int(sample.is_crowd.sum()) for sample in dataset.samples)
    if crowd and num_crowd:
        text = f"{num_crowd} crowd boxes are written as ordinary objects: the format has no mark for them"
        problems.append(Problem("not_kept", where, text, False))
    num_areas = sum(sum(has_own_area(sample)) for sample in dataset.samples)
    if areas and num_areas:
        text = f"{num_areas} objects lose their own area: the format has none, width x height will be used"
        problems.append(Problem("not_kept", where, text, False))
    return tuple(problems)


def has_own_area(sample: Sample) -> list[bool]:
    """Whether each object has an area other than width x height, such as that of a mask."""
    width, height = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).T
    return (abs(sample.areas - width * height) > 1e-6 * (1.0 + sample.areas)).tolist()
