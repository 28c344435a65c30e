"""Places of annotation files, for formats that keep a split in one file of any name, or in a folder of such files."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deformable_detr.data.formats.image_names import folders_within, subfolders, usual_folders
from deformable_detr.data.formats.split_names import MAIN_SPLITS, canonical_split, split_in_name

_INNER_FOLDERS = ("annotations", "Annotations", "labels", "Labels", "images", "Images", "data", "csv", "json", "xml")
_MOST_PROBED = 200


def split_files(path: Path, endings: tuple[str, ...], is_ours: Callable[[Path], bool]) -> list[tuple[str, Path]]:
    """Split name and file of each split, from the first of these places that has files of the format.

    1. the file itself, where `path` is a file
    2. folders named after the splits: `train/*.json`, also within `annotations`, `labels`, `images` and such, and with
       such a folder in them
    3. the folder itself
    4. `annotations`, `labels`, `images`, `data` and such within it

    In a folder of a split the split has its name; elsewhere it has the name that is a word of the file's
    (`train_labels.csv`), or the file's own.

    Args:
        path: a folder or a file.
        endings: endings of the files' names, in lower case, with the dot.
        is_ours: says whether a file with such an ending is one of the format; at most 200 of a folder are asked about.
    """
    if path.is_file():
        return [(split_in_name(path.stem), path)] if _ends(path.name, endings) and is_ours(path) else []
    if not path.is_dir():
        return []
    inner = [path / name for name in _names_in(path, _INNER_FOLDERS)]
    found = [
        (folder.name, file)
        for base in (path, *inner)
        for folder in _split_folders(base)
        for file in _files_in_or_below(folder, endings, is_ours)
    ]
    if not found:
        found = [(split_in_name(file.stem), file) for file in _files_in_or_below(path, endings, is_ours)]
    return _with_names_of_their_own(found)


def split_folders(path: Path, holds_ours: Callable[[Path], bool]) -> list[tuple[str, Path]]:
    """Split name and folder of each split, for formats with a file for each image; the places of `split_files`.

    Args:
        path: a folder.
        holds_ours: says whether annotation files of the format lie directly in a folder.
    """
    if not path.is_dir():
        return []

    def ours_in(folder: Path) -> list[Path]:
        if holds_ours(folder):
            return [folder]
        return [inner for name in _names_in(folder, _INNER_FOLDERS) if holds_ours(inner := folder / name)]

    bases = [path, *(path / name for name in _names_in(path, _INNER_FOLDERS))]
    found = [(folder.name, one) for base in bases for folder in _split_folders(base) for one in ours_in(folder)]
    return _with_names_of_their_own(found or [(folder.name, folder) for folder in ours_in(path)])


def image_folders(annotations: Path, split: str) -> list[Path]:
    """Usual folders of the images of an annotation file, and those named after its split, the most likely first.

    Named after it are folders that have the split as a word of their name (`train_images`). A file in
    `labels/train` has its images in `images/train`, beside `labels`.
    """
    folders = usual_folders(annotations, split)
    inner = annotations.parent
    if canonical_split(inner.name) in MAIN_SPLITS and inner.parent.name in _INNER_FOLDERS:
        folders += usual_folders(inner, split)
    main = canonical_split(split)
    if main in MAIN_SPLITS:
        beside = (child for base in (inner, inner.parent) for child in folders_within([base]))
        folders += [child for child in beside if split_in_name(child.name) == main]
    return list(dict.fromkeys(folders))


def names_of_parts(parts: Sequence[tuple[str, str]]) -> list[str]:
    """Split names of parts of files, such as the subsets that a file names; no two are alike.

    Args:
        parts: name of each part within its file, where no other part has it, and the name of the file's split, which
            no other file has.
    """
    counts = Counter(name for name, _ in parts)
    return [name if counts[name] == 1 else f"{split}/{name}" for name, split in parts]


def _with_names_of_their_own(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Splits whose names differ: where two files would have one name, each has the stem of its file in addition."""
    counts = Counter(name for name, _ in found)
    named = [(name if counts[name] == 1 else f"{name}/{file.stem}", file) for name, file in found]
    counts = Counter(name for name, _ in named)
    return [(name if counts[name] == 1 else str(file), file) for name, file in named]


def _names_in(folder: Path, wanted: tuple[str, ...]) -> list[str]:
    # By listing, since a disk that ignores case has each folder under several names.
    try:
        names = set(os.listdir(folder))
    except OSError:
        return []
    return [name for name in wanted if name in names and (folder / name).is_dir()]


def _split_folders(base: Path) -> list[Path]:
    return [base / name for name in subfolders(base) if canonical_split(name) in MAIN_SPLITS]


def _files_in_or_below(folder: Path, endings: tuple[str, ...], is_ours: Callable[[Path], bool]) -> list[Path]:
    """Files of the format in a folder, else in the usual folders within it."""
    files = list(_files_in(folder, endings, is_ours))
    inner = [folder / name for name in _names_in(folder, _INNER_FOLDERS)]
    return files or [file for one in inner for file in _files_in(one, endings, is_ours)]


def _files_in(folder: Path, endings: tuple[str, ...], is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    names = sorted(name for name in os.listdir(folder) if _ends(name, endings))
    for name in names[:_MOST_PROBED]:
        file = folder / name
        if file.is_file() and is_ours(file):
            yield file


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().endswith(endings) and not name.startswith(".")
