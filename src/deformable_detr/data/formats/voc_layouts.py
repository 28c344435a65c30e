"""Layouts of VOC data sets: xml and image folders, and lists of stems."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.parsing import read_text
from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split
from deformable_detr.data.images import IMAGE_SUFFIXES, is_image_file

_XML_FOLDERS = ("Annotations", "annotations", "xml", "labels")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")


class ListedImage(NamedTuple):
    """Image of a split with the files found for it."""

    stem: str
    """Stem that both files are found by."""
    xml: Path
    """Annotation file, which may not exist."""
    image: Path | None
    """Image file; None if there is none."""


class VocPart:
    """Split of a VOC data set: a folder of xml, a folder of images, and a list of stems if not all belong to it."""

    def __init__(self, split: str, xml_folder: Path, image_folder: Path, list_file: Path | None = None) -> None:
        self.split = split
        self.xml_folder = xml_folder
        self.image_folder = image_folder
        self.list_file = list_file

    @property
    def where(self) -> str:
        """Name of the split in messages."""
        return str(self.list_file or self.xml_folder)

    def xml_paths(self) -> list[Path]:
        """Xml files of this split that exist."""
        return [self._xml_of_stem[stem] for stem in dict.fromkeys(self._stems) if stem in self._xml_of_stem]

    def items(self, problems: list[Problem]) -> Iterator[ListedImage]:
        """Images of the split in its order, each once; stems listed again are added to the problems."""
        seen = set()
        for stem in self._stems:
            if stem in seen:
                text = f"{stem} is listed more than once: read once"
                problems.append(Problem("duplicate_image", self.where, text, False))
                continue
            seen.add(stem)
            xml = self._xml_of_stem.get(stem, self.xml_folder / f"{stem}.xml")
            image = self._images.get(stem) or self._images.get(stem.lower())
            yield ListedImage(stem, xml, image)

    def image_named(self, file_name: str | None) -> Path | None:
        """Image that an xml names, if it exists; only the last part of the name counts."""
        if file_name is None:
            return None
        last = file_name.replace("\\", "/").rpartition("/")[2]
        path = self.image_folder / last
        return path if last and "\0" not in last and os.path.isfile(path) else None

    @cached_property
    def _images(self) -> dict[str, Path]:
        """Image files by stem, and by stem in lower case where no other stem is equal to that."""
        found: dict[str, Path] = {}
        for path in sorted(self.image_folder.iterdir()):
            if is_image_file(path):
                found.setdefault(path.stem, path)
        return {stem.lower(): path for stem, path in found.items()} | found

    @cached_property
    def _xml_of_stem(self) -> dict[str, Path]:
        return {path.stem: path for path in xml_files(self.xml_folder)}

    @cached_property
    def _stems(self) -> list[str]:
        if self.list_file is not None:
            return [self._stem_of(line.strip()) for line in read_text(self.list_file).splitlines() if line.strip()]
        images = {path.stem for path in self._images.values()}
        by_case = {stem.lower() for stem in self._xml_of_stem}
        bare = {stem for stem in images - set(self._xml_of_stem) if stem.lower() not in by_case}
        return sorted({*self._xml_of_stem, *bare})

    def _stem_of(self, line: str) -> str:
        """Stem in a line of a list; an ending of an image or VOC's mark of a class (1, 0, -1) may follow it."""
        last = line.replace("\\", "/").rpartition("/")[2]
        first, _, mark = last.rpartition(" ")
        candidates = [last, os.path.splitext(last)[0], first.strip() if mark in ("1", "0", "-1") else last]
        for candidate in candidates:
            if candidate and (candidate in self._xml_of_stem or candidate in self._images):
                return candidate
        return os.path.splitext(last)[0] if os.path.splitext(last)[1].lower() in IMAGE_SUFFIXES else last


def xml_files(folder: Path) -> list[Path]:
    """Xml files directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml" and path.name[0] != ".")


def find_parts(folder: Path) -> list[VocPart]:
    """Splits of a folder, by the first of these layouts that is there.

    1. `ImageSets/Main/<split>.txt` with `Annotations` and `JPEGImages`
    2. `<split>` or `images/<split>` holding xml beside images, or one folder of each
    3. the folder itself holding xml beside images, or one folder of each
    """
    if not folder.is_dir():
        return []
    pair = _xml_and_image_folders(folder)
    lists = folder / "ImageSets" / "Main"
    if pair and lists.is_dir():
        files = sorted(lists.glob("*.txt"))
        names = {file.stem for file in files}
        # Lists such as aeroplane_train.txt mark the images of train.txt that show an aeroplane: no splits of their own.
        whole = [file for file in files if file.stem.rpartition("_")[2] not in names - {file.stem}]
        if whole:
            return [VocPart(file.stem, *pair, file) for file in whole]
    parts = [
        VocPart(child.name, *found)
        for base in (folder, folder / "images")
        if base.is_dir()
        for child in sorted(base.iterdir())
        if child.is_dir() and canonical_split(child.name) in MAIN_SPLITS
        if (found := _xml_and_image_folders(child))
    ]
    if parts:
        return parts
    return [VocPart(folder.name, *pair)] if pair else []


def _xml_and_image_folders(folder: Path) -> tuple[Path, Path] | None:
    for xml_name in _XML_FOLDERS:
        for image_name in _IMAGE_FOLDERS:
            xml_folder, image_folder = folder / xml_name, folder / image_name
            if xml_folder.is_dir() and image_folder.is_dir() and _holds_xml(xml_folder):
                return xml_folder, image_folder
    if _holds_xml(folder):
        names = os.listdir(folder)
        stems = {os.path.splitext(name)[0].lower() for name in names if is_image_file(name)}
        if any(name.lower().endswith(".xml") and name[:-4].lower() in stems for name in names):
            return folder, folder
    return None


def _holds_xml(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(".xml") for entry in entries)
