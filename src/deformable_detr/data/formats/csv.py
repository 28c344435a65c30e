"""Tables of boxes: a csv with a row per object, as TensorFlow, Roboflow, VoTT, keras-retinanet and Kaggle have them.

The first row names the columns, in any order and in many spellings; `csv_columns` knows them. Without such a row, six
columns are those of keras-retinanet (path, x1, y1, x2, y2, class; all but the path empty for an image without objects).
Where names leave open what the numbers of a box mean, all rows decide, or the table is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import problem_of
from deformable_detr.data.formats.csv_columns import BoxMeaning, Columns, columns_of
from deformable_detr.data.formats.delimited import Row, first_rows, read_table
from deformable_detr.data.formats.image_names import parts_of
from deformable_detr.data.formats.parsing import class_text, name_text, real_number, shown
from deformable_detr.data.formats.records import (
    ONLY_CLASS,
    ImageRecord,
    NamedClasses,
    ObjectRecord,
    RecordPart,
    are_shares,
    images_of_records,
    load_part,
    only_class_problem,
    size_of,
)
from deformable_detr.data.formats.shapes import Box
from deformable_detr.data.formats.split_files import image_folders, names_of_parts, split_files
from deformable_detr.data.formats.split_names import MAIN_SPLITS, SplitLoaders, canonical_split, name_splits
from deformable_detr.data.images import image_size, is_image_file

LOOKED_FOR = (
    "CSV: a *.csv whose first row names an image, a class and the four numbers of a box, such as _annotations.csv, "
    "or rows of path,x1,y1,x2,y2,class; in the folder, in annotations/ or in train/, val/, test/"
)
_WITHOUT_HEADER = Columns(0, (1, 2, 3, 4), "corners", (5,))
_MAKESENSE = Columns(5, (1, 2, 3, 4), "size", (0,), (6, 7))
_CLASS_LIST = re.compile(r"class|label|names|map")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BETWEEN_NUMBERS = re.compile(r"[\s,;()\[\]]*")
_READINGS: dict[BoxMeaning, tuple[BoxMeaning, ...]] = {
    "size or center": ("size", "center", "corners"),
    "size or corners": ("size", "corners"),
}
_WORDS: dict[BoxMeaning, str] = {
    "size": "left, top, width, height",
    "center": "the center, width, height",
    "corners": "left, top, right, bottom",
}


class _Table(NamedTuple):
    """Table of one split."""

    split: str
    file: Path
    columns: Columns
    has_header: bool
    value: str | None = None
    """Split of the rows that belong here, in the column that names it; None for all rows."""


def find_splits(path: Path) -> SplitLoaders:
    """Splits of the tables in a folder, or of one table; empty if there are none."""
    files = split_files(path, (".csv", ".tsv"), lambda file: _columns_in(file) is not None)
    found = [(part, split) for split, file in files for part in _by_split_column(split, file)]
    tables = [table for table, _ in found]
    names = names_of_parts([(table.split, split) for table, split in found])
    return name_splits((name, partial(_load_table, table, tables)) for name, table in zip(names, tables, strict=True))


def _columns_in(file: Path) -> tuple[Columns, bool] | None:
    """Columns of a table, and whether its first row names them; None if it is no table of boxes."""
    rows = first_rows(file)
    if not rows:
        return None
    columns = columns_of(rows[0].cells)
    if columns is not None:
        return columns, True
    for columns in (_WITHOUT_HEADER, _MAKESENSE):
        width = max(columns.image, *columns.box, *columns.class_names, *(columns.size_wh or ())) + 1
        fits = [len(row.cells) == width and _is_box_row(row.cells, columns) for row in rows]
        if all(fits):
            return columns, False
    return None


def _is_box_row(cells: Sequence[str], columns: Columns) -> bool:
    numbers = [cells[place] for place in (*columns.box, *(columns.size_wh or ()))]
    empty = not any(cells[place] for place in (*columns.box, *columns.class_names))
    return is_image_file(cells[columns.image]) and (empty or all(map(_NUMBER.fullmatch, numbers)))


def _by_split_column(split: str, file: Path) -> list[_Table]:
    """Tables of a file: one for each split that a column names, if all of its texts name one."""
    found = _columns_in(file)
    if found is None:
        return []
    columns, has_header = found
    if columns.split is not None:
        try:
            rows = read_table(file)[1:]
        except DataError:
            rows = []  # It is explained when it is read.
        texts = (row.cells[columns.split] if columns.split < len(row.cells) else "" for row in rows)
        values = dict.fromkeys(map(canonical_split, texts))
        if values and values.keys() <= set(MAIN_SPLITS):
            return [_Table(value, file, columns, has_header, value) for value in values]
    return [_Table(split, file, columns, has_header)]


def _load_table(table: _Table, tables: Sequence[_Table]) -> DetectionDataset:
    meaning = _meaning_of(table, tables)
    parts = [_part_of(one, meaning if one.columns == table.columns else None) for one in tables]
    classes = None if table.has_header else _class_list_beside(table.file)
    dataset = load_part(parts[tables.index(table)], parts, "CSV", classes)
    return replace(dataset, source=f"{dataset.source}, boxes of {_WORDS[meaning]}")


def _part_of(table: _Table, meaning: BoxMeaning | None) -> RecordPart:
    """Split whose boxes have a meaning; without one the first possible, which is enough for the names of classes."""
    certain = meaning or _READINGS.get(table.columns.meaning, (table.columns.meaning,))[0]
    folders = image_folders(table.file, table.split)
    return RecordPart(table.split, str(table.file), folders, partial(_read_rows, table, certain))


def _meaning_of(table: _Table, tables: Sequence[_Table]) -> BoxMeaning:
    """Meaning of the boxes of a table: by the names of its columns, else the one under which they lie in their images.

    All splits with the same columns decide together.

    Raises:
        DataError: several meanings are possible, or the sizes are those of the images.
    """
    named = table.columns.meaning
    if named not in ("size", *_READINGS):
        return named
    numbers, sizes_wh = _numbers_with_sizes([one for one in tables if one.columns == table.columns])
    if len(numbers) and np.allclose(numbers[:, 2:], sizes_wh) and numbers[:, :2].any():
        raise DataError(
            f"{table.file}: width and height are those of the images, so nothing says how large the boxes are; give "
            "columns xmin, ymin, xmax and ymax"
        )
    if named not in _READINGS:
        return named
    faults = {meaning: _num_faults(numbers, sizes_wh, meaning) for meaning in _READINGS[named]}

    def is_clearly_better(one: BoxMeaning, other: BoxMeaning) -> bool:
        return faults[other] > 0 and 10 * faults[one] <= faults[other]

    # These names usually mean the left top corner, and in this table of Kaggle's they do: all the more has to speak
    # against it.
    is_kaggle = table.columns.size_wh is not None and not table.columns.class_names
    if named == "size or center" or is_kaggle:
        certain = not any(is_clearly_better(other, "size") for other in faults)
        best: BoxMeaning = "size"
    else:
        best = min(faults, key=lambda meaning: faults[meaning])
        certain = all(is_clearly_better(best, other) for other in faults if other != best)
    if certain:
        return best
    counts = listed([f"{count} as {_WORDS[meaning]}" for meaning, count in faults.items()])
    raise DataError(
        f"{table.file}: it is not certain what the numbers of a box are: so many boxes reach past their image or "
        f"have a negative size: {counts}; name the columns xmin, ymin, xmax, ymax, or xmin, ymin, width, height, or "
        "x_center, y_center, width, height (one column: bbox_xyxy, bbox_xywh or bbox_cxcywh)"
    )


def _numbers_with_sizes(
    tables: Sequence[_Table],
) -> tuple[Float[np.ndarray, "objects 4"], Float[np.ndarray, "objects 2"]]:
    """Four numbers of every box as they stand, with the size of its image, for images that are there."""
    rows: list[tuple[Box, tuple[int, int]]] = []
    for table in tables:
        part = _part_of(table, "corners")
        try:
            records = part.read([])
        except DataError:
            continue  # It is explained when it is read itself.
        paths = images_of_records(records, part.folders, part.where).paths
        for record, path in zip(records, paths, strict=True):
            size_wh = record.size_wh
            if size_wh is None and path is not None and record.objects:
                try:
                    size_wh = image_size(path)
                except DataError:
                    continue
            rows += [(item.box_xyxy, size_wh) for item in record.objects if size_wh is not None]
    numbers = np.array([box for box, _ in rows], dtype=np.float64).reshape(-1, 4)
    return numbers, np.array([size_wh for _, size_wh in rows], dtype=np.float64).reshape(-1, 2)


def _num_faults(
    numbers: Float[np.ndarray, "objects 4"], sizes_wh: Float[np.ndarray, "objects 2"], meaning: BoxMeaning
) -> int:
    """Number of boxes that have a negative size, or reach past their image by more than a pixel, under a meaning."""
    if are_shares(numbers):
        numbers = numbers * np.tile(sizes_wh, 2)
    start, end = numbers[:, :2], numbers[:, 2:]
    if meaning == "center":
        start, end = start - end / 2, start + end / 2
    elif meaning == "size":
        end = start + end
    with np.errstate(invalid="ignore"):
        fits = (start >= -1) & (end >= start) & (end <= sizes_wh + 1)
    return int((~fits.all(axis=1)).sum())


def _read_rows(table: _Table, meaning: BoxMeaning, problems: list[Problem]) -> list[ImageRecord]:
    """Images of a table with their objects, in the order of their first rows; rows that cannot be used are problems."""
    rows = read_table(table.file)
    columns = table.columns
    header = rows[0].cells if table.has_header and rows else []
    class_column = _class_column(columns, rows[1:], header, str(table.file)) if header else columns.class_names[0]
    if class_column is None:
        problems.append(only_class_problem(str(table.file)))
    num_cells = len(header) or max(columns.image, *columns.box, *columns.class_names, *(columns.size_wh or ())) + 1
    images = _Images()
    for line, cells in rows[1:] if header else rows:
        place = f"{table.file}:{line}"
        try:
            if len(cells) < num_cells or any(cells[num_cells:]):
                raise DataError(f"{place}: {len(cells)} columns, and {num_cells} are expected")
            if (
                columns.split is not None
                and table.value is not None
                and canonical_split(cells[columns.split]) != table.value
            ):
                continue
            _add_row(images, cells, columns, meaning, class_column, place)
        except DataError as error:
            problems.append(problem_of(error, place, "invalid_annotation"))
    return images.records()


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


def _add_row(
    images: _Images, cells: Sequence[str], columns: Columns, meaning: BoxMeaning, class_column: int | None, where: str
) -> None:
    record = images.record_of(cells[columns.image], [cells[place] for place in columns.size_wh or ()], where)
    texts = [cells[place] for place in columns.box]
    if not any(texts):
        return  # an image without objects
    class_name = ONLY_CLASS if class_column is None else class_text(cells[class_column], where)
    is_crowd = columns.crowd is not None and cells[columns.crowd].lower() in ("1", "1.0", "true", "yes")
    record.objects.append(ObjectRecord(class_name, _box_in_cells(texts, meaning, where), where, is_crowd))


def _box_in_cells(texts: Sequence[str], meaning: BoxMeaning, where: str) -> Box:
    if len(texts) == 1:
        numbers = _NUMBER.findall(texts[0])
        if len(numbers) != 4 or not _BETWEEN_NUMBERS.fullmatch(_NUMBER.sub("", texts[0])):
            raise DataError(f"{where}: a box has four numbers, as in [1, 2, 30, 40], not {shown(texts[0])}")
        texts = numbers
    first, second, third, fourth = (real_number(text, where, "each number of a box") for text in texts)
    if meaning == "corners":
        return first, second, third, fourth
    if meaning == "center":
        return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2
    return first, second, first + third, second + fourth


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
