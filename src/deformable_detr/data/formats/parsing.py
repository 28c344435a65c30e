"""Parsing of JSON, YAML, XML and text files to plain values; errors are `DataError`s with file and line.

Every kind of file has a largest size, far above any real one, so that nothing fills the memory before it is refused.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from deformable_detr.core.errors import DataError
from deformable_detr.core.reading import json_value, read_file
from deformable_detr.core.short_text import one_line
from deformable_detr.core.short_text import shown as shown  # every reader of a format needs it, too
from deformable_detr.core.yaml_loader import YamlError, yaml_value
from deformable_detr.data.formats.xml_text import for_parser, reason_of

_INTEGER_IN_QUOTES = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?")
_NUMBER_IN_QUOTES = re.compile(
    r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE
)
_LONGEST_NUMBER = 400
_LARGEST_ID = 2**63 - 1
_LONGEST_CLASS_NAME = 500
_CONTROLS = ("Cc", "Zl", "Zp")
_MEGABYTE = 1 << 20
_MOST_JSON = 8192 * _MEGABYTE
_MOST_XML = 1024 * _MEGABYTE
_MOST_TEXT = 256 * _MEGABYTE
_MOST_YAML = 1 * _MEGABYTE


def read_bytes(path: Path, *, most: int = _MOST_TEXT) -> bytes:
    """Content of a file of at most so many bytes.

    Raises:
        DataError: it cannot be read, is larger, or is a pipe or a device.
    """
    try:
        return read_file(path, most=most)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{path}: cannot read this file: {reason}") from error


def read_text(path: Path, *, most: int = _MOST_TEXT) -> str:
    """Text of a UTF-8 file of at most so many bytes, without a byte order mark.

    Raises:
        DataError: it cannot be read, is larger, or is not UTF-8.
    """
    return utf8_text(read_bytes(path, most=most), path)


def utf8_text(content: bytes, path: Path) -> str:
    """Text of the content of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def read_json(path: Path) -> Any:
    """Value in a JSON file.

    Raises:
        DataError: unreadable, not JSON, nested too deeply, or an object that has the same key twice.
    """
    content = read_bytes(path, most=_MOST_JSON)
    try:
        return json_value(content, object_pairs_hook=_object_without_twins)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc.rstrip()) - 5 or error.msg.startswith("Unterminated string")
        ending = "; the file seems to be cut off" if at_end else ""
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}{ending}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not JSON: not {error.encoding} text") from error
    except ValueError as error:
        raise DataError(f"{path}: not usable JSON: {error}") from error


def _object_without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {shown(twin)} twice")
    return value


def read_yaml(path: Path) -> Any:
    """Value in a YAML file: plain data only.

    Raises:
        DataError: unreadable, not YAML, nested too deeply, or a mapping that has the same key twice.
    """
    text = read_text(path, most=_MOST_YAML)
    try:
        return yaml_value(text)
    except YamlError as error:
        place = f", {error.place}" if error.place else ""
        raise DataError(f"{path}{place}: {error}") from error


def read_xml(path: Path) -> Element:
    """Root element of an XML file.

    Raises:
        DataError: unreadable, not XML, or with entities, which annotations do not need.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    content = read_bytes(path, most=_MOST_XML)
    try:
        return fromstring(for_parser(content), forbid_dtd=False)
    except ParseError as error:
        line, column = error.position
        reason = reason_of(error, content)
        raise DataError(f"{path}, line {line}, column {column + 1}: not XML: {reason}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        declared = f"the encoding that it declares ({error.encoding})"
        raise DataError(f"{path}, line {line}: not text in {declared}") from error
    except DefusedXmlException as error:
        raise DataError(f"{path}: XML entities are not accepted in annotations") from error
    except (ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{path}: not usable XML: {one_line(error)}") from error


def whole_number(value: object, where: str, what: str) -> int:
    """Integer of a value; integers in quotes and floats without a fraction are accepted, truth values are not.

    Args:
        value: to convert.
        where: place in the file, for the message.
        what: name of the value, for the message.

    Raises:
        DataError: it is something else, or has more than 64 bits.
    """
    number: int | None = None
    if isinstance(value, str):
        found = _INTEGER_IN_QUOTES.fullmatch(value.strip())
        number = int(found[1]) if found else None
    elif isinstance(value, float):
        number = int(value) if value.is_integer() else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None or abs(number) > _LARGEST_ID:
        raise DataError(f"{where}: {what} must be a whole number, not {shown(value)}")
    return number


def real_number(value: object, where: str, what: str) -> float:
    """Number of a value; numbers in quotes are accepted, truth values are not. It may be infinite or NaN.

    Args:
        value: to convert.
        where: place in the file, for the message.
        what: name of the value, for the message.

    Raises:
        DataError: it is something else, too large for a float, or text of more than 400 letters.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    elif isinstance(value, str) and len(value) <= _LONGEST_NUMBER and _NUMBER_IN_QUOTES.fullmatch(value.strip()):
        return float(value)
    raise DataError(f"{where}: {what} must be a number, not {shown(value)}")


def class_text(value: object, where: str, what: str = "the class name") -> str:
    """Name of a class without spaces around it; a whole number is taken as its digits.

    Args:
        value: to check.
        where: place in the file, for the message.
        what: name of the value, for the message.

    Raises:
        DataError: it is something else.
    """
    text = str(value) if type(value) is int and abs(value) <= _LARGEST_ID else value
    return class_name_text(text, where, what).strip()


def name_text(value: object, where: str, what: str) -> str:
    """Name of a class or file: text that is not empty, is valid Unicode and has no zero character.

    Args:
        value: to check.
        where: place in the file, for the message.
        what: name of the value, for the message.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {what} must be text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {what} is not valid Unicode: {shown(value)}") from error
    if "\0" in value:
        raise DataError(f"{where}: {what} holds a zero character: {shown(value)}")
    return value


def class_name_text(value: object, where: str, what: str) -> str:
    """Name of a class: text as for `name_text`, short, and without letters that move a terminal's cursor.

    Args:
        value: to check.
        where: place in the file, for the message.
        what: name of the value, for the message.

    Raises:
        DataError: it is something else.
    """
    name = name_text(value, where, what)
    if len(name) > _LONGEST_CLASS_NAME:
        raise DataError(
            f"{where}: {what} has {len(name)} letters: {shown(name)}; a class name has at most {_LONGEST_CLASS_NAME}"
        )
    if any(unicodedata.category(letter) in _CONTROLS for letter in name):
        raise DataError(f"{where}: {what} holds a line break or another control character: {shown(name)}")
    return name


def check_class_names(names: Sequence[object], where: str) -> None:
    """Check the class names of a data set or of a detector: all of them text, none twice.

    Args:
        names: class names by class id.
        where: file or folder, for the message.

    Raises:
        DataError: one of them cannot be used.
    """
    seen: set[str] = set()
    for position, value in enumerate(names):
        name = class_name_text(value, where, f"class name {position + 1}")
        if name in seen:
            raise DataError(f"{where}: the class name {shown(name)} appears twice")
        seen.add(name)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one per line; empty lines do not count.

    Raises:
        DataError: the file cannot be read, holds no names or one of them twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: no class names in this file")
    check_class_names(names, str(path))
    return tuple(names)
