"""Layouts of YOLO data sets: the yaml, its splits, and the label file of each image."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.image_names import find_images, parts_of
from deformable_detr.data.formats.kitti import holds_kitti
from deformable_detr.data.formats.label_names import MatchedLabels, match_labels
from deformable_detr.data.formats.parsing import (
    class_name_text,
    name_text,
    read_names,
    read_text,
    read_yaml,
    shown,
    whole_number,
)
from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split
from deformable_detr.data.formats.yolo_lines import KeypointShape
from deformable_detr.data.images import is_image_file, list_images

CLASS_FILES = ("classes.txt", "obj.names", "names.txt", "labels.txt")
"""Names of files that list the classes, one on each line."""

_USUAL_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_NOT_LABELS = frozenset({*CLASS_FILES, "notes.txt", "readme.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})
_MOST_NEIGHBOURS = 50


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
    bases: list[Path]
    """Folders that the names in lists may be relative to, besides that of the list."""
    keypoints: KeypointShape | None = None
    """Keypoints after each box, as far as the data set declares them."""


def find_yaml(path: Path) -> Path | None:
    """Yaml that describes a data set: the path itself, or a file in the folder; None if there is none."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    for name in _USUAL_YAMLS:
        if (path / name).is_file():
            return path / name
    for file in sorted(path.glob("*.y*ml")):
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
    keypoints: KeypointShape | None
    """Keypoints of each object; None if the yaml does not say."""


def read_description(file: Path) -> Description:
    """Content of a yaml that describes a data set.

    Raises:
        DataError: it is not a mapping, or its names, their number or the shape of its keypoints cannot be used.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a YOLO data set: expected names: and train:, found {shown(content)}")
    classes = _classes_in(content, file)
    entries = {key: content[key] for key in _SPLIT_KEYS if content.get(key) not in (None, "", [])}
    root = content.get("path")
    keypoints = _keypoints_in(content["kpt_shape"], file) if "kpt_shape" in content else None
    return Description(classes, entries, None if root is None else name_text(root, str(file), "path"), keypoints)


def _classes_in(content: dict[Any, Any], file: Path) -> ClassList:
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
    return ClassList(tuple(named[number] for number in numbers), numbers, str(file))


def _keypoints_in(value: object, file: Path) -> KeypointShape:
    if value is None or value == []:
        return KeypointShape(0, 2)
    if not isinstance(value, list) or len(value) != 2:
        raise DataError(f"{file}: kpt_shape must be two numbers, such as [17, 3], or null, not {shown(value)}")
    number, dim = (whole_number(item, str(file), "kpt_shape") for item in value)
    if not (number >= 0 and dim in (2, 3)):
        text = f"kpt_shape is {shown(value)}, but each keypoint has 2 numbers, or 3 with its visibility"
        raise DataError(f"{file}: {text}")
    return KeypointShape(number, dim)


def parts_of_yaml(file: Path) -> list[YoloPart]:
    """Splits that a yaml names.

    Raises:
        DataError: it cannot be used, or names no split.
    """
    classes, entries, root, keypoints = read_description(file)
    if not entries:
        raise DataError(f"{file}: it names no split: expected train:, val: or test: with a folder or a list of images")
    names_of = {
        key: [name_text(text, str(file), key) for text in (value if isinstance(value, list) else [value])]
        for key, value in entries.items()
    }
    bases = _bases(file.parent, root)
    places = resolve([name for names in names_of.values() for name in names], bases)
    parts = []
    for key, names in names_of.items():
        sources = [places[name] for name in names]
        if key == "test" and not any(source.exists() for source in sources):
            continue  # Exports name a test folder even if they have none.
        parts.append(YoloPart(key, sources, f"{file} ({key})", lambda: classes, bases, keypoints))
    return parts


def _bases(folder: Path, root: str | None) -> list[Path]:
    """Folders that the names in a yaml may be relative to: its root, as far as that is here, and its own folder."""
    if root is None:
        return [folder]
    parts = parts_of(root)
    ends = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    return list(dict.fromkeys([folder / root, *(end for end in ends if os.path.isdir(end)), folder]))


def resolve(names: Iterable[str], bases: Sequence[Path]) -> dict[str, Path]:
    """Path of each folder or file that a data set names, at the first place where it is, else as it is written.

    Names may lead to a place on another machine, be written on another system, or begin with a folder that was unpacked
    under another name: exports write `../train/images` or `NAME/train/images` for a folder beside the yaml. So ever
    shorter ends of a name count, but none without the folder that is named after a split, and none on which two names
    would fall.
    """
    found: dict[str, Path] = {}
    as_written: dict[str, Path] = {}
    for name in dict.fromkeys(names):
        text = name.strip().replace("\\", "/")
        inside = text
        while inside.startswith("../"):
            inside = inside.removeprefix("../")
        full = [Path(os.path.normpath(base / form)) for form in dict.fromkeys((text, inside)) for base in bases]
        short = [Path(os.path.normpath(base / end)) for end in _ends_of(inside) for base in bases]
        found[name] = next((path for path in [*full, *short] if os.path.exists(path)), full[0])
        if found[name] not in full:
            as_written[name] = full[0]
    places = list(found.values())
    return {name: as_written.get(name, path) if places.count(path) > 1 else path for name, path in found.items()}


def _ends_of(name: str) -> list[str]:
    """Ends of a path, the longest first; none is without the last folder that is named after a split."""
    parts = parts_of(name)
    splits = [position for position, part in enumerate(parts) if canonical_split(part) in MAIN_SPLITS]
    shortest = splits[-1] if splits else len(parts) - 1
    return ["/".join(parts[start:]) for start in range(shortest + 1)]


def parts_of_folders(folder: Path) -> list[YoloPart]:
    """Splits of a folder without a yaml, from the first of these that is there.

    1. `images/<split>` with `labels/<split>`, or `<split>/images` with `<split>/labels`
    2. `images` with `labels`, or images and txt files of the same stems in the folder itself, with a class list
    """
    if not folder.is_dir():
        return []

    def part(split: str, images: Path, labels: Path) -> YoloPart:
        places = list(dict.fromkeys((folder, labels.parent, labels, images)))
        return YoloPart(split, [images], str(images), lambda: _find_class_list(folder, places), [folder])

    pairs = []
    if (folder / "images").is_dir():
        pairs = [(child, folder / "labels" / child.name) for child in sorted((folder / "images").iterdir())]
    pairs = [(images, labels) for images, labels in pairs if _holds_labels(labels)]
    parts = [part(images.name, images, labels) for images, labels in pairs]
    if not parts:
        children = [child for child in sorted(folder.iterdir()) if canonical_split(child.name) in MAIN_SPLITS]
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
        if not any(_is_label_name(entry.name) for entry in entries):
            return False
    return not holds_kitti(folder)


def _is_label_name(name: str) -> bool:
    return _is_text_name(name) and name.lower() not in _NOT_LABELS and not name.startswith("README")


def _is_text_name(name: str) -> bool:
    return name.lower().endswith(".txt") and not name.startswith(".")


def _labels_beside_images(folder: Path) -> bool:
    names = os.listdir(folder)
    stems = {os.path.splitext(name)[0] for name in names if is_image_file(name)}
    return any(file in names for file in CLASS_FILES) and any(
        _is_label_name(name) and os.path.splitext(name)[0] in stems for name in names
    )


def _find_class_list(folder: Path, places: list[Path]) -> ClassList:
    for place in places:
        for name in CLASS_FILES:
            if (place / name).is_file():
                return class_list(place / name)
    raise DataError(
        f"{folder}: images/ and labels/ are here, but not the names of the classes: add a classes.txt with one name "
        "per line, or a data.yaml"
    )


def class_list(file: Path) -> ClassList:
    """Classes that a file lists, one on each line, numbered from 0.

    Raises:
        DataError: it cannot be read, holds no names, or one of them twice.
    """
    names = read_names(file)
    return ClassList(names, tuple(range(len(names))), str(file))


def images_of(part: YoloPart, problems: list[Problem]) -> list[Path]:
    """Images of a split in its order, each once; missing and repeated ones are added to the problems."""
    found: dict[Path, None] = {}
    for source in part.sources:
        if source.is_dir():
            images = [(path, str(source)) for path in list_images(source)]
        elif source.suffix.lower() == ".txt" and source.is_file():
            images = _listed_images(source, part.bases, problems)
        elif source.is_file() and is_image_file(source):
            images = [(source, part.where)]
        else:
            there = next(filter(None, map(_image_folders_in, part.bases)), "")
            text = f"no such folder or list: {source}{there}"
            problems.append(Problem("missing_image", part.where, text, True))
            continue
        for path, where in images:
            if path in found:
                text = f"{path} is listed more than once: read once"
                problems.append(Problem("duplicate_image", where, text, False))
            found.setdefault(path)
    return list(found)


def _image_folders_in(folder: Path) -> str:
    """Words that name the folders of images that are there, for people who look for another one."""
    try:
        children = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name[0] != "."]
        places = [place for child in children[:_MOST_NEIGHBOURS] for place in (child, child / "images")]
        found = [place for place in places if place.is_dir() and any(map(is_image_file, os.listdir(place)))]
    except OSError:
        return ""
    names = []
    for place in found:
        labels = _label_folder(place)
        beside = f" with {labels.relative_to(folder).as_posix()}/" if labels != place else ""
        names.append(f"{place.relative_to(folder).as_posix()}/{beside}")
    return f"; {folder} has {listed(names)}: name the images there instead" if names else ""


def _listed_images(file: Path, bases: Sequence[Path], problems: list[Problem]) -> list[tuple[Path, str]]:
    """Images that a list names and that are there, each with file and line, by one rule for all its lines."""
    lines = [(line, text.strip()) for line, text in enumerate(read_text(file).splitlines(), start=1) if text.strip()]
    folders = list(dict.fromkeys((file.parent, *bases, file.parent.parent)))
    names = [text for _, text in lines]
    images = find_images(names, folders, lambda position: f"{file}:{lines[position][0]}", str(file))
    # A name that is listed twice is said, and read once, by who reads the list.
    problems += [problem for problem in images.problems if problem.fatal]
    return [
        (Path(os.path.normpath(path)), f"{file}:{line}")
        for (line, _), path in zip(lines, images.paths, strict=True)
        if path is not None
    ]


def labels_of(images: Sequence[Path]) -> MatchedLabels:
    """Label files of the images of a split.

    They are in the folder whose path has `labels` in place of the last `images` or `JPEGImages`, else beside the
    images.
    """
    images_in: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        images_in[image.parent].append(image)
    folders_of: dict[Path, list[Path]] = defaultdict(list)
    for folder in images_in:
        folders_of[_label_folder(folder)].append(folder)
    matched = MatchedLabels({}, [])
    for labels, folders in folders_of.items():
        there = [folder / name for folder in folders for name in sorted(os.listdir(folder)) if is_image_file(name)]
        read = [image for folder in folders for image in images_in[folder]]
        stems = {image.stem.lower() for image in read}
        # A picture may be called test.jpg or classes.jpg.
        files = [
            labels / name
            for name in sorted(os.listdir(labels))
            if _is_label_name(name) or (_is_text_name(name) and os.path.splitext(name)[0].lower() in stems)
        ]
        label_of, problems = match_labels(dict.fromkeys([*there, *read]), files, used=frozenset(read))
        matched.label_of.update(label_of)
        matched.problems.extend(problems)
    return matched


def _label_folder(images: Path) -> Path:
    parts = images.parts
    positions = [index for index, part in enumerate(parts) if part.lower() in ("images", "jpegimages")]
    for name in ("labels", "Labels"):
        if positions:
            swapped = Path(*parts[: positions[-1]], name, *parts[positions[-1] + 1 :])
            if swapped.is_dir():
                return swapped
    return images
