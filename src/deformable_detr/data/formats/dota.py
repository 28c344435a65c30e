"""DOTA format: a txt per image with a line per object: four corners x y, the class, and whether it is difficult.

An object becomes the upright box around its corners, in pixels. Objects marked difficult are ordinary objects here.
The lines `imagesource:` and `gsd:` above them are passed over. Classes are those of all splits, alphabetically.
"""

from functools import partial
from pathlib import Path

from deformable_detr.data.formats.image_names import subfolders
from deformable_detr.data.formats.pairs import (
    PairedFormat,
    begins_with,
    find_pairs,
    paired_loaders,
    read_lines,
)
from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.formats.records import ObjectRecord
from deformable_detr.data.formats.shapes import box_around_flat
from deformable_detr.data.formats.split_names import SplitLoaders

LOOKED_FOR = (
    "DOTA: images/ and labelTxt*/*.txt or annfiles/*.txt with eight numbers and a class on a line, in the folder or in "
    "train/, val/"
)
_HEADERS = ("imagesource:", "gsd:")
# Upright boxes around the same objects, which archives of DOTA have beside the corners.
_COPIES = ("hbb", "task2", "rec")


def find_splits(path: Path) -> SplitLoaders:
    """DOTA splits of a folder; empty if there are none."""
    parts = [part._replace(annotations=_without_copies(part.annotations)) for part in find_pairs(path, _FORMAT)]
    return paired_loaders(parts, _FORMAT)


def _without_copies(folder: Path) -> Path:
    """Folder of labels, or the one within it that has them as four corners, where another has upright boxes."""
    inner = subfolders(folder)
    originals = [name for name in inner if not any(word in name.lower() for word in _COPIES)]
    return folder / originals[0] if len(inner) > len(originals) == 1 else folder


def dota_object(line: str, where: str) -> ObjectRecord | str | None:
    """Object in a line, or what is wrong with the line; None for a header."""
    if line.strip().lower().startswith(_HEADERS):
        return None
    words = line.split()
    try:
        corners = [float(word) for word in words[:8]]
    except ValueError:
        return f"expected four corners x y and a class, not {shown(line)}"
    names = words[8:]
    if len(names) > 1 and names[-1] in ("0", "1", "2"):  # difficult, 2 very
        names = names[:-1]
    if not names or names[-1].replace(".", "").lstrip("-").isdigit():
        return f"expected a class after the four corners: {shown(line)}"
    return ObjectRecord(" ".join(names), box_around_flat(corners), where)


_FORMAT = PairedFormat(
    name="DOTA",
    images=("images",),
    annotations=lambda name: name.startswith("labeltxt") or name == "annfiles",
    ending=".txt",
    accepts=partial(begins_with, dota_object),
    read=partial(read_lines, parse=dota_object),
)
