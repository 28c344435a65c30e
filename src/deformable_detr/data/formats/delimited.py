"""Reading of tables in text files: rows of cells, separated by commas, semicolons, tabs or bars, perhaps in quotes."""

import codecs
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError
from deformable_detr.core.reading import open_file
from deformable_detr.data.formats.parsing import read_bytes, utf8_text

_SEPARATORS = ("\t", ";", "|", ",")
_FEWEST_CELLS = 4
_SNIFFED_BYTES = 1 << 16
_SNIFFED_ROWS = 50
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DECIMAL_COMMA = re.compile(r"([+-]?[0-9]+),([0-9]+)")


class Row(NamedTuple):
    """Row of a table."""

    line: int
    """Number of its last line in the file, from 1."""
    cells: list[str]
    """Texts of its cells, without spaces around them."""


def read_table(file: Path) -> list[Row]:
    """Rows of a table, without empty ones; the first row tells the separator.

    A comma in a number is a decimal point where cells are not separated by commas.

    Raises:
        DataError: it cannot be read, is no text, or a cell is longer than 131,072 letters.
    """
    content = read_bytes(file)
    if not content.startswith(_UTF_16):
        return _rows_of(utf8_text(content, file), str(file))
    try:
        return _rows_of(content.decode("utf-16"), str(file))
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-16 text, though it begins as such ({error.reason})") from error


def first_rows(file: Path) -> list[Row]:
    """First rows of a table, at most 50; none if the file is no table of text.

    Only the beginning of the file is read, to find out what it is.
    """
    try:
        with open_file(file) as stream:
            head = stream.read(_SNIFFED_BYTES)
    except (OSError, ValueError):
        return []
    text = head.decode("utf-16" if head.startswith(_UTF_16) else "utf-8-sig", "replace")
    if len(head) == _SNIFFED_BYTES:
        text = text.rpartition("\n")[0]
    try:
        return _rows_of(text, str(file), strict=False)[:_SNIFFED_ROWS]
    except DataError:
        return []


def _rows_of(text: str, where: str, *, strict: bool = True) -> list[Row]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = _separator_in(first)
    # Strictly, because a quote that never ends would take the rest of the file for one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict)
    rows = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append(Row(reader.line_num, stripped))
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: not a table: {error}") from error
    if separator == ",":
        return rows
    return [Row(line, [_with_decimal_point(cell) for cell in cells]) for line, cells in rows]


def _separator_in(line: str) -> str:
    """Separator of a line: the first that makes several cells of it, since commas are also in numbers and in names."""
    several = (one for one in _SEPARATORS if _num_cells(line, one) >= _FEWEST_CELLS)
    return next(several, max(_SEPARATORS, key=lambda one: _num_cells(line, one)))


def _num_cells(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator, skipinitialspace=True), []))
    except csv.Error:
        return 0


def _with_decimal_point(cell: str) -> str:
    match = _DECIMAL_COMMA.fullmatch(cell)
    return f"{match[1]}.{match[2]}" if match else cell
