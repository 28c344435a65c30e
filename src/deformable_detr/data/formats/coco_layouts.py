"""Layouts of COCO data sets: the json of each split."""

from pathlib import Path

from deformable_detr.data.formats.json_kinds import JsonStart, JsonStarts, start_of_json
from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split, main_split

_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_", "sketch_")
_BESIDE_IMAGES = "_annotations.coco.json"


def annotation_files(path: Path, starts: JsonStarts = start_of_json) -> list[tuple[str, Path]]:
    """Split name and json file of each split, for the first of these layouts that is there.

    1. `annotations/instances_<split>.json`, else `annotations/<split>.json`
    2. `<split>/_annotations.coco.json`, or `_annotations.coco.json` in the folder itself
    3. `coco/<split>.json`
    4. `<split>.json` in the folder itself
    5. the one COCO json in `<split>` or in `<split>/annotations`

    A file counts only if its beginning is like that of COCO json, or of broken json where COCO json is expected.

    Args:
        path: the folder, or a json file.
        starts: looks at the beginning of a json file.
    """
    if path.is_file():
        is_json = path.suffix.lower() == ".json"
        return [(_split_of(path), path)] if is_json and _is_ours(starts(path), expected=True) else []
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
            if _is_ours(
                starts(file), expected=surely and (main_split(split) is not None or file.name == _BESIDE_IMAGES)
            )
        ]
        if found:
            return found
    return _one_in_each_split(path, starts)


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


def _one_in_each_split(folder: Path, starts: JsonStarts) -> list[tuple[str, Path]]:
    """Json files in folders that are named after splits; a folder with several says nothing."""
    found = []
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        if canonical_split(child.name) not in MAIN_SPLITS or not child.is_dir():
            continue
        files = [file for place in (child, child / "annotations") for file in _json_files(place)]
        files = [file for file in files if starts(file).is_coco]
        if len(files) == 1:
            found.append((child.name, files[0]))
    return found


def _split_of(file: Path) -> str:
    if file.name == _BESIDE_IMAGES:
        return file.parent.name
    return file.stem.removeprefix("instances_")


def _is_ours(start: JsonStart, *, expected: bool) -> bool:
    """Whether a json file is COCO's and of no other format that begins alike."""
    return start.kind is None and (start.may_be_coco if expected else start.is_coco)
