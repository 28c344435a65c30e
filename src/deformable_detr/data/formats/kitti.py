"""KITTI format: a txt per image with a line per object: type, three numbers, left, top, right, bottom, seven more.

Boxes are pixels. `DontCare` marks a region that nobody annotated, which becomes a crowd region of each class.
Truncation, occlusion, what is in three dimensions and a score at the end are ignored. Classes are the types of all
splits, alphabetically.
"""

from functools import partial
from pathlib import Path

from deformable_detr.data.formats.pairs import (
    PairedFolders,
    PairedFormat,
    begins_with,
    find_pairs,
    holds_annotations,
    paired_loaders,
    read_lines,
)
from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.formats.records import ObjectRecord
from deformable_detr.data.formats.split_names import SplitLoaders

LOOKED_FOR = (
    "KITTI: image_2/ and label_2/*.txt (or image/ and label/, images/ and labels/) with a type and 14 numbers on a "
    "line, in the folder, in training/, or in data_object_image_2/training/ and data_object_label_2/training/"
)
_NUM_NUMBERS = 14


def find_splits(path: Path) -> SplitLoaders:
    """KITTI splits of a folder; empty if there are none."""
    parts = find_pairs(path, _FORMAT)
    if not parts:
        # The two archives of the original, each unpacked into a folder of its own.
        images, labels = (path / f"data_object_{name}" / "training" / name for name in ("image_2", "label_2"))
        if images.is_dir() and holds_annotations(labels, _FORMAT):
            parts = [PairedFolders("train", images, labels)]
    return paired_loaders(parts, _FORMAT)


def holds_kitti(folder: Path) -> bool:
    """Whether a folder has label files of this format, which other formats of txt files leave to it."""
    return holds_annotations(folder, _FORMAT)


def kitti_object(line: str, where: str) -> ObjectRecord | str:
    """Object in a line, or what is wrong with the line."""
    words = line.split()
    numbers: list[float] = []
    # From the end, because programs write types of several words; a score may follow the 14 numbers.
    for word in reversed(words[1:]):
        try:
            numbers.append(float(word))
        except ValueError:
            break
    name = " ".join(words[: len(words) - len(numbers)])
    if len(numbers) not in (_NUM_NUMBERS, _NUM_NUMBERS + 1):
        return (
            f"{len(numbers)} numbers after the type; truncation, occlusion, angle, box and what is in three dimensions "
            f"are {_NUM_NUMBERS}"
        )
    if name.replace(".", "").lstrip("-").isdigit():
        return f"expected a type before the numbers, not {shown(name)}"
    left, top, right, bottom = numbers[::-1][3:7]
    return ObjectRecord(None if name.lower() == "dontcare" else name, (left, top, right, bottom), where)


_FORMAT = PairedFormat(
    name="KITTI",
    images=("image_2", "image_02", "images", "image", "data"),
    annotations=lambda name: name in ("label_2", "label_02", "labels", "label"),
    ending=".txt",
    accepts=partial(begins_with, kitti_object),
    read=partial(read_lines, parse=kitti_object),
)
