"""VisDrone format: a txt per image with a line per object: left, top, width, height, score, category, and two more.

Boxes are pixels. Category 0 is a region that nobody annotated, which becomes a crowd region of each class, and score 0
marks what evaluation ignores, which becomes a crowd region of its class. Truncation and occlusion are ignored.
"""

import re
from functools import partial
from pathlib import Path

from deformable_detr.data.formats.pairs import PairedFormat, find_pairs, paired_loaders, read_lines
from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.formats.records import ObjectRecord
from deformable_detr.data.formats.split_names import SplitLoaders

LOOKED_FOR = (
    "VisDrone: images/ and annotations/*.txt with eight whole numbers and commas on a line, in the folder or in "
    "folders of splits such as VisDrone2019-DET-train/"
)
CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
    "others",
)
"""Names of the categories 1 to 11."""

_LINE = re.compile(r"\s*(?:-?\d+\s*,\s*){7}-?\d+\s*,?\s*")


def find_splits(path: Path) -> SplitLoaders:
    """VisDrone splits of a folder; empty if there are none."""
    parts = find_pairs(path, _FORMAT)
    return paired_loaders(parts, _FORMAT)


def visdrone_object(line: str, where: str) -> ObjectRecord | str:
    """Object in a line, or what is wrong with the line."""
    words = line.rstrip().removesuffix(",").split(",")
    if len(words) != 8:
        return f"{len(words)} values; left, top, width, height, score, category, truncation and occlusion are 8"
    try:
        left, top, width, height, score, category = (float(word) for word in words[:6])
    except ValueError:
        return f"expected numbers, not {shown(line)}"
    if score not in (0, 1):
        return f"the score must be 1, or 0 for what is ignored, not {shown(words[4])}; are these detections?"
    if not (category.is_integer() and 0 <= category <= len(CLASSES)):
        return f"the category must be from 0 to {len(CLASSES)}, not {shown(words[5])}"
    name = CLASSES[int(category) - 1] if category else None
    return ObjectRecord(name, (left, top, left + width, top + height), where, is_crowd=not score)


def _begins_like_visdrone(start: str) -> bool:
    return any(_LINE.fullmatch(line) for line in start.splitlines()[:20])


_FORMAT = PairedFormat(
    name="VISDRONE",
    images=("images",),
    annotations=lambda name: name == "annotations",
    ending=".txt",
    accepts=_begins_like_visdrone,
    read=partial(read_lines, parse=visdrone_object),
    classes=CLASSES,
)
