"""Layouts of COCO data sets: the json of each split, and the folder that its file names are relative to."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split

_SNIFFED_BYTES = 1 << 16
_PROBED_IMAGES = 16
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_", "sketch_")
_FOLDERS_OF_SPLIT = {
    "train": ("train", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "val2017", "val2014"),
    "test": ("test", "test2017", "test2014"),
}


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
        is_json = path.suffix.lower() == ".json"
        return [(_split_of(path), path)] if is_json else []
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
            if (surely and canonical_split(split) in MAIN_SPLITS) or _starts_like_coco(file)
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
        with file.open("rb") as stream:
            head = stream.read(_SNIFFED_BYTES)
    except OSError:
        return False
    # A list would be detection results; an object without these keys is no COCO file.
    starts_object = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return starts_object and any(key in head for key in (b'"file_name"', b'"image_id"', b'"categories"'))


class ImageRoot(NamedTuple):
    """Folder that the file names of a json are relative to."""

    folder: Path
    """Folder of the images."""
    last_part_only: bool
    """Whether only the last part of each file name counts."""

    def paths(self, names: Iterable[str]) -> list[str]:
        """Path at which each image should be."""
        folder = str(self.folder)
        if self.last_part_only:
            return [os.path.join(folder, name.replace("\\", "/").rpartition("/")[2]) for name in names]
        return [os.path.join(folder, name) for name in names]


def find_image_root(annotations: Path, names: Sequence[str], split: str) -> ImageRoot | None:
    """Folder in which most of a few probed images are, decided once per json; None if none of them is found.

    These are tried in order, for the folder of the json and then for its parent: the folder itself, `images`,
    `JPEGImages`, folders named after the split (`val`, `valid`, `val2017`), those within `images`, and `images`
    within those; first with the whole file names, then with their last part alone.
    """
    probes = names[:: max(1, len(names) // _PROBED_IMAGES)][:_PROBED_IMAGES]
    splits = dict.fromkeys((split, *_FOLDERS_OF_SPLIT.get(canonical_split(split), ())))
    inner = ["", "images", "JPEGImages", *splits]
    inner += [f"images/{name}" for name in splits] + [f"{name}/images" for name in splits]
    folders = [base / name for base in (annotations.parent, annotations.parent.parent) for name in inner]
    best: ImageRoot | None = None
    most = 0
    for last_part_only in (False, True):
        for folder in folders:
            if not folder.is_dir():
                continue
            root = ImageRoot(folder, last_part_only)
            hits = sum(os.path.isfile(path) for path in root.paths(probes))
            if hits > most:
                best, most = root, hits
            if most == len(probes):
                return best
    return best


def listed_paths(paths: Iterable[str]) -> list[tuple[Path, bool]]:
    """Paths, each with whether it is a file. Folders are listed once: asking for 118,000 files takes far longer."""
    listings: dict[str, set[str]] = {}
    answers = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(folder))
            except (OSError, ValueError):
                listings[folder] = set()
        answers.append((Path(path), name in listings[folder] or os.path.isfile(path)))
    return answers
