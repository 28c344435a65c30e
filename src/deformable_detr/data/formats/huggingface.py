"""Hugging Face image folders: a metadata.jsonl per split whose rows have a file name and `objects`.

`objects` has lists of boxes (left, top, width, height, in pixels) and of classes, or is a list of objects. Classes are
names, or numbers whose names are in the data set's card, README.md; without one the numbers are the names. A
metadata.csv is read if its `objects` hold JSON. `iscrowd` and `area` are read, other columns are ignored.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.core.errors import DataError
from deformable_detr.core.reading import json_value
from deformable_detr.core.yaml_loader import YamlError, yaml_value
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.image_names import parts_of, subfolders
from deformable_detr.data.formats.pairs import distinct_splits, start_of
from deformable_detr.data.formats.parsing import name_text, read_text, real_number, shown, whole_number
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, dataset_of, size_of
from deformable_detr.data.formats.split_names import MAIN_SPLITS, SplitLoaders, name_splits, split_in_name

LOOKED_FOR = (
    "Hugging Face: metadata.jsonl (or .csv) with file_name and objects, in the folder, in train/ or in data/train/"
)
_FILES = ("metadata.jsonl", "metadata.csv")
_CARDS = ("README.md", "README.MD", "readme.md")
_BOXES = ("bbox", "bboxes", "boxes", "box")
_CLASSES = ("categories", "category", "label", "labels", "category_id", "class", "classes", "name", "names")
_CROWD = ("iscrowd", "is_crowd")
_MOST_CARD = 1 << 20


def find_splits(path: Path) -> SplitLoaders:
    """Splits of an image folder or of one metadata file; empty if there are none."""
    if path.is_file():
        is_ours = path.name in _FILES and _is_metadata(path)
        return _loaders([_MetadataTable(path, path.parent.name)] if is_ours else [])
    alone = _metadata_in(path)
    if alone is not None:
        # One file for all: the first folder of each name may tell the split.
        splits = [name for name in subfolders(path) if split_in_name(name) in MAIN_SPLITS]
        start = start_of(alone)
        named = [name for name in splits if re.search(rf"""(?:^|[",']){re.escape(name)}[/\\]""", start, re.MULTILINE)]
        if not named:
            return _loaders([_MetadataTable(alone, path.name)])
        tables = [_MetadataTable(alone, name, tuple(named)) for name in named]
    else:
        tables = [
            _MetadataTable(file, name)
            for base in (path, path / "data")
            for name in subfolders(base)
            if split_in_name(name) in MAIN_SPLITS
            if (file := _metadata_in(base / name)) is not None
        ]
    return _loaders(tables, distinct_splits([table.split for table in tables]))


def _loaders(tables: Sequence["_MetadataTable"], names: Sequence[str] = ()) -> SplitLoaders:
    contents = _MetadataContents()
    names = names or [table.split for table in tables]
    return name_splits(
        (name, partial(_load_metadata, one, tables, contents)) for name, one in zip(names, tables, strict=True)
    )


def _metadata_in(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if _is_metadata(folder / name)), None)


def _is_metadata(file: Path) -> bool:
    """Whether a file starts like metadata with objects; that of other tasks has none."""
    start = start_of(file)
    first, newline, _ = start.lstrip().partition("\n")
    if file.suffix == ".csv":
        columns = [name.strip().strip('"') for name in first.split(",")]
        return "objects" in columns and any(_is_file_column(name) for name in columns)
    # A name may follow after kilobytes of objects.
    return first.startswith("{") and '"objects"' in start and ('file_name"' in first or not newline)


def _is_file_column(name: str) -> bool:
    return name == "file_name" or name.endswith("_file_name")


class _MetadataTable(NamedTuple):
    """Metadata file of a split; where it is that of several, `splits` are the first folders that names begin with."""

    file: Path
    split: str
    splits: tuple[str, ...] = ()


class _SplitContent:
    """Images of a metadata file that are one split."""

    def __init__(self) -> None:
        self.records: list[ImageRecord] = []
        self.problems: list[Problem] = []
        self.error: DataError | None = None


class _MetadataContents:
    """Metadata files and cards of a data set, each read once for all of its splits."""

    def __init__(self) -> None:
        self.card_of = cache(_Card)
        self._splits: dict[tuple[Path, _Card], dict[str, _SplitContent]] = {}

    def records(self, table: _MetadataTable, card: "_Card", problems: list[Problem]) -> list[ImageRecord]:
        """Images of a split with the class names of a card.

        Raises:
            DataError: the file cannot be read, a row is no object of JSON or names no file, or one of the split has a
                size that is none.
        """
        key = (table.file, card)
        if key not in self._splits:
            self._splits[key] = _content_by_split(table, card)
        content = self._splits[key][table.split]
        if content.error is not None:
            raise content.error
        problems += content.problems
        return content.records


def _content_by_split(table: _MetadataTable, card: "_Card") -> dict[str, _SplitContent]:
    """Images, and what is wrong with them, of each split in a metadata file.

    A row that cannot be used is an error of its split alone, or of all if it does not tell its split.
    """
    found = {one: _SplitContent() for one in table.splits or [table.split]}
    num_elsewhere = 0
    try:
        for where, row in (_csv_rows if table.file.suffix == ".csv" else _json_rows)(table.file):
            name = _file_name(row, where)
            content = found.get(parts_of(name)[0] if table.splits else table.split)
            if content is None:
                num_elsewhere += 1
            elif content.error is None:
                _add_row(content, name, row, where, card)
    except DataError as error:
        for content in found.values():
            content.error = content.error or error
    if num_elsewhere:
        text = f"{num_elsewhere} rows name images in none of the folders {', '.join(table.splits)}: left out"
        for content in found.values():
            content.problems.append(Problem("invalid_annotation", str(table.file), text, False))
    return found


def _add_row(content: _SplitContent, name: str, row: dict[str, Any], where: str, card: "_Card") -> None:
    try:
        size_wh = size_of(row.get("width"), row.get("height"), where)
    except DataError as error:
        content.error = error
        return
    objects = list(_ObjectsReader(card, content.problems).objects_of(row, where))
    content.records.append(ImageRecord(name, where, objects, size_wh))


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json_value(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
        except ValueError as error:
            raise DataError(f"{where}: not usable JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, not {shown(row)}")
        yield where, row


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        for row in reader:
            where = f"{file}:{reader.line_num}"
            text = row.get("objects")
            try:
                objects = json_value(text) if text and text.strip() else None
            except ValueError as error:
                raise DataError(f"{where}: its objects are no JSON: {shown(text)}; write metadata.jsonl") from error
            yield where, {**row, "objects": objects}
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not csv: {error}") from error


def _file_name(row: dict[str, Any], where: str) -> str:
    columns = [name for name in row if isinstance(name, str) and _is_file_column(name)]
    if not columns:
        raise DataError(f"{where}: it has no file_name")
    column = "file_name" if "file_name" in columns else columns[0]
    return name_text(row[column], where, column)


def _load_metadata(
    table: _MetadataTable, tables: Sequence[_MetadataTable], contents: _MetadataContents
) -> DetectionDataset:
    card = contents.card_of(_card_file(table.file.parent))
    problems = [*card.problems]
    records = contents.records(table, card, problems)
    used = {item.class_name for record in records for item in record.objects}
    for other in tables:
        if other != table:
            with suppress(DataError):  # reported when that split is read
                used |= {item.class_name for one in contents.records(other, card, []) for item in one.objects}
    names = {name for name in used if name is not None}
    in_card = card.all_names()
    if in_card and names <= set(in_card):
        classes = list(in_card)
    else:
        # Numbers by their value.
        classes = sorted(names, key=lambda name: (not name.isdecimal(), len(name) * name.isdecimal(), name))
    return dataset_of(
        records,
        folders=[table.file.parent],
        where=str(table.file),
        source=f"HUGGINGFACE {table.file}",
        classes=classes,
        problems=problems,
        given="size",
    )


def _card_file(folder: Path) -> Path | None:
    """Card of the data set, which lies beside the metadata or above it; None if there is none."""
    places = [parent / name for parent in (folder, folder.parent, folder.parent.parent) for name in _CARDS]
    return next((place for place in places if place.is_file()), None)


class _Card:
    """Names of numbered classes in the card of the data set."""

    def __init__(self, file: Path | None) -> None:
        self._names: dict[str, dict[int, str]] = {}
        self.problems: list[Problem] = []
        if file is None:
            return
        try:
            head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", read_text(file, most=_MOST_CARD), re.DOTALL)
            content = yaml_value(head[1]) if head else None
        except (DataError, YamlError) as error:
            text = f"this card cannot be read, so numbers of classes are their names: {error}"
            self.problems.append(Problem("invalid_annotation", str(file), text, False))
            return
        if isinstance(content, dict):
            self._find(content.get("dataset_info"), "", set())

    def _find(self, value: object, feature: str, seen: set[int]) -> None:
        """Note the names of each feature that is a class, wherever it stands in the lists of features."""
        if id(value) in seen:
            return  # in YAML one list may stand at many places
        seen.add(id(value))
        if isinstance(value, list):
            for one in value:
                self._find(one, feature, seen)
        elif isinstance(value, dict):
            name = value.get("name")
            feature = name if isinstance(name, str) else feature
            label = value.get("class_label")
            names = label.get("names") if isinstance(label, dict) else None
            pairs = list(enumerate(names)) if isinstance(names, list) else []
            if isinstance(names, dict):
                pairs = [(int(key), one) for key, one in names.items() if re.fullmatch(r"[0-9]{1,9}", str(key))]
            if pairs:
                self._names.setdefault(feature, {number: str(one) for number, one in sorted(pairs)})
            for one in value.values():
                self._find(one, feature, seen)

    def names_of(self, feature: str) -> dict[int, str]:
        """Names of the numbers of a feature; empty if the card has none."""
        return self._names.get(feature, {})

    def all_names(self) -> tuple[str, ...]:
        """Names of the classes of objects, by number."""
        return next((tuple(self._names[one].values()) for one in _CLASSES if one in self._names), ())


class _ObjectsReader:
    """Reader of the objects of a row; what is wrong is added to the problems."""

    def __init__(self, card: _Card, problems: list[Problem]) -> None:
        self._card = card
        self._problems = problems

    def objects_of(self, row: dict[str, Any], where: str) -> Iterator[ObjectRecord]:
        try:
            items = list(_items_of(row.get("objects")))
        except ValueError as error:
            self._problems.append(Problem("invalid_annotation", where, str(error), True))
            return
        for number, item in enumerate(items, start=1):
            place = f"{where}: object {number}"
            try:
                yield self._object_of(item, place)
            except DataError as error:
                self._problems.append(problem_of(error, place, "invalid_annotation"))

    def _object_of(self, item: dict[str, Any], where: str) -> ObjectRecord:
        box = item[_key_in(item, _BOXES)]
        if not isinstance(box, list) or len(box) != 4:
            raise DataError(f"{where}: a box must be [left, top, width, height], not {shown(box)}")
        left, top, width, height = (real_number(number, where, "each value of a box") for number in box)
        key = _key_in(item, _CLASSES)
        crowd = next((item[name] for name in _CROWD if name in item), 0)
        if crowd not in (0, 1, None):
            raise DataError(f"{where}: iscrowd must be 0 or 1, not {shown(crowd)}")
        area = item.get("area")
        return ObjectRecord(
            self._class_of(item[key], key, where),
            (left, top, left + width, top + height),
            where,
            bool(crowd),
            math.nan if area is None else real_number(area, where, "the area"),
        )

    def _class_of(self, value: object, key: str, where: str) -> str:
        names = self._card.names_of(key)
        if isinstance(value, str) and (not names or value in names.values()):
            return name_text(value, where, "the class")
        number = whole_number(value, where, "a class")
        if names and number not in names:
            raise DataError(f"{where}: the class {number} is not among the {len(names)} in the card of the data set")
        return names.get(number, str(number))


def _key_in(item: dict[str, Any], keys: Sequence[str]) -> str:
    return next(key for key in keys if key in item)


def _items_of(objects: object) -> Iterator[dict[str, Any]]:
    """Objects of a row one by one, whether they are a list or lists of their parts.

    Raises:
        ValueError: it is neither, or the lists are not of one length.
    """
    if objects in (None, [], {}, ""):
        return
    if isinstance(objects, dict):
        lists = {key: values for key, values in objects.items() if isinstance(values, list)}
        boxes = next((key for key in _BOXES if key in lists), None)
        classes = next((key for key in _CLASSES if key in lists), None)
        if boxes is None or classes is None:
            raise ValueError(
                f"objects must have a list of boxes ({', '.join(_BOXES)}) and one of classes ({', '.join(_CLASSES)}), "
                f"not {shown(objects)}"
            )
        if len(lists[boxes]) != len(lists[classes]):
            raise ValueError(f"objects has {len(lists[boxes])} {boxes} and {len(lists[classes])} {classes}")
        count = len(lists[boxes])
        for position in range(count):
            yield {key: values[position] for key, values in lists.items() if len(values) == count}
    elif isinstance(objects, list):
        for item in objects:
            if not isinstance(item, dict) or not set(item) & set(_BOXES) or not set(item) & set(_CLASSES):
                raise ValueError(f"each of objects must have a box and a class, not {shown(item)}")
            yield item
    else:
        raise ValueError(f"objects must be lists of boxes and classes, not {shown(objects)}")
