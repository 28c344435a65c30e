"""Layouts with an annotation file for each image: two folders for each split, and files of the same names in them."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.core.reading import open_file
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.assemble import problem_of, unannotated
from deformable_detr.data.formats.image_names import composed, subfolders
from deformable_detr.data.formats.parsing import read_text, shown
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, dataset_of, read_once
from deformable_detr.data.formats.split_names import MAIN_SPLITS, SplitLoaders, name_splits, split_in_name
from deformable_detr.data.images import is_image_file, list_images

_PROBED_FILES = 8
_LISTED_FILES = 200
_PROBED_BYTES = 1 << 14
_PROBED_LINES = 20


class PairedFolders(NamedTuple):
    """Split with a folder of images and a folder of annotation files."""

    split: str
    """Name of the split, as the folders spell it."""
    images: Path
    """Folder of images."""
    annotations: Path
    """Folder of annotation files."""
    unread: tuple[str, ...] = ()
    """Names of other folders of annotation files for the same images."""


class FileContent(NamedTuple):
    """Content of one annotation file."""

    objects: list[ObjectRecord]
    """Objects of the image."""
    size_wh: tuple[int, int] | None = None
    """Width and height in pixels, where the file says it."""


class PairedFormat(NamedTuple):
    """Format with an annotation file for each image: its folders, and how the files are known and read."""

    name: str
    """Name for people."""
    images: tuple[str, ...]
    """Names of folders of images, in lower case, the most likely first."""
    annotations: Callable[[str], bool]
    """Whether a name in lower case is that of a folder of annotation files."""
    ending: str
    """Ending of annotation files, in lower case."""
    accepts: Callable[[str], bool]
    """Whether the beginning of a file is that of an annotation."""
    read: Callable[[Path, list[Problem]], FileContent]
    """Content of a file, read; what is wrong in it is added to the list, or raised as a `DataError`."""
    classes: tuple[str, ...] | None = None
    """Class names by class id; None for those of the objects of all splits, in alphabetical order."""


def find_pairs(path: Path, paired: PairedFormat) -> list[PairedFolders]:
    """Splits of a folder, by the first of these layouts that is there.

    1. `images/<split>` with `annotations/<split>`
    2. `<split>/images` with `<split>/annotations`
    3. `images` with `annotations` in the folder itself

    Folders of annotations count if one of a few files in them begins like one of the format; no more are opened.
    """
    if not path.is_dir():
        return []
    inner = subfolders(path)
    images, annotations = _named(path, inner, paired)
    parts = [
        part
        for folder in images
        for child in subfolders(folder)
        if split_in_name(child) in MAIN_SPLITS
        if (part := _pair_of(child, [folder / child], [notes / child for notes in annotations], paired)) is not None
    ]
    if not parts:
        parts = [
            part
            for child in inner
            if split_in_name(child) in MAIN_SPLITS
            if (part := _pair_of(child, *_named(path / child, subfolders(path / child), paired), paired)) is not None
        ]
    if not parts:
        part = _pair_of(path.name, images, annotations, paired)
        return [part] if part is not None else []
    names = distinct_splits([part.split for part in parts])
    return [part._replace(split=name) for part, name in zip(parts, names, strict=True)]


def _named(path: Path, inner: Sequence[str], paired: PairedFormat) -> tuple[list[Path], list[Path]]:
    """Folders of images, the most likely first, and folders of annotations, among the folders in a folder."""
    images = [path / name for wanted in paired.images for name in inner if name.lower() == wanted]
    annotations = [path / name for name in inner if paired.annotations(name.lower())]
    return images, annotations


def _pair_of(
    split: str, images: Sequence[Path], annotations: Sequence[Path], paired: PairedFormat
) -> PairedFolders | None:
    """Pair of the first folder of images and the first folder that holds annotations."""
    holding = [folder for folder in annotations if images and holds_annotations(folder, paired)]
    if not holding:
        return None
    return PairedFolders(split, images[0], holding[0], tuple(folder.name for folder in holding[1:]))


def distinct_splits(names: Sequence[str]) -> list[str]:
    """Split that each of several names of folders or files tells, or the name itself where others tell the same.

    Equal names stay equal; `name_splits` numbers them.
    """
    short = [split_in_name(name) for name in names]
    return [one if short.count(one) == 1 else name for name, one in zip(names, short, strict=True)]


def holds_annotations(folder: Path, paired: PairedFormat) -> bool:
    """Whether one of a few files with the right ending, in a folder or those below, begins like an annotation."""
    num_probed = 0
    for name in islice(files_below(folder, paired.ending), _LISTED_FILES):
        start = start_of(folder / name)
        if not start.strip():
            continue  # an image without objects
        if paired.accepts(start):
            return True
        num_probed += 1
        if num_probed == _PROBED_FILES:
            break
    return False


def files_below(folder: Path, ending: str) -> Iterator[str]:
    """Paths, relative to a folder, of the files with an ending in it and in the folders below; hidden ones left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in names:
            if name.lower().endswith(ending) and name[0] != ".":
                yield os.path.relpath(os.path.join(parent, name), folder)


def start_of(file: Path) -> str:
    """Text of the first kilobytes of a file; empty if it cannot be read or is no text."""
    try:
        with open_file(file) as stream:
            content = stream.read(_PROBED_BYTES)
    except (OSError, ValueError):
        return ""
    return "" if b"\0" in content else content.decode("utf-8", "replace").removeprefix("\ufeff")


def paired_records(
    part: PairedFolders, ending: str, read: Callable[[Path], FileContent], problems: list[Problem]
) -> list[ImageRecord]:
    """Images of a split with the objects of their annotation files.

    An image without one counts as an image without objects and is reported; if more than half have none, that is fatal.
    An annotation file without an image, or of which it is not clear which image it belongs to, is fatal.

    Args:
        part: the two folders.
        ending: ending of annotation files, in lower case.
        read: reads one; a `DataError` is reported as a fatal problem of that file.
        problems: receives what is wrong.
    """
    images = list_images(part.images)
    files = sorted(files_below(part.annotations, ending))
    file_of = _match_files(part, images, files, len(ending), problems)
    records, bare = [], []
    for image in images:
        file = file_of.get(image)
        content = FileContent([])
        if file is None:
            bare.append(str(image))
        else:
            try:
                content = read(file)
            except DataError as error:
                problems.append(problem_of(error, file, "invalid_annotation"))
                continue
        records.append(ImageRecord(image.name, str(file or image), content.objects, content.size_wh, image))
    problems += unannotated(bare, len(images), str(part.annotations), ending.lstrip("."))
    return records


def _match_files(
    part: PairedFolders, images: Sequence[Path], files: Sequence[str], ending: int, problems: list[Problem]
) -> dict[Path, Path]:
    """Annotation file of each image, by their names without endings.

    The folders within both folders count where they are alike; else only the last part of the names does.
    """
    tables = (_NameTable(images, part.images), _NameTable(images, None))
    found = [
        [table.images_of(file[:-ending] if table.root else os.path.basename(file)[:-ending]) for file in files]
        for table in tables
    ]
    hits = [sum(len(one) == 1 for one in each) for each in found]
    chosen = found[1] if hits[1] > hits[0] else found[0]
    files_of: dict[Path, list[Path]] = defaultdict(list)
    for file, candidates in zip(files, chosen, strict=True):
        place = part.annotations / file
        if len(candidates) == 1:
            files_of[candidates[0]].append(place)
        elif candidates:
            text = f"several images have its name: {candidates[0]} and {candidates[1]}; rename them"
            problems.append(Problem("duplicate_image", str(place), text, True))
        else:
            text = f"the image is missing: no file {shown(file[:-ending])} with an image's ending in {part.images}"
            problems.append(Problem("missing_image", str(place), text, True))
    for image, places in files_of.items():
        if len(places) > 1:
            text = f"two annotation files are for {image}: this one and {places[0].name}; remove one"
            problems.append(Problem("invalid_annotation", str(places[1]), text, True))
    return {image: places[0] for image, places in files_of.items()}


class _NameTable:
    """Images by name, with and without their ending; letters are compared as they are, then without their case."""

    def __init__(self, images: Sequence[Path], root: Path | None) -> None:
        self.root = root
        self._exact: dict[str, list[Path]] = defaultdict(list)
        self._folded: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            name = os.path.relpath(image, root) if root else image.name
            for key in (name, os.path.splitext(name)[0]):
                self._exact[key].append(image)
                self._folded[_folded(key)].append(image)

    def images_of(self, name: str) -> list[Path]:
        """Images of the name of an annotation file without its ending: `a` or `a.jpg`."""
        names = [name, os.path.splitext(name)[0]] if is_image_file(name) else [name]
        for key in names:
            found = self._exact.get(key) or self._folded.get(_folded(key), [])
            if found:
                return found
        return []


def _folded(name: str) -> str:
    return composed(name).casefold()


class _PairedFiles:
    """Annotation files of a data set, each read once for all of its splits."""

    def __init__(self, paired: PairedFormat) -> None:
        self._paired = paired
        self._readers: dict[Path, Callable[[list[Problem]], FileContent]] = {}

    def read(self, file: Path, problems: list[Problem]) -> FileContent:
        if file not in self._readers:
            self._readers[file] = read_once(partial(self._paired.read, file))
        return self._readers[file](problems)


def paired_loaders(parts: Sequence[PairedFolders], paired: PairedFormat) -> SplitLoaders:
    """Splits of a data set; each annotation file is read once, whichever splits are opened."""
    once = paired if paired.classes is not None else paired._replace(read=_PairedFiles(paired).read)
    return name_splits((part.split, partial(load_paired, part, parts, once)) for part in parts)


def load_paired(part: PairedFolders, parts: Sequence[PairedFolders], paired: PairedFormat) -> DetectionDataset:
    """Data set of one split; `parts` are all splits, of which class names come where the format has none.

    Raises:
        DataError: a folder cannot be listed, or no object has a class.
    """
    problems: list[Problem] = []
    if part.unread:
        text = f"is read; {listed(part.unread, 5)} beside it {'is' if len(part.unread) == 1 else 'are'} not"
        problems.append(Problem("orphan_annotation", str(part.annotations), text, False))
    records = paired_records(part, paired.ending, lambda file: paired.read(file, problems), problems)
    classes = paired.classes
    if classes is None:
        names = _class_names(item for record in records for item in record.objects)
        for other in parts:
            # Faults in files of another split are reported when that is read.
            for file in files_below(other.annotations, paired.ending) if other != part else ():
                with suppress(DataError):
                    names |= _class_names(paired.read(other.annotations / file, []).objects)
        classes = tuple(sorted(names))
    return dataset_of(
        records,
        folders=(),
        where=str(part.annotations),
        source=f"{paired.name} {part.annotations}",
        classes=classes,
        problems=problems,
    )


def read_lines(
    file: Path, problems: list[Problem], *, parse: Callable[[str, str], ObjectRecord | str | None]
) -> FileContent:
    """Objects of a text file with one on each line; lines that cannot be used are added to the problems.

    Args:
        file: the text file.
        problems: receives what is wrong.
        parse: object in a line, what is wrong with the line, or None for a line to pass over; it gets the line and its
            place for messages, and no empty lines.

    Raises:
        DataError: the file cannot be read.
    """
    objects = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        where = f"{file}:{number}"
        parsed = parse(line, where) if line.strip() else None
        if isinstance(parsed, str):
            problems.append(Problem("invalid_annotation", where, parsed, True))
        elif parsed is not None:
            objects.append(parsed)
    return FileContent(objects)


def begins_with(parse: Callable[[str, str], ObjectRecord | str | None], start: str) -> bool:
    """Whether one of the first lines of a text is an object."""
    return any(isinstance(parse(line, ""), ObjectRecord) for line in start.splitlines()[:_PROBED_LINES] if line.strip())


def _class_names(objects: Iterable[ObjectRecord]) -> set[str]:
    return {item.class_name for item in objects if item.class_name is not None}
