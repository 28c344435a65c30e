"""Layouts of YOLO data sets: the yaml, its splits, and the label file of each image."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.parsing import (
    class_name_text,
    name_text,
    read_names,
    read_text,
    read_yaml,
    shown,
    whole_number,
)
from deformable_detr.data.formats.split_names import canonical_split
from deformable_detr.data.images import is_image_file, list_images

_USUAL_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_CLASS_FILES = ("classes.txt", "obj.names", "names.txt", "labels.txt")
_NOT_LABELS = frozenset({*_CLASS_FILES, "notes.txt", "readme.txt", "train.txt", "val.txt", "test.txt"})


class ClassList(NamedTuple):
    """Classes of a YOLO data set."""

    names: tuple[str, ...]
    """Names of the classes."""
    numbers: tuple[int, ...]
    """Number that label files use for each class, ascending."""
    source: str
    """File that the names come from."""


class YoloPart(NamedTuple):
    """Split of a YOLO data set, before it is read."""

    split: str
    """Name of the split, as the data set spells it."""
    sources: list[Path]
    """Folders of images, lists of images, or image files."""
    where: str
    """Name of the split in messages."""
    classes: Callable[[], ClassList]
    """Function that reads the class list; it raises `DataError` if there is none."""


def find_parts(path: Path) -> list[YoloPart]:
    """Splits of a yaml or a folder, from the first of these that is there.

    1. `data.yaml` or `dataset.yaml`, else another yaml with `names` and a split
    2. `images/<split>` with `labels/<split>`, or `<split>/images` with `<split>/labels`
    3. `images` with `labels`, or images and txt files of the same stems in the folder itself, with a class list

    Raises:
        DataError: a yaml that is meant to describe the data set cannot be used.
    """
    if path.is_file():
        return _parts_of_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else []
    description = _find_yaml(path)
    return _parts_of_yaml(description) if description else _parts_without_yaml(path)


def _find_yaml(folder: Path) -> Path | None:
    for name in _USUAL_YAMLS:
        if (folder / name).is_file():
            return folder / name
    for file in sorted(folder.glob("*.y*ml")):
        try:
            content = read_yaml(file)
        except DataError:
            continue
        if isinstance(content, dict) and "names" in content and any(key in content for key in _SPLIT_KEYS):
            return file
    return None


class Description(NamedTuple):
    """Content of a yaml that describes a data set."""

    classes: ClassList
    """Classes that the yaml names."""
    entries: dict[str, Any]
    """Value of each split that has one."""
    root: str | None
    """Folder that the splits are relative to; None for that of the yaml."""


def read_description(file: Path) -> Description:
    """Content of a yaml that describes a data set.

    Raises:
        DataError: it is not a mapping, or its names or their number cannot be used.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a YOLO data set: expected names: and train:, found {shown(content)}")
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file}: names must list the classes, not {shown(names)}")
    named: dict[int, str] = {}
    for number, name in names.items():
        key = whole_number(number, str(file), "the number of a class")
        if isinstance(name, int | float) and not isinstance(name, bool):
            name = str(name)
        if isinstance(name, bool) or name is None:
            raise DataError(f"{file}: the name of class {key} is read as {name}; write it in quotes")
        named[key] = class_name_text(name, str(file), f"the name of class {key}")
    if len(named) != len(names) or len(set(named.values())) != len(named):
        raise DataError(f"{file}: names has the same class twice")
    if min(named) < 0:
        raise DataError(f"{file}: the number of a class cannot be {min(named)}")
    if content.get("nc") is not None and whole_number(content["nc"], str(file), "nc") != len(named):
        raise DataError(f"{file}: nc is {shown(content['nc'])} but names lists {len(named)} classes")
    numbers = tuple(sorted(named))
    classes = ClassList(tuple(named[number] for number in numbers), numbers, str(file))
    entries = {key: content[key] for key in _SPLIT_KEYS if content.get(key) not in (None, "", [])}
    root = content.get("path")
    return Description(classes, entries, None if root is None else name_text(root, str(file), "path"))


def _parts_of_yaml(file: Path) -> list[YoloPart]:
    classes, entries, root = read_description(file)
    if not entries:
        raise DataError(f"{file}: it names no split: expected train:, val: or test: with a folder or a list of images")
    bases = [file.parent] if root is None else [file.parent / root, file.parent]
    parts = []
    for key, value in entries.items():
        texts = value if isinstance(value, list) else [value]
        sources = [_resolve(name_text(text, str(file), key), bases) for text in texts]
        if key == "test" and not any(source.exists() for source in sources):
            continue  # Exports name a test folder even if they have none.
        parts.append(YoloPart(key, sources, f"{file} ({key})", lambda: classes))
    return parts


def _resolve(text: str, bases: list[Path]) -> Path:
    """Path of the first existing place of this name; exports write `../train/images` for a folder beside the yaml."""
    text = text.strip().replace("\\", "/")
    inside = text
    while inside.startswith("../"):
        inside = inside.removeprefix("../")
    candidates = [base / name for name in dict.fromkeys((text, inside)) for base in bases]
    chosen = next((path for path in candidates if os.path.exists(path)), candidates[0])
    return Path(os.path.normpath(chosen))


def _parts_without_yaml(folder: Path) -> list[YoloPart]:
    if not folder.is_dir():
        return []

    def part(split: str, images: Path, labels: Path) -> YoloPart:
        places = list(dict.fromkeys((folder, labels.parent, labels, images)))
        return YoloPart(split, [images], str(images), lambda: _find_class_list(folder, places))

    pairs = []
    if (folder / "images").is_dir():
        pairs = [(child, folder / "labels" / child.name) for child in sorted((folder / "images").iterdir())]
    pairs = [(images, labels) for images, labels in pairs if _holds_labels(labels)]
    parts = [part(images.name, images, labels) for images, labels in pairs]
    if not parts:
        children = [
            child for child in sorted(folder.iterdir()) if canonical_split(child.name) in ("train", "val", "test")
        ]
        parts = [
            part(child.name, child / "images", child / "labels")
            for child in children
            if (child / "images").is_dir() and _holds_labels(child / "labels")
        ]
    if not parts and (folder / "images").is_dir() and _holds_labels(folder / "labels"):
        parts = [part(folder.name, folder / "images", folder / "labels")]
    if not parts and _labels_beside_images(folder):
        parts = [part(folder.name, folder, folder)]
    return parts


def _holds_labels(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_is_label_name(entry.name) for entry in entries)


def _is_label_name(name: str) -> bool:
    return name.lower().endswith(".txt") and name.lower() not in _NOT_LABELS and not name.startswith((".", "README"))


def _labels_beside_images(folder: Path) -> bool:
    names = os.listdir(folder)
    stems = {os.path.splitext(name)[0] for name in names if is_image_file(name)}
    return any(file in names for file in _CLASS_FILES) and any(
        _is_label_name(name) and os.path.splitext(name)[0] in stems for name in names
    )


def _find_class_list(folder: Path, places: list[Path]) -> ClassList:
    for place in places:
        for name in _CLASS_FILES:
            if (place / name).is_file():
                names = read_names(place / name)
                return ClassList(names, tuple(range(len(names))), str(place / name))
    raise DataError(
        f"{folder}: images/ and labels/ are here, but not the names of the classes: add a classes.txt with one name "
        "per line, or a data.yaml"
    )


def images_of(part: YoloPart, problems: list[Problem]) -> list[Path]:
    """Images of a split in its order, each once; missing and repeated ones are added to the problems."""
    found: dict[Path, None] = {}
    for source in part.sources:
        if source.is_dir():
            images = [(path, str(source)) for path in list_images(source)]
        elif source.suffix.lower() == ".txt" and source.is_file():
            images = list(_listed_images(source))
        elif source.is_file() and is_image_file(source):
            images = [(source, part.where)]
        else:
            problems.append(Problem("missing_image", part.where, f"no such folder or list: {source}", True))
            continue
        for path, where in images:
            if path in found:
                text = f"{path} is listed more than once: read once"
                problems.append(Problem("duplicate_image", where, text, False))
            elif not os.path.isfile(path):
                problems.append(Problem("missing_image", where, f"the image {path} is missing", True))
            found.setdefault(path)
    return [path for path in found if os.path.isfile(path)]


def _listed_images(file: Path) -> Iterator[tuple[Path, str]]:
    """Images that a list file names, relative to that file, each with file and line."""
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        if text.strip():
            yield _resolve(text, [file.parent]), f"{file}:{line}"


class LabelFolders:
    """Finder of the label file of an image; each folder is listed only once.

    Labels are in the folder whose path has `labels` in place of the last `images`, else beside the images.
    """

    def __init__(self) -> None:
        self._of_images: dict[Path, tuple[Path, set[str]]] = {}

    def label_of(self, image: Path) -> Path | None:
        """Label file of an image; None if there is none."""
        folder = image.parent
        if folder not in self._of_images:
            labels = _label_folder(folder)
            self._of_images[folder] = labels, {name for name in os.listdir(labels) if _is_label_name(name)}
        labels, names = self._of_images[folder]
        name = f"{image.stem}.txt"
        return labels / name if name in names else None

    def orphans(self) -> list[Path]:
        """Label files without an image, in the folders listed so far."""
        stems: dict[Path, set[str]] = {}
        for folder, (labels, _) in self._of_images.items():
            names = os.listdir(folder)
            stems.setdefault(labels, set()).update(os.path.splitext(name)[0] for name in names if is_image_file(name))
        listed = dict(self._of_images.values())
        return sorted(
            labels / name for labels, names in listed.items() for name in names if name[:-4] not in stems[labels]
        )


def _label_folder(images: Path) -> Path:
    parts = images.parts
    positions = [index for index, part in enumerate(parts) if part.lower() == "images"]
    for name in ("labels", "Labels"):
        if positions:
            swapped = Path(*parts[: positions[-1]], name, *parts[positions[-1] + 1 :])
            if swapped.is_dir():
                return swapped
    return images
