"""Label files of images, for formats that have one for each image, found by their names.

A label file belongs to the image of the same stem, in whatever form letters with marks are encoded, and whatever the
case of its own ending. Names that agree but for case, a doubled ending, spaces or the like are neither taken for equal
nor passed over: without its label file an image would count as one without objects, and be learnt as that.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from deformable_detr.core.errors import listed
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.image_names import composed
from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.images import IMAGE_SUFFIXES

_ENDINGS = IMAGE_SUFFIXES | {".txt", ".xml", ".json"}
_SEPARATORS = re.compile(r"[\s_-]+")
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


class MatchedLabels(NamedTuple):
    """Label files of the images of a folder."""

    label_of: dict[Path, Path]
    """Label file of each image that has one."""
    problems: list[Problem]
    """Label files without an image, names that nearly agree, and names that belong to several files."""


def match_labels(
    images: Iterable[Path],
    label_files: Iterable[Path],
    *,
    used: Collection[Path] | None = None,
    by_whole_name: bool = False,
) -> MatchedLabels:
    """Label file of each image, and all that keeps an image or a label file from having its other half.

    Args:
        images: all image files among which label files are to find theirs.
        label_files: all label files.
        used: images that are to be read, such as those of one split; all of them if left out. The others have no
            problems, but their label files belong to them.
        by_whole_name: whether a label file is named after the whole name of the image (`a.jpg.json`), not after its
            stem (`a.json`).
    """
    images_of = files_by_name(images, with_ending=by_whole_name)
    labels_of = files_by_name(label_files)
    wanted = None if used is None else frozenset(used)
    label_of: dict[Path, Path] = {}
    problems: list[Problem] = []
    bare: list[Path] = []
    for name, twins in images_of.items():
        read = [image for image in twins if wanted is None or image in wanted]
        labels = labels_of.get(name, [])
        if not labels:
            bare += read
        elif len(read) > 1 or (read and len(labels) > 1):
            problems.append(_twins(read, labels))
        elif read:
            label_of[read[0]] = labels[0]
            problems += [_bystander(read[0], other, labels[0]) for other in twins if other != read[0]]
    orphans = [label for name, labels in labels_of.items() if name not in images_of for label in labels]
    near = near_misses(bare, orphans, with_ending=by_whole_name)
    explained = {problem.where for problem in near}
    lonely = [
        Problem("orphan_annotation", str(label), "no image has this name: ignored", False)
        for label in sorted(orphans)
        if str(label) not in explained
    ]
    return MatchedLabels(label_of, [*problems, *near, *lonely])


def files_by_name(files: Iterable[Path], *, with_ending: bool = False) -> dict[str, list[Path]]:
    """Files by the name that an image and its label file share: the stem, or the name with its ending."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        found[composed(file.name if with_ending else file.stem)].append(file)
    return dict(found)


def near_misses(images: Iterable[Path], label_files: Iterable[Path], *, with_ending: bool = False) -> list[Problem]:
    """Fatal problems of label files without an image whose names are nearly those of images without a label file.

    Args:
        images: images that have no label file.
        label_files: label files that belong to no image.
        with_ending: whether label files are named after the whole name of their image.
    """
    images_of: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        images_of[_without_accidents(image.name)].append(image)
    problems = []
    for label in sorted(label_files) if images_of else ():
        near = images_of.get(_without_accidents(label.name))
        if near:
            fitting = (near[0].name if with_ending else near[0].stem) + label.suffix
            text = (
                f"its name is nearly that of the image {shown(near[0].name)}, which has no label file; rename it to "
                f"{shown(fitting)} if it belongs to that image, else move it away"
            )
            problems.append(Problem("orphan_annotation", str(label), text, True))
    return problems


def _without_accidents(name: str) -> str:
    """Name without what programs and people change in passing.

    That is case, any number of endings, spaces and separators, leading zeros, forms of letters, and letters written as
    %20.
    """
    text = unicodedata.normalize("NFKC", unquote(name)).casefold().strip()
    stem, ending = os.path.splitext(text)
    while stem and ending.strip() in _ENDINGS:
        text = stem.strip()
        stem, ending = os.path.splitext(text)
    return _LEADING_ZEROS.sub("", _SEPARATORS.sub("_", text))


def _twins(images: Sequence[Path], labels: Sequence[Path]) -> Problem:
    names = [shown(image.name) for image in images]
    if len(labels) > 1:
        text = f"{listed([shown(label.name) for label in labels])} all belong to the image {names[0]}; keep one of them"
    else:
        text = f"the images {listed(names)} share this label file; rename all but one of them, or move them away"
    return Problem("duplicate_image", str(labels[0]), text, True)


def _bystander(image: Path, other: Path, label: Path) -> Problem:
    text = f"it is read for the image {shown(image.name)}; {shown(other.name)} has the same stem and is not listed"
    return Problem("duplicate_image", str(label), text, False)
