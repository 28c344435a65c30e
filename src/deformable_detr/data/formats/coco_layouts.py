"""Layouts of COCO data sets: the json of each split."""

from pathlib import Path

from deformable_detr.core.reading import open_file
from deformable_detr.data.formats.datumaro import is_datumaro
from deformable_detr.data.formats.json_kinds import kind_of_json
from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split

_SNIFFED_BYTES = 1 << 16
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_", "sketch_")


def annotation_files(path: Path) -> list[tuple[str, Path]]:
    """Split name and json file of each split, for the first of these layouts that is there.

    1. `annotations/instances_<split>.json`, else `annotations/<split>.json`
    2. `<split>/_annotations.coco.json`, or `_annotations.coco.json` in the folder itself
    3. `coco/<split>.json`
    4. `<split>.json` in the folder itself

    Files with other names than train, val and test, and all files of the last layout, count only if they start like
    COCO json.
    """
    if path.is_file():
        is_coco = path.suffix.lower() == ".json" and kind_of_json(path) is None and not is_datumaro(path)
        return [(_split_of(path), path)] if is_coco else []
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
            if ((surely and canonical_split(split) in MAIN_SPLITS) or _starts_like_coco(file))
            if kind_of_json(file) is None and not is_datumaro(file)
        ]
        if found:
            return found
    return []


def _json_files(folder: Path) -> list[Path]:
    """Json files that may hold boxes: `instances_*` if there are any, else all but those of another task."""
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.glob("*.json") if file.is_file() and not file.name.startswith((".", "_")))
    official = [file for file in files if file.name.startswith("instances_")]
    return official or [file for file in files if not file.name.startswith(_OTHER_TASKS)]


def _with_annotations_beside_images(folder: Path) -> list[Path]:
    name = "_annotations.coco.json"
    return [file for file in (*sorted(folder.glob(f"*/{name}")), folder / name) if file.is_file()]


def _split_of(file: Path) -> str:
    if file.name == "_annotations.coco.json":
        return file.parent.name
    return file.stem.removeprefix("instances_")


def _starts_like_coco(file: Path) -> bool:
    try:
        with open_file(file) as stream:
            head = stream.read(_SNIFFED_BYTES)
    except OSError:
        return False
    # A list would be detection results; an object without these keys is no COCO file.
    starts_object = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return starts_object and any(key in head for key in (b'"file_name"', b'"image_id"', b'"categories"'))
