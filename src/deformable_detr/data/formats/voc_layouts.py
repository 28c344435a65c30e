"""Layouts of VOC data sets: xml and image folders that belong together by the stems in them, and lists of stems."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.image_names import composed
from deformable_detr.data.formats.label_names import files_by_name
from deformable_detr.data.formats.parsing import read_text, shown
from deformable_detr.data.formats.voc_folders import (
    IMAGE_FOLDERS,
    XML_FOLDERS,
    FolderContents,
    FolderPair,
    contents_of,
    innermost_split,
    pairs_in,
    stem_of,
    xml_files,
)
from deformable_detr.data.images import IMAGE_SUFFIXES, is_image_file


class ListedImage(NamedTuple):
    """Image of a split with the files found for it."""

    stem: str
    """Stem that both files are found by."""
    xmls: list[Path]
    """Annotation files of this stem: one, unless there is none or there are twins."""
    images: list[Path]
    """Image files of this stem: one, unless there is none or there are twins."""


class VocPart:
    """Split of a VOC data set: a folder of xml and one of images, with a list of stems if not all belong to it."""

    def __init__(
        self,
        split: str,
        xml_folder: Path,
        image_folder: Path,
        list_file: Path | None = None,
        stems: Sequence[str] | None = None,
    ) -> None:
        self.split = split
        self.xml_folder = xml_folder
        self.image_folder = image_folder
        self.list_file = list_file
        self.only_stems = stems

    @property
    def where(self) -> str:
        """Name of the split in messages."""
        return str(self.list_file or self.xml_folder)

    def xml_paths(self) -> list[Path]:
        """Xml files of this split that exist."""
        return [path for stem in dict.fromkeys(self._stems) for path in self._xmls.get(stem, [])]

    def items(self, problems: list[Problem]) -> Iterator[ListedImage]:
        """Images of the split in its order, each once; stems listed again are added to the problems."""
        seen = set()
        for stem in self._stems:
            if stem in seen:
                text = f"{stem} is listed more than once: read once"
                problems.append(Problem("duplicate_image", self.where, text, False))
                continue
            seen.add(stem)
            yield ListedImage(stem, self._xmls.get(stem, []), self._images.get(stem, []))

    def orphans(self) -> list[Path]:
        """Xml files of the folder, those of other splits left out, that have no image of their stem."""
        stems = self._xmls if self.only_stems is None else self.only_stems
        return [path for stem in stems if stem not in self._images for path in self._xmls.get(stem, [])]

    def image_named(self, file_name: str | None) -> Path | None:
        """Image that an xml names, if it exists; only the last part of the name counts."""
        if file_name is None:
            return None
        last = file_name.replace("\\", "/").rpartition("/")[2]
        path = self.image_folder / last
        if last and "\0" not in last and os.path.isfile(path):
            return path
        same_stem = self._images.get(stem_of(last), [])
        return next((path for path in same_stem if composed(path.name) == composed(last)), None)

    @cached_property
    def _images(self) -> dict[str, list[Path]]:
        """Image files by stem."""
        return files_by_name(path for path in sorted(self.image_folder.iterdir()) if is_image_file(path))

    @cached_property
    def _xmls(self) -> dict[str, list[Path]]:
        """Annotation files by stem."""
        return files_by_name(xml_files(self.xml_folder))

    @cached_property
    def _stems(self) -> list[str]:
        if self.list_file is not None:
            return [self._stem_of(line.strip()) for line in read_text(self.list_file).splitlines() if line.strip()]
        if self.only_stems is not None:
            return sorted(self.only_stems)
        return sorted({*self._xmls, *self._images})

    def _stem_of(self, line: str) -> str:
        """Stem in a line of a list; an ending of an image or VOC's mark of a class (1, 0, -1) may follow it."""
        last = composed(line.replace("\\", "/").rpartition("/")[2])
        first, _, mark = last.rpartition(" ")
        candidates = [last, os.path.splitext(last)[0], first.strip() if mark in ("1", "0", "-1") else last]
        for candidate in candidates:
            if candidate and (candidate in self._xmls or candidate in self._images):
                return candidate
        return os.path.splitext(last)[0] if os.path.splitext(last)[1].lower() in IMAGE_SUFFIXES else last


def find_parts(folder: Path) -> list[VocPart]:
    """Splits of a folder, by the first of these layouts that is there.

    1. `ImageSets/Main/<split>.txt` with a folder of xml and one of images
    2. xml and images in `<split>` or in `images/<split>`, beside each other or in folders there; or in two folders of
       which one or both are named after splits
    3. xml and images beside each other or in two folders

    Folders may have any names and be a few deep: they belong together if files in them have the same stems. What lies
    together in a folder of its own, which is not named after a split, is another data set.

    Raises:
        DataError: two folders of images, or of xml, would do equally well; or an xml has images in two splits.
    """
    if not folder.is_dir():
        return []
    contents = contents_of(folder)
    if not any(one.xmls for one in contents.values()):
        return []
    pairs = pairs_in(folder, contents)
    lists = folder / "ImageSets" / "Main"
    splits = {
        pair: innermost_split(pair.image_folder, folder) or innermost_split(pair.xml_folder, folder) for pair in pairs
    }
    whole = [pair for pair, split in splits.items() if split is None]
    if whole and lists.is_dir():
        files = sorted(lists.glob("*.txt"))
        names = {file.stem for file in files}
        # Lists such as aeroplane_train.txt mark the images of train.txt that show an aeroplane: no splits of their own.
        files = [file for file in files if file.stem.rpartition("_")[2] not in names - {file.stem}]
        if files:
            return [VocPart(file.stem, *_the_only(whole), file) for file in files]
    divided = {pair: split for pair, split in splits.items() if split is not None}
    parts = [VocPart(split, *pair, stems=_stems_of(pair, list(divided), contents)) for pair, split in divided.items()]
    if len(whole) == 1 or (whole and not parts):
        parts.append(VocPart(folder.name, *_the_only(whole)))
    _refuse_twins(parts)
    return parts


def _refuse_twins(parts: Sequence[VocPart]) -> None:
    """Raise `DataError` if two parts are of one split, of which one would be lost."""
    first: dict[str, VocPart] = {}
    for part in parts:
        twin = first.setdefault(part.split, part)
        if twin is not part:
            text = f"this and {part.xml_folder} both have the xml files of a split {part.split}"
            raise DataError(f"{twin.xml_folder}: {text}; move away what is not meant")


def _the_only(pairs: Sequence[FolderPair]) -> FolderPair:
    """Pair of folders that are no splits: the only one, or the one with usual names.

    Raises:
        DataError: there are several.
    """
    usual = [pair for name in XML_FOLDERS for pair in pairs if pair.xml_folder.name == name]
    usual = [pair for pair in usual if pair.image_folder.name in IMAGE_FOLDERS]
    if len(pairs) > 1 and not usual:
        names = listed([str(pair.xml_folder) for pair in pairs])
        raise DataError(f"xml files of images are in {names}; put them into one folder, or into train, val and test")
    return (usual or list(pairs))[0]


def _stems_of(pair: FolderPair, pairs: Sequence[FolderPair], contents: dict[Path, FolderContents]) -> list[str] | None:
    """Stems of a split that has a folder in common with other splits; None for one that has none.

    A folder in common is divided by the stems in the folders that are not.

    Raises:
        DataError: an xml has images in two splits.
    """
    xmls = contents[pair.xml_folder].xmls
    others = [other for other in pairs if other.xml_folder == pair.xml_folder and other != pair]
    if not others:
        alone = sum(other.image_folder == pair.image_folder for other in pairs) == 1
        return None if alone else sorted(xmls)
    stems = set(contents[pair.image_folder].images)
    for other in others:
        both = stems & xmls & contents[other.image_folder].images
        if both:
            text = f"the xml of {shown(min(both))} has images in {pair.image_folder} and {other.image_folder}"
            raise DataError(f"{pair.xml_folder}: {text}; keep one of them, or an xml for each")
    if pairs.index(pair) < min(map(pairs.index, others)):
        # An xml without an image in any split is missed in the first one.
        stems |= xmls.difference(*(contents[other.image_folder].images for other in others))
    return sorted(stems)
