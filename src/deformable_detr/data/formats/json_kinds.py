"""Kinds of annotation files that are json, told apart by the keys at the beginning of the file."""

import re
from pathlib import Path
from typing import Literal

from deformable_detr.core.reading import open_file

JsonKind = Literal["labelme", "via", "createml", "labelstudio"]
"""Format of a json file that is not COCO's."""

ITEM = "[]"
"""Step from a list to any of its items, in the path of a key."""

_SNIFFED_BYTES = 1 << 18
_DEEPEST = 6
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]:,]', re.DOTALL)


def kind_of_json(file: Path) -> JsonKind | None:
    """Format of a json file; None if it has none of these, such as COCO."""
    keys = keys_of_json(file)
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


def keys_of_json(file: Path) -> frozenset[tuple[str, ...]]:
    """Paths of the keys in the first part of a json file, such as ("shapes", "[]", "points").

    Only the beginning is read, and what is no json there is passed over, so that large files and files that are no
    json at all cost little.
    """
    try:
        with open_file(file) as stream:
            head = stream.read(_SNIFFED_BYTES)
    except (OSError, ValueError):
        return frozenset()
    keys: set[tuple[str, ...]] = set()
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
        last = token
    return frozenset(keys)
