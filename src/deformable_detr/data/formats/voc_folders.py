"""Folders of xml files, and the folders of images that belong to them because files in both have the same stems."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.formats.cvat import starts_like_cvat
from deformable_detr.data.formats.image_names import composed
from deformable_detr.data.formats.parsing import read_xml
from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split
from deformable_detr.data.images import is_image_file

XML_FOLDERS = ("Annotations", "annotations", "xml", "labels")
"""Usual names of folders of xml files; they and those of image folders count where stems leave a choice."""
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")
"""Usual names of folders of images."""

_DEEPEST = 3
_MOST_FOLDERS = 500
_PROBED_FILES = 5
# A folder that lacks a few images is as likely the right one as a folder that has them all.
_NEARLY_ALL = 0.9


class FolderPair(NamedTuple):
    """Folder of xml with a folder of images, which may be the same."""

    xml_folder: Path
    """Folder that the xml files lie in."""
    image_folder: Path
    """Folder that the images lie in."""


class FolderContents(NamedTuple):
    """Stems of the files that lie directly in a folder."""

    xmls: frozenset[str]
    """Stems of its xml files."""
    images: frozenset[str]
    """Stems of its images."""


def xml_files(folder: Path) -> list[Path]:
    """Xml files directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml" and path.name[0] != ".")


def stem_of(name: str) -> str:
    """Stem of a file's name, in the form of its letters that all names are compared in."""
    return composed(os.path.splitext(name)[0])


def contents_of(folder: Path) -> dict[Path, FolderContents]:
    """Stems in a folder and all below it, down to a depth and a number that real data sets do not exceed."""
    found: dict[Path, FolderContents] = {}
    level = [folder]
    for _ in range(_DEEPEST + 1):
        below: list[Path] = []
        for place in level[: _MOST_FOLDERS - len(found)]:
            xmls: set[str] = set()
            images: set[str] = set()
            try:
                entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
            except OSError:
                if place == folder:
                    raise
                continue  # Some other folder that happens to lie here.
            for entry in entries:
                if entry.name.lower().endswith(".xml"):
                    stem = stem_of(entry.name)
                    # Some tools keep the image's ending: a.jpg.xml.
                    xmls |= {stem, stem_of(stem)} if is_image_file(stem) else {stem}
                elif is_image_file(entry.name):
                    images.add(stem_of(entry.name))
                elif entry.is_dir():
                    below.append(place / entry.name)
            found[place] = FolderContents(frozenset(xmls), frozenset(images))
        level = sorted(below)
    return found


def pairs_in(folder: Path, contents: dict[Path, FolderContents]) -> list[FolderPair]:
    """Folders of xml, each with the folder, or with the folders of all splits, that have images of the same stems.

    Args:
        folder: folder of the data set. Pairs that lie together further down, in a folder that is not named after a
            split, are another data set's and left out.
        contents: contents of it and of the folders below it.

    Raises:
        DataError: two folders of images would do equally well.
    """
    pairs = []
    for place, (xmls, _) in contents.items():
        if not xmls:
            continue
        num_common = {other: len(xmls & images) for other, (_, images) in contents.items()}
        if not any(num_common.values()):
            # Names that differ in case are no equals, but only whoever reads the split can say which they are.
            folded = {stem.casefold() for stem in xmls}
            num_common = {
                other: len(folded & {stem.casefold() for stem in images}) for other, (_, images) in contents.items()
            }
        others = [other for other, number in num_common.items() if number]
        if others:
            own_split = innermost_split(place, folder)
            same_split = [other for other in others if own_split and innermost_split(other, folder) == own_split]
            best = _best_of(place, same_split or others, num_common, folder)
            # Xml files of all splits may lie together, and images in a folder for each split.
            divided = own_split is None and canonical_split(best.name) in MAIN_SPLITS
            siblings = [
                other
                for other in others
                if divided and other.parent == best.parent and canonical_split(other.name) in MAIN_SPLITS
            ]
            if _is_of(folder, _common_folder(place, best)):
                pairs += [FolderPair(place, other) for other in siblings or [best]]
        else:
            # Names of files may differ as long as each xml says which image it is about.
            usual = [place.parent / name for name in IMAGE_FOLDERS]
            usual = [other for other in usual if other in contents and contents[other].images]
            is_usual = usual and place.name in XML_FOLDERS and _is_of(folder, place.parent)
            if is_usual and not all(map(starts_like_cvat, xml_files(place)[:_PROBED_FILES])):
                pairs.append(FolderPair(place, usual[0]))
    return pairs


def innermost_split(place: Path, folder: Path) -> str | None:
    """Name of the innermost folder, on the way from the data set's, that is named after a split; None without one."""
    parts = reversed(place.relative_to(folder).parts)
    return next((part for part in parts if canonical_split(part) in MAIN_SPLITS), None)


def _common_folder(one: Path, two: Path) -> Path:
    return Path(os.path.commonpath((one, two)))


def _is_of(folder: Path, common: Path) -> bool:
    """Whether files below a common folder are of the data set in `folder`, not of one further down."""
    if not common.is_relative_to(folder):
        return False
    parts = common.relative_to(folder).parts
    named = [part for part in parts if canonical_split(part) in MAIN_SPLITS]
    return not parts or (bool(named) and len(parts) - len(named) <= (parts[0].lower() == "images"))


def _best_of(place: Path, others: Sequence[Path], num_common: dict[Path, int], folder: Path) -> Path:
    """Folder of images that fits a folder of xml best.

    In this order: two folders of usual names beside each other; the same folder; most common stems; a usual name; files
    that the first xml files name; the nearest.

    Raises:
        DataError: two do equally well in all of this.
    """
    if place.name in XML_FOLDERS:
        for name in IMAGE_FOLDERS:
            if place.parent / name in others:
                return place.parent / name
    if place in others:
        return place
    most = max(num_common[other] for other in others)
    best = [other for other in others if num_common[other] >= _NEARLY_ALL * most]
    if len(best) > 1:
        usual = [other for other in best if set(other.relative_to(folder).parts) & {*IMAGE_FOLDERS}]
        best = usual or _named_in(place, best) or best
    depths = {other: len(_common_folder(place, other).parts) for other in best}
    nearest = [other for other in best if depths[other] == max(depths.values())]
    by_name = {other.name: other for other in reversed(nearest)}
    first = next((by_name[name] for name in IMAGE_FOLDERS if name in by_name), nearest[0])
    splits = {innermost_split(other, folder) for other in nearest}
    if len(nearest) > 1 and first.name not in IMAGE_FOLDERS and len(splits) < len(nearest):
        names = listed([str(other) for other in nearest])
        raise DataError(f"{place}: its xml files fit the images in {names}; move away what is not meant")
    return first


def _named_in(place: Path, folders: Sequence[Path]) -> list[Path]:
    """Folders that have the files which the first xml files of a folder name."""
    names = []
    for file in xml_files(place)[:_PROBED_FILES]:
        try:
            names.append((read_xml(file).findtext("filename") or "").strip())
        except DataError:
            continue  # It is reported when the split is read.
    plain = [name for name in names if name and "/" not in name and "\0" not in name]
    return [folder for folder in folders if any(os.path.isfile(folder / name) for name in plain)]
