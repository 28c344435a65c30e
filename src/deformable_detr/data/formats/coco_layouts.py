"""Layouts of COCO data sets: the json of each split."""

import re
from pathlib import Path

from deformable_detr.core.reading import json_value, open_file
from deformable_detr.data.formats.datumaro import is_datumaro
from deformable_detr.data.formats.json_kinds import kind_of_json
from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split, main_split

_SNIFFED_BYTES = 1 << 16
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_", "sketch_")
_BESIDE_IMAGES = "_annotations.coco.json"
_SECTIONS = ("images", "annotations", "categories")
_BEFORE_SECTIONS = {"info", "licenses", "type"}
# The last string may be cut off by the end of what was read.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]]', re.DOTALL)
_VALUE = re.compile(rb"\s*:\s*(.?)", re.DOTALL)


def annotation_files(path: Path) -> list[tuple[str, Path]]:
    """Split name and json file of each split, for the first of these layouts that is there.

    1. `annotations/instances_<split>.json`, else `annotations/<split>.json`
    2. `<split>/_annotations.coco.json`, or `_annotations.coco.json` in the folder itself
    3. `coco/<split>.json`
    4. `<split>.json` in the folder itself
    5. the one COCO json in `<split>` or in `<split>/annotations`

    A file counts only if its beginning is like that of COCO json, or of broken json where COCO json is expected.
    """
    if path.is_file():
        is_json = path.suffix.lower() == ".json"
        return [(_split_of(path), path)] if is_json and _is_ours(path, expected=True) else []
    for files, surely in (
        (_json_files(path / "annotations"), True),
        (_with_annotations_beside_images(path), True),
        (_json_files(path / "coco"), True),
        (_json_files(path), False),
    ):
        found = [(_split_of(file), file) for file in files]
        found = [
            (split, file)
            for split, file in found
            if _is_ours(file, expected=surely and (main_split(split) is not None or file.name == _BESIDE_IMAGES))
        ]
        if found:
            return found
    return _one_in_each_split(path)


def _json_files(folder: Path) -> list[Path]:
    """Json files that may hold boxes: `instances_*` if there are any, else all but those of another task."""
    if not folder.is_dir():
        return []
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() == ".json" and not file.name.startswith((".", "_")) and file.is_file()
    )
    official = [file for file in files if file.name.startswith("instances_")]
    return official or [file for file in files if not file.name.startswith(_OTHER_TASKS)]


def _with_annotations_beside_images(folder: Path) -> list[Path]:
    return [file for file in (*sorted(folder.glob(f"*/{_BESIDE_IMAGES}")), folder / _BESIDE_IMAGES) if file.is_file()]


def _one_in_each_split(folder: Path) -> list[tuple[str, Path]]:
    """Json files in folders that are named after splits; a folder with several says nothing."""
    found = []
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        if canonical_split(child.name) not in MAIN_SPLITS or not child.is_dir():
            continue
        files = [file for place in (child, child / "annotations") for file in _json_files(place) if is_coco(file)]
        if len(files) == 1:
            found.append((child.name, files[0]))
    return found


def _split_of(file: Path) -> str:
    if file.name == _BESIDE_IMAGES:
        return file.parent.name
    return file.stem.removeprefix("instances_")


def _is_ours(file: Path, *, expected: bool) -> bool:
    """Whether a json file is COCO's and of no other format that begins alike."""
    return is_coco(file, expected=expected) and kind_of_json(file) is None and not is_datumaro(file)


def is_coco(file: Path, *, expected: bool = False) -> bool:
    """Whether a json file is COCO's, by its first bytes, or by all of it if it is small.

    Several other tools write a json with "categories" or "annotations", too: the notes of Label Studio, Datumaro. COCO
    has at least two of its three lists, or one of images with file names, or one of annotations with image ids.

    Args:
        file: the file.
        expected: count broken json, too, and one with a single list, so that it is named with what is wrong with it.
    """
    try:
        with open_file(file) as stream:
            head = stream.read(_SNIFFED_BYTES + 1)
    except OSError:
        return False
    head = head.removeprefix(b"\xef\xbb\xbf")
    if len(head) > _SNIFFED_BYTES:
        values = _outer_values(head)
        # Long lists of categories or of other things may hide what follows.
        seen = _BEFORE_SECTIONS | ({"categories"} if values.get("categories") == "[" else set())
        hidden = values.keys() <= seen and ("categories" in values or (expected and len(values) > 0))
        return hidden or _begins_like_coco(values, head)
    try:
        value = json_value(head)
    except ValueError:
        values = _outer_values(head)
        return expected or "[" in (values.get("images"), values.get("annotations"))
    return isinstance(value, dict) and _has_sections(value, expected)


def _has_sections(value: dict[str, object], expected: bool) -> bool:
    lists = [name for name in _SECTIONS if isinstance(value.get(name), list)]
    if len(lists) >= 2 or (expected and lists not in ([], ["categories"])):
        return True
    for name, key in (("images", "file_name"), ("annotations", "image_id")):
        section = value.get(name)
        if isinstance(section, list) and any(isinstance(item, dict) and key in item for item in section):
            return True
    return False


def _begins_like_coco(values: dict[str, str], head: bytes) -> bool:
    sections = {name for name in _SECTIONS if values.get(name) == "["}
    return (
        len(sections) >= 2
        or ("images" in sections and b'"file_name"' in head)
        or ("annotations" in sections and b'"image_id"' in head)
    )


def _outer_values(head: bytes) -> dict[str, str]:
    """First letter of each value of the outermost object, by key; empty if it is none, but a list or something else."""
    found: dict[str, str] = {}
    if head.lstrip()[:1] != b"{":
        return found
    depth = 0
    for token in _TOKEN.finditer(head):
        text = token[0]
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
        elif depth == 1 and (value := _VALUE.match(head, token.end())):
            found[text[1:-1].decode("latin-1")] = value[1].decode("latin-1")
    return found
