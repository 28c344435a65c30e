"""Tables of boxes: a csv with a row per object, as TensorFlow, Roboflow, VoTT, keras-retinanet and Kaggle have them.

The first row names the columns, in any order and in many spellings; `csv_columns` knows them. Without such a row, six
columns are those of keras-retinanet (path, x1, y1, x2, y2, class; all but the path empty for an image without objects).
Where names leave open what the numbers of a box mean, all rows decide, or the table is refused: `csv_meaning`.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.csv_columns import BoxMeaning, Columns, columns_of
from deformable_detr.data.formats.csv_meaning import WORDS, in_corners, meaning_of
from deformable_detr.data.formats.delimited import Row, first_rows, read_table
from deformable_detr.data.formats.image_names import parts_of
from deformable_detr.data.formats.openimages import is_openimages
from deformable_detr.data.formats.parsing import class_text, name_text, real_number, shown
from deformable_detr.data.formats.records import (
    ONLY_CLASS,
    ImageRecord,
    NamedClasses,
    ObjectRecord,
    RecordPart,
    load_part,
    only_class_problem,
    size_of,
)
from deformable_detr.data.formats.shapes import Box
from deformable_detr.data.formats.split_files import image_folders, names_of_parts, split_files
from deformable_detr.data.formats.split_names import MAIN_SPLITS, SplitLoaders, canonical_split, name_splits
from deformable_detr.data.images import is_image_file

LOOKED_FOR = (
    "CSV: a *.csv whose first row names an image, a class and the four numbers of a box, such as _annotations.csv, "
    "or rows of path,x1,y1,x2,y2,class; in the folder, in annotations/ or in train/, val/, test/"
)
_WITHOUT_HEADER = Columns(0, (1, 2, 3, 4), "corners", (5,))
_MAKESENSE = Columns(5, (1, 2, 3, 4), "size", (0,), (6, 7))
_CLASS_LIST = re.compile(r"class|label|names|map")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BETWEEN_NUMBERS = re.compile(r"[\s,;()\[\]]*")


class _RowsOfSplit(NamedTuple):
    """Images of the rows that are one split. Boxes are the four numbers as they stand, whatever they mean."""

    records: list[ImageRecord]
    problems: list[Problem]


class _CsvFile:
    """Csv file of boxes, read once for all of its splits."""

    def __init__(self, path: Path, columns: Columns, has_header: bool) -> None:
        self.path, self.columns, self.has_header = path, columns, has_header
        self._rows: list[Row] = []

    @cached_property
    def split_values(self) -> list[str]:
        """Splits that a column names, in the order of the rows; empty if there is none, or a text in it is no split."""
        if self.columns.split is None:
            return []
        try:
            self._rows = read_table(self.path)
        except DataError:
            return []  # It is explained when it is read.
        rows, column = self._rows[1:], self.columns.split
        texts = dict.fromkeys(row.cells[column] if column < len(row.cells) else "" for row in rows)
        values = list(dict.fromkeys(map(canonical_split, texts)))
        return values if set(values) <= set(MAIN_SPLITS) else []

    @cached_property
    def content(self) -> dict[str | None, _RowsOfSplit]:
        """Images of each split that a column names, else of None; in the order of their first rows.

        Raises:
            DataError: the file cannot be read, or several columns may be the class.
        """
        rows = self._rows or read_table(self.path)
        columns, where = self.columns, str(self.path)
        header = rows[0].cells if self.has_header and rows else []
        class_column = _class_column(columns, rows[1:], header, where) if header else columns.class_names[0]
        width = len(header) or _width_of(columns)
        splits: list[str | None] = [*self.split_values] or [None]
        images = {split: _Images() for split in splits}
        remarks = [only_class_problem(where)] if class_column is None else []
        problems = {split: [*remarks] for split in splits}
        split_of = cache(canonical_split)
        for line, cells in rows[1:] if header else rows:
            place = f"{where}:{line}"
            concerned = splits
            try:
                if len(cells) < width or any(cells[width:]):
                    raise DataError(f"{place}: {len(cells)} columns, and {width} are expected")
                if self.split_values and columns.split is not None:
                    concerned = [split_of(cells[columns.split])]
                _add_row(images[concerned[0]], cells, columns, class_column, place)
            except DataError as error:
                for split in concerned:
                    problems[split].append(problem_of(error, place, "invalid_annotation"))
        self._rows = []
        return {split: _RowsOfSplit(images[split].records(), problems[split]) for split in splits}


class _Table(NamedTuple):
    """Table of one split."""

    split: str
    file: _CsvFile
    value: str | None = None
    """Split of the rows that belong here, in the column that names it; None for all rows."""

    def read(self, problems: list[Problem]) -> list[ImageRecord]:
        """Images with their objects, whose boxes are the four numbers as they stand; what cannot be used is added."""
        content = self.file.content[self.value]
        problems += content.problems
        return content.records


def find_splits(path: Path) -> SplitLoaders:
    """Splits of the tables in a folder, or of one table; empty if there are none."""
    found = [
        (table, split)
        for split, file in split_files(path, (".csv", ".tsv"), lambda file: _columns_in(file) is not None)
        for table in _by_split_column(split, file)
    ]
    tables = _Tables([table for table, _ in found])
    names = names_of_parts([(table.split, split) for table, split in found])
    return name_splits((name, partial(tables.load, position)) for position, name in enumerate(names))


def _columns_in(file: Path) -> tuple[Columns, bool] | None:
    """Columns of a table, and whether its first row names them; None if it is no table of boxes."""
    rows = first_rows(file)
    if not rows or is_openimages(file):
        return None
    columns = columns_of(rows[0].cells)
    if columns is not None:
        return columns, True
    for columns in (_WITHOUT_HEADER, _MAKESENSE):
        width = _width_of(columns)
        fits = [len(row.cells) == width and _is_box_row(row.cells, columns) for row in rows]
        if all(fits):
            return columns, False
    return None


def _is_box_row(cells: Sequence[str], columns: Columns) -> bool:
    numbers = [cells[place] for place in (*columns.box, *(columns.size_wh or ()))]
    empty = not any(cells[place] for place in (*columns.box, *columns.class_names))
    return is_image_file(cells[columns.image]) and (empty or all(map(_NUMBER.fullmatch, numbers)))


def _width_of(columns: Columns) -> int:
    return max(columns.image, *columns.box, *columns.class_names, *(columns.size_wh or ())) + 1


def _by_split_column(split: str, file: Path) -> list[_Table]:
    """Tables of a file: one for each split that a column names, if all of its texts name one."""
    found = _columns_in(file)
    if found is None:
        return []
    table = _CsvFile(file, *found)
    return [_Table(value, table, value) for value in table.split_values] or [_Table(split, table)]


class _Tables:
    """All tables of a data set. What the numbers of their boxes mean, those of the same columns decide together."""

    def __init__(self, tables: Sequence[_Table]) -> None:
        self._tables = tables
        self._parts = [
            RecordPart(table.split, str(table.file.path), image_folders(table.file.path, table.split), table.read)
            for table in tables
        ]
        self._meanings: dict[Columns, BoxMeaning] = {}

    def load(self, position: int) -> DetectionDataset:
        """Data set of one table.

        Raises:
            DataError: it cannot be read, or what its boxes mean is not certain.
        """
        file = self._tables[position].file
        meaning = self._meaning_of(file)
        parts = [*self._parts]
        read = parts[position].read
        parts[position] = parts[position]._replace(read=lambda problems: in_corners(read(problems), meaning))
        classes = None if file.has_header else _class_list_beside(file.path)
        dataset = load_part(parts[position], parts, "CSV", classes)
        return replace(dataset, source=f"{dataset.source}, boxes of {WORDS[meaning]}")

    def _meaning_of(self, file: _CsvFile) -> BoxMeaning:
        columns = file.columns
        if columns not in self._meanings:
            alike = [
                part for part, table in zip(self._parts, self._tables, strict=True) if table.file.columns == columns
            ]
            self._meanings[columns] = meaning_of(columns, alike, str(file.path))
        return self._meanings[columns]


class _Images:
    """Images of a table, each found by its name as a row spells it."""

    def __init__(self) -> None:
        self._of_name: dict[str, ImageRecord] = {}
        self._of_parts: dict[tuple[str, ...], ImageRecord] = {}

    def record_of(self, name: str, size: Sequence[str], where: str) -> ImageRecord:
        """Record of an image, which the first row that names it makes; a later row has to give the same size."""
        record = self._of_name.get(name)
        size_wh = size_of(size[0], size[1], where) if size else None
        if record is None:
            parts = tuple(parts_of(name_text(name, where, "the name of the image")))
            record = self._of_parts.setdefault(parts, ImageRecord(name, where, [], size_wh))
            self._of_name[name] = record
        if record.size_wh != size_wh:
            raise DataError(
                f"{where}: the image {shown(name)} is {size_wh} here and {record.size_wh} in an earlier row"
            )
        return record

    def records(self) -> list[ImageRecord]:
        """All images, in the order of their first rows."""
        return list(self._of_parts.values())


def _add_row(images: _Images, cells: Sequence[str], columns: Columns, class_column: int | None, where: str) -> None:
    record = images.record_of(cells[columns.image], [cells[place] for place in columns.size_wh or ()], where)
    texts = [cells[place] for place in columns.box]
    if not any(texts):
        return  # an image without objects
    class_name = ONLY_CLASS if class_column is None else class_text(cells[class_column], where)
    is_crowd = columns.crowd is not None and cells[columns.crowd].lower() in ("1", "1.0", "true", "yes")
    record.objects.append(ObjectRecord(class_name, _numbers_in(texts, where), where, is_crowd))


def _numbers_in(texts: Sequence[str], where: str) -> Box:
    """Four numbers of a box as they stand, in four cells or in one."""
    if len(texts) == 1:
        numbers = _NUMBER.findall(texts[0])
        if len(numbers) != 4 or not _BETWEEN_NUMBERS.fullmatch(_NUMBER.sub("", texts[0])):
            raise DataError(f"{where}: a box has four numbers, as in [1, 2, 30, 40], not {shown(texts[0])}")
        texts = numbers
    first, second, third, fourth = (real_number(text, where, "each number of a box") for text in texts)
    return first, second, third, fourth


def _class_column(columns: Columns, rows: Sequence[Row], header: Sequence[str], where: str) -> int | None:
    """Column of the class; None if the table has none.

    Raises:
        DataError: several columns may be it, and differ; or none is named so, and others may be it.
    """

    def cell(row: Row, column: int) -> str:
        return row.cells[column] if column < len(row.cells) else ""

    candidates = columns.class_names
    if not candidates and not columns.unknown:
        return None
    if candidates and all(cell(row, column) == cell(row, candidates[0]) for row in rows for column in candidates[1:]):
        return candidates[0]
    names = listed([shown(header[column]) for column in candidates or columns.unknown], 5)
    raise DataError(
        f"{where}: which column is the class? It could be {names}; name the right one class_name, and no other so"
    )


def _class_list_beside(file: Path) -> NamedClasses | None:
    """Class list of keras-retinanet: a csv of name and number in the folder of the table or the one above it."""
    for folder in (file.parent, file.parent.parent):
        for other in sorted(folder.glob("*.csv")):
            if other != file and _CLASS_LIST.search(other.name.lower()) and (names := _names_by_number(other)):
                return NamedClasses(names, str(other))
    return None


def _names_by_number(file: Path) -> list[str] | None:
    """Names of a class list in the order of their numbers; None if the file is none."""
    rows = [row.cells for row in first_rows(file)]
    if not all(len(cells) == 2 for cells in rows):
        return None
    rows = [row.cells for row in read_table(file)]
    if rows and not rows[0][1].isdecimal():
        del rows[0]
    by_number = {number: name for name, number in rows if name}
    if not rows or set(by_number) != {str(number) for number in range(len(rows))}:
        return None
    return [by_number[str(number)] for number in range(len(rows))]
