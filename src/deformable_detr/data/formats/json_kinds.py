"""Kinds of annotation files that are json, told apart by the keys at the beginning of the file."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from deformable_detr.core.reading import json_value, open_file

JsonKind = Literal["labelme", "via", "createml", "labelstudio", "datumaro"]
"""Format of a json file that is not COCO's."""

ITEM = "[]"
"""Step from a list to any of its items, in the path of a key."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SNIFFED_BYTES = 1 << 18
_DEEPEST = 6
# The last string may be cut off by the end of what was read.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]:,]', re.DOTALL)

# Elsewhere the categories are a list; here they are an object with one entry for each kind of annotation.
_DATUMARO_CATEGORIES = re.compile(rb'"categories"\s*:\s*\{\s*("(label|mask|points)"\s*:\s*\{|\}\s*,\s*"items")')
_DATUMARO_BYTES = 1 << 16

_COCO_BYTES = 1 << 16
_SECTIONS = ("images", "annotations", "categories")
_BEFORE_SECTIONS = {"info", "licenses", "type"}
_FIRST_LETTER = re.compile(rb"\s*(.?)", re.DOTALL)


class JsonStart(NamedTuple):
    """Beginning of a json file, as far as it tells the format."""

    kind: JsonKind | None = None
    """Format; None if it is none of these, such as COCO."""
    is_coco: bool = False
    """Whether it is COCO's. COCO has at least two of its three lists, or one of images with file names, or one of
    annotations with image ids: several other tools write "categories" or "annotations", too."""
    may_be_coco: bool = False
    """Whether it counts as COCO's where that is expected: also broken json, and one with a single list, so that it is
    named with what is wrong with it."""


JsonStarts = Callable[[Path], JsonStart]
"""Function that looks at the beginning of a json file. Recognition has one that looks at each file once."""


def start_of_json(file: Path) -> JsonStart:
    """Beginning of a json file, read once for all formats; that of a file that cannot be read tells nothing.

    No more than the beginning is read, and what is no json there is passed over, so that large files and files that are
    no json at all cost little.
    """
    try:
        with open_file(file) as stream:
            head = stream.read(_SNIFFED_BYTES)
    except (OSError, ValueError):
        return JsonStart()
    if _DATUMARO_CATEGORIES.search(head[:_DATUMARO_BYTES]):
        return JsonStart("datumaro")
    outline = outline_of(head)
    is_coco, may_be_coco = _coco_of(head, outline.outer)
    return JsonStart(_kind_of(outline.keys), is_coco, may_be_coco)


def _kind_of(keys: frozenset[tuple[str, ...]]) -> JsonKind | None:
    # A picture within the json, which few formats have, may fill all of the beginning.
    shapes = ("shapes",) in keys and {("shapes", ITEM, "points"), ("imagePath",), ("version",)} & keys
    if shapes or ("imageData",) in keys:
        return "labelme"
    if ("_via_img_metadata",) in keys or any(
        len(key) == 2 and key[1] == "regions" and (key[0], "filename") in keys and key[0] != ITEM for key in keys
    ):
        return "via"
    names = {(ITEM, name) for name in ("image", "imagefilename", "imageURL")}
    if keys & names and (keys & {(ITEM, "annotations"), (ITEM, "annotation")}):
        return "createml"
    regions = any(len(key) == 4 and key[0] == key[2] == ITEM and key[3] == "original_width" for key in keys)
    finished = (ITEM, "data") in keys and keys & {(ITEM, "annotations"), (ITEM, "completions")}
    if finished or regions or {(ITEM, "annotator"), (ITEM, "annotation_id")} <= keys:
        return "labelstudio"
    return None


class JsonOutline(NamedTuple):
    """Keys in the first part of a json file."""

    keys: frozenset[tuple[str, ...]]
    """Paths of the keys, such as ("shapes", "[]", "points")."""
    outer: dict[str, str]
    """First letter of each value of the outermost object, by key, in the bytes that tell COCO; empty if there is none,
    but a list or something else."""


def outline_of(head: bytes) -> JsonOutline:
    """Keys in the first part of a json file."""
    head = head.removeprefix(_BYTE_ORDER_MARK)
    is_object = head.lstrip()[:1] == b"{"
    keys: set[tuple[str, ...]] = set()
    outer: dict[str, str] = {}
    path: list[str] = []
    last = b""
    for match in _TOKEN.finditer(head):
        token = match.group()
        if token in (b"{", b"["):
            path.append(ITEM if token == b"[" else "")
        elif token in (b"}", b"]"):
            del path[-1:]
        elif token == b":" and path and path[-1] != ITEM and last[:1] == b'"' and len(path) <= _DEEPEST:
            path[-1] = last[1:-1].decode("utf-8", "replace")
            keys.add(tuple(path))
            if is_object and len(path) == 1 and match.end() <= _COCO_BYTES:
                first = _FIRST_LETTER.match(head, match.end())
                outer[path[0]] = first[1].decode("latin-1") if first else ""
        last = token
    return JsonOutline(frozenset(keys), outer)


def _coco_of(head: bytes, outer: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether the beginning of a json file is COCO's, or all of the file is, if it is small; and whether it may be."""
    head = head.removeprefix(_BYTE_ORDER_MARK)
    if len(head) > _COCO_BYTES:
        begins = _begins_like_coco(outer, head[:_COCO_BYTES])
        # Long lists of categories or of other things may hide what follows.
        seen = _BEFORE_SECTIONS | ({"categories"} if outer.get("categories") == "[" else set())
        hidden = len(outer) > 0 and outer.keys() <= seen
        return begins or (hidden and "categories" in outer), begins or hidden
    try:
        value = json_value(head)
    except ValueError:
        return "[" in (outer.get("images"), outer.get("annotations")), True
    if not isinstance(value, dict):
        return False, False
    lists = [name for name in _SECTIONS if isinstance(value.get(name), list)]
    is_coco = len(lists) >= 2 or _has_items_of_coco(value)
    return is_coco, is_coco or lists not in ([], ["categories"])


def _has_items_of_coco(value: Mapping[str, object]) -> bool:
    for name, key in (("images", "file_name"), ("annotations", "image_id")):
        section = value.get(name)
        if isinstance(section, list) and any(isinstance(item, dict) and key in item for item in section):
            return True
    return False


def _begins_like_coco(outer: Mapping[str, str], head: bytes) -> bool:
    sections = {name for name in _SECTIONS if outer.get(name) == "["}
    return (
        len(sections) >= 2
        or ("images" in sections and b'"file_name"' in head)
        or ("annotations" in sections and b'"image_id"' in head)
    )
