"""Open Images format: a csv per split with a row per box: the id of its image, the code of its class, shares of 1.

Rows are read one at a time, and only those of images that are there are kept: the csv of the training split has 14
million. `IsGroupOf` makes a crowd region. Class names are in a csv of descriptions; classes are those that occur in any
split, alphabetically.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.core.reading import open_file
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.delimited import first_rows
from deformable_detr.data.formats.image_names import composed, subfolders
from deformable_detr.data.formats.pairs import distinct_splits
from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, dataset_of
from deformable_detr.data.formats.split_names import (
    MAIN_SPLITS,
    SplitLoaders,
    canonical_split,
    name_splits,
    split_in_name,
)
from deformable_detr.data.images import is_image_file, list_images

LOOKED_FOR = (
    "Open Images: *.csv with the columns ImageID, LabelName, XMin, XMax, YMin and YMax, in the folder, annotations/, "
    "csv_folder/ or train/, and images/train/ or train/"
)
_SIDES = ("XMin", "YMin", "XMax", "YMax")
_COLUMNS = frozenset({"ImageID", "LabelName", *_SIDES})
_COLUMNS_OF_NO_OTHER = frozenset({"Confidence", "IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"})
_HEADER_BYTES = 4096
_MOST_FILES = 20
_USUAL_WORDS = ("bbox", "class", "detection")
_MOST_NAMES = 100_000
_FOLDERS = ("annotations", "csv_folder", "labels")


def find_splits(path: Path) -> SplitLoaders:
    """Open Images splits of a folder or of one csv file; empty if there are none."""
    if path.is_file():
        files = [path]
    else:
        inner = [name for name in subfolders(path) if name in _FOLDERS or split_in_name(name) in MAIN_SPLITS]
        folders = [path, *(path / name for name in inner)]
        folders += [path / name / "labels" for name in inner if name not in _FOLDERS]
        files = [file for folder in folders for file in _csv_files(folder)]
    parts = [_BoxTable(file) for file in files if is_openimages(file)]
    names = distinct_splits([part.split if part.split in MAIN_SPLITS else part.file.stem for part in parts])
    return name_splits((name, partial(_load_table, part, parts)) for name, part in zip(names, parts, strict=True))


def _csv_files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [one.name for one in entries if one.name.lower().endswith(".csv") and one.name[0] != "."]
    except OSError:
        return []
    # Of many, the first are looked into: those with the words that the names of the originals have.
    names.sort(key=lambda name: (not any(word in name.lower() for word in _USUAL_WORDS), name))
    return [folder / name for name in names[:_MOST_FILES]]


def is_openimages(file: Path) -> bool:
    """Whether a csv file is one of this format, which other formats of csv files leave to it.

    It is one with the columns of a box and one that no other format has, or with shares of 1 in its first rows.
    """
    if file.suffix.lower() != ".csv":
        return False
    try:
        with open_file(file) as stream:
            start = stream.readline(_HEADER_BYTES)
    except (OSError, ValueError):
        return False
    header = [name.strip() for name in start.decode("utf-8-sig", "replace").replace('"', "").split(",")]
    if not _COLUMNS.issubset(header):
        return False
    return not _COLUMNS_OF_NO_OTHER.isdisjoint(header) or _begins_with_shares(file, header)


def _begins_with_shares(file: Path, header: Sequence[str]) -> bool:
    """Whether the first rows that have numbers for the sides of a box have numbers from 0 to 1."""
    places = [header.index(name) for name in _SIDES]
    numbers: list[float] = []
    for row in first_rows(file)[1:]:
        with suppress(ValueError, IndexError):  # explained when the rows are read
            numbers += [float(row.cells[place]) for place in places]
    return bool(numbers) and all(0 <= number <= 1 for number in numbers)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a csv file of any size, each with its line.

    Raises:
        DataError: the file cannot be read, or is no csv in UTF-8.
    """
    line = 0
    try:
        with open_file(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            for row in reader:
                line = reader.line_num
                if row:
                    yield line, row
    except OSError as error:
        raise DataError(f"{file}: cannot read this file: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise DataError(f"{file}, line {line + 1}: not csv in UTF-8: {reason}") from error


class _OpenImagesTable(NamedTuple):
    """Content of the csv of a split, as far as its images are there."""

    records: list[ImageRecord]
    missing: list[str]
    num_unseen: int
    problems: list[Problem]


class _BoxTable:
    """Csv of one split with its images."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.undescribed: set[str] = set()

    @property
    def split(self) -> str:
        """Name of the split: that of the file, else that of the folder it lies in."""
        folders = (self.file.parent.name, self.file.parent.parent.name)
        names = (split_in_name(self.file.stem), *map(canonical_split, folders))
        return next((name for name in names if name in MAIN_SPLITS), "train")

    @cached_property
    def names(self) -> dict[str, str]:
        """Class name of each code, from the first csv of descriptions around; empty if there is none."""
        around = [base / name for base in self._bases for name in ("", *_FOLDERS, "metadata")]
        for file in (file for folder in around for file in _csv_files(folder)):
            if "class-descriptions" in file.name.lower() or file.name.lower() == "classes.csv":
                return _descriptions(file)
        return {}

    @cached_property
    def _bases(self) -> list[Path]:
        """Folder of the csv, and those above it within the data set, as far as names of folders tell."""
        bases = [self.file.parent]
        while len(bases) < 3 and (bases[-1].name in _FOLDERS or canonical_split(bases[-1].name) in MAIN_SPLITS):
            bases.append(bases[-1].parent)
        return bases

    def name_of(self, code: str) -> str:
        """Class name of a code; the code itself where it has none, and with it where two have the same."""
        if code not in self.names:
            self.undescribed.add(code)
        name = self.names.get(code, code)
        return name if self._uses[name] < 2 else f"{name} ({code})"

    @cached_property
    def _uses(self) -> Counter[str]:
        return Counter(self.names.values())

    @cached_property
    def content(self) -> _OpenImagesTable:
        """Images that are there with their boxes, in the order of the csv."""
        groups = self._image_groups()
        somewhere = set().union(*groups)
        objects: dict[str, list[ObjectRecord]] = {}
        absent: dict[str, None] = {}
        problems: list[Problem] = []
        num_unseen = 0
        rows = _rows(self.file)
        columns = _columns_of(next(rows, (1, []))[1], self.file)
        id_column, last_column = columns["ImageID"], max(columns[name] for name in _COLUMNS)
        last_id, is_there = None, False
        for line, row in rows:
            if len(row) <= last_column:
                text = f"{len(row)} columns, and the header names {max(columns.values()) + 1}"
                problems.append(Problem("invalid_annotation", f"{self.file}:{line}", text, True))
                continue
            image_id = row[id_column].strip()
            if image_id != last_id:  # the rows of an image follow each other, and there are millions
                last_id, is_there = image_id, not image_id or _id_key(image_id) in somewhere
            if not is_there:
                absent.setdefault(image_id)
                continue
            item = self._object_of(row, columns, f"{self.file}:{line}")
            if isinstance(item, str):
                problems.append(Problem("invalid_annotation", f"{self.file}:{line}", item, True))
                continue
            found = objects.setdefault(image_id, [])
            if item is None:
                num_unseen += 1
            else:
                found.append(item)
        # One group for all: an image of the same name elsewhere may be another one.
        images = max(groups, key=lambda group: sum(_id_key(one) in group for one in objects))
        records = [
            ImageRecord(one, f"{self.file}: {one}", items, path=images[key], in_shares=True)
            for one, items in objects.items()
            if (key := _id_key(one)) in images
        ]
        missing = [*absent, *(one for one in objects if _id_key(one) not in images)]
        return _OpenImagesTable(records, missing, num_unseen, problems)

    def _image_groups(self) -> list[dict[str, Path]]:
        """Groups of folders that may hold the images, the most likely first, each with its images by id.

        Folders of one split beside each other (`train_0`, `train_1`) are one group.
        """
        near, bases = self.file.parent, self._bases
        groups = [
            [base / name for name in subfolders(base) if split_in_name(name) == self.split]
            for base in (*(base / "images" for base in bases), *bases)
        ]
        found = [_images_by_id(group, True) for group in groups]
        found += [_images_by_id([base / name], False) for base in bases for name in ("data", "images")]
        beside = sorted(name for name in os.listdir(near) if is_image_file(name))
        return [*found, {composed(os.path.splitext(name)[0]): near / name for name in beside}]

    def _object_of(self, row: Sequence[str], columns: dict[str, int], where: str) -> ObjectRecord | str | None:
        """Object of a row, what is wrong with the row, or None for a class that somebody looked for and did not see."""
        try:
            left, top, right, bottom = (float(row[columns[name]]) for name in _SIDES)
        except ValueError:
            return f"{', '.join(_SIDES)} must be numbers, not {shown([row[columns[name]] for name in _SIDES])}"
        if not row[columns["ImageID"]].strip() or not row[columns["LabelName"]].strip():
            return "ImageID or LabelName is empty"
        if _flag(row, columns, "Confidence") == "0":
            return None
        crowd = _flag(row, columns, "IsGroupOf") in ("1", "true")
        return ObjectRecord(self.name_of(row[columns["LabelName"]].strip()), (left, top, right, bottom), where, crowd)


def _columns_of(header: Sequence[str], file: Path) -> dict[str, int]:
    columns = {name.strip(): position for position, name in reversed(list(enumerate(header)))}
    if not _COLUMNS.issubset(columns):
        raise DataError(f"{file}: its header must name {', '.join(sorted(_COLUMNS))}")
    return columns


def _flag(row: Sequence[str], columns: dict[str, int], name: str) -> str:
    position = columns.get(name, len(row))
    return row[position].strip().lower().removesuffix(".0") if position < len(row) else ""


def _id_key(image_id: str) -> str:
    return composed(os.path.splitext(image_id)[0] if is_image_file(image_id) else image_id)


def _images_by_id(folders: Sequence[Path], deep: bool) -> dict[str, Path]:
    """Images by their path in a folder, without ending; if `deep`, images in folders within also by name alone."""
    images = [(folder, image) for folder in folders if folder.is_dir() for image in list_images(folder)]
    found: dict[str, Path] = {}
    for folder, image in images:
        found.setdefault(composed(os.path.splitext(image.relative_to(folder).as_posix())[0]), image)
    for _, image in images if deep else ():
        found.setdefault(composed(image.stem), image)
    return found


def _descriptions(file: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for line, row in _rows(file):
        if len(row) < 2 or (line == 1 and row[0].strip().lower() == "labelname"):
            continue
        names.setdefault(row[0].strip(), row[1].strip() or row[0].strip())
        if len(names) > _MOST_NAMES:
            raise DataError(f"{file}: it describes more than {_MOST_NAMES:,} classes")
    return names


def _load_table(part: _BoxTable, parts: Sequence[_BoxTable]) -> DetectionDataset:
    content = part.content
    problems = list(content.problems)
    if content.missing:
        text = (
            f"{len(content.missing)} of {len(content.missing) + len(content.records)} images are missing, the first "
            f"being {shown(content.missing[0])}; --skip-bad-images goes on with those of a part that was downloaded"
        )
        problems.append(Problem("missing_image", str(part.file), text, True))
    if content.num_unseen:
        text = f"{content.num_unseen} rows of classes that are not in the image (confidence 0): left out"
        problems.append(Problem("invalid_annotation", str(part.file), text, False))
    names: set[str] = set()
    bare: set[str] = set()
    for other in parts:
        for record in other.content.records:
            names.update(item.class_name for item in record.objects if item.class_name is not None)
        bare |= other.undescribed if other.names else set()
    if not names:
        raise DataError(f"{part.file}: none of its boxes belongs to an image that is here, such as images/train/ID.jpg")
    if bare:
        text = (
            f"there is no description of {listed([shown(name) for name in sorted(bare)], 5)}: the codes are the names"
        )
        problems.append(Problem("unknown_class", str(part.file), text, False))
    return dataset_of(
        content.records,
        folders=(),
        where=str(part.file),
        source=f"OPENIMAGES {part.file}",
        classes=sorted(names),
        problems=problems,
    )
