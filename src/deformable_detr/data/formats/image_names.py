"""Image files of a data set, found by the names that its annotations have for them.

Names are relative to a folder that the annotations do not say, may hold folders of another machine, and may be written
on another system. One folder, and one number of leading folders to leave out, is chosen for all names of a file; a
name that is not there under this rule is missing. So no name falls on a picture that happens to lie nearer. A name
without an image's ending is that of the only image with this stem.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.parsing import shown
from deformable_detr.data.formats.split_names import main_split
from deformable_detr.data.images import IMAGE_SUFFIXES, image_size, is_image_file

_PROBED_IMAGES = 64
_MOST_DROPPED = 12
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_NOT_IMAGES = re.compile(r"mask|label|annot|depth|seg")

_FOLDERS_OF_SPLIT = {
    "train": ("train", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "val2017", "val2014"),
    "test": ("test", "test2017", "test2014"),
}


def usual_folders(annotations: Path, split: str) -> list[Path]:
    """Usual folders of the images around an annotation file, the most likely first.

    For the folder of the file and then for its parent: the folder itself, `images`, `JPEGImages`, folders named after
    the split (`val`, `valid`, `val2017`), those within `images`, and `images` within those.
    """
    splits = dict.fromkeys((split, *_FOLDERS_OF_SPLIT.get(main_split(split) or "", ())))
    inner = ["", "images", "Images", "JPEGImages", *splits]
    inner += [f"images/{name}" for name in splits] + [f"{name}/images" for name in splits]
    return [base / name for base in (annotations.parent, annotations.parent.parent) for name in inner]


def subfolders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones; none if it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir())
    except OSError:
        return []


def folders_within(folders: Sequence[Path], *, of_labels: bool = False) -> list[Path]:
    """Folders that lie directly in some folders and may hold their images, each folder's in alphabetical order.

    Hidden folders are left out.

    Args:
        folders: folders to list.
        of_labels: return the folders whose names speak of masks, labels and the like, which are left out otherwise.
            Those can hold images too (`labeled`, `annotated_images`), so look there where no other folder has them.
    """
    names = ((folder, name) for folder in folders for name in subfolders(folder))
    return list(dict.fromkeys(folder / name for folder, name in names if _speaks_of_labels(name) == of_labels))


def _speaks_of_labels(name: str) -> bool:
    return _NOT_IMAGES.search(name.lower()) is not None


def folders_like(annotations: Path, split: str) -> list[Path]:
    """Folders to look in where the usual ones do not have the images.

    They are `data`, and all beside the annotations or one level up, or in `images` there, whose names speak of the same
    main split: `train_images`, `custom_train`. Folders of masks and labels do not count.
    """
    main = main_split(split)
    bases = (annotations.parent, annotations.parent.parent)
    found = [base / "data" for base in bases]
    for holder in (bases[0], bases[0] / "images", bases[1], bases[1] / "images"):
        if main is None:
            break
        names = [name for name in subfolders(holder) if main_split(name) == main]
        named = [holder / name for name in names if not _speaks_of_labels(name)]
        found += [folder / inner for folder in named for inner in ("", "images", "data")]
    return found


class FoundImages(NamedTuple):
    """Image files of a list of names."""

    paths: list[Path | None]
    """Path of each image, in the order of the names; None where it is missing."""
    problems: list[Problem]
    """Images that are missing, or that two names fall on."""


def find_images(
    names: Sequence[str],
    folders: Sequence[Path],
    place: Callable[[int], str],
    where: str,
    *,
    sizes_wh: Sequence[tuple[int, int] | None] = (),
    fallback: Sequence[Path] = (),
) -> FoundImages:
    """Image files of all names of an annotation file.

    Args:
        names: the names, with or without folders.
        folders: folders that the names may be relative to, the most likely first.
        place: the place of a name in the annotations for messages, by its position.
        where: the annotation file, for messages.
        sizes_wh: annotated sizes in the order of the names, which decide where two folders have different images of
            the same names; left out if there are none.
        fallback: folders to look in where those have none of the images.

    Raises:
        DataError: two folders have different images of these names, and no size says which are meant.
    """
    listing = _Listing()
    rule = _choose_rule(names, folders, where, sizes_wh, listing)
    if rule is None and fallback:
        rule = _choose_rule(names, fallback, where, sizes_wh, listing)
    if rule is None:
        if not names:
            return FoundImages([], [])
        tried = (
            f"looked in {folders[0]}"
            if len(folders) == 1
            else "looked beside the annotations and in the usual folders around them"
        )
        text = f"none of its {len(names)} images is there, the first being {shown(names[0])}; {tried}"
        return FoundImages([None] * len(names), [Problem("missing_image", where, text, True)])
    problems: list[Problem] = []
    paths: list[Path | None] = []
    for position, name in enumerate(names):
        expected = rule.path(name)
        path = listing.file_at(expected)
        if path is None:
            text = f"the image {shown(name)} is missing; expected it at {expected}"
            if twins := listing.with_ending(expected):
                endings = listed([shown(os.path.basename(twin)) for twin in twins])
                text = f"the image {shown(name)} could be any of {endings} in {os.path.dirname(expected)}"
            problems.append(Problem("missing_image", place(position), text, True))
        paths.append(Path(path) if path is not None else None)
    return FoundImages(paths, [*problems, *_twins(names, paths, place)])


class _Rule(NamedTuple):
    """Rule from a name to a path: a folder, and how many leading folders of the name do not count.

    With -1 the name is taken letter by letter: some programs unpack an archive of Windows into one folder, to files
    with a back-slash in their names.
    """

    folder: str
    num_dropped: int

    def path(self, name: str) -> str:
        if self.num_dropped < 0 or (self.num_dropped == 0 and "\\" not in name):
            return os.path.join(self.folder, name)
        parts = parts_of(name)
        return os.path.join(self.folder, *parts[min(self.num_dropped, len(parts) - 1) :])


def parts_of(name: str) -> list[str]:
    """Parts of a name written on any system, without a drive, "." and empty parts; never empty."""
    return [part for part in re.split(r"[/\\]", _DRIVE.sub("/", name, count=1)) if part not in ("", ".")] or [name]


def _choose_rule(
    names: Sequence[str],
    folders: Sequence[Path],
    where: str,
    sizes_wh: Sequence[tuple[int, int] | None],
    listing: "_Listing",
) -> _Rule | None:
    """Rule under which most of a few probed names are files, with as many of their folders as possible."""
    step = max(1, len(names) // _PROBED_IMAGES)
    probes = list(range(0, len(names), step))[:_PROBED_IMAGES]
    literally = any("\\" in names[position] for position in probes)
    deepest = max((len(parts_of(names[position])) for position in probes), default=1)
    there = [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
    best: list[_Rule] = []
    most = 0
    for num_dropped in range(-1 if literally else 0, min(deepest, _MOST_DROPPED)):
        for folder in there:
            rule = _Rule(folder, num_dropped)
            hits = sum(listing.file_at(rule.path(names[position])) is not None for position in probes)
            if hits > most:
                best, most = [rule], hits
            elif hits and hits == most and num_dropped == best[0].num_dropped:
                best.append(rule)
        if most == len(probes):
            break
    return _the_one(best, probes, names, where, sizes_wh, listing) if best else None


def _the_one(
    rules: list[_Rule],
    probes: list[int],
    names: Sequence[str],
    where: str,
    sizes_wh: Sequence[tuple[int, int] | None],
    listing: "_Listing",
) -> _Rule:
    """First of several rules under which equally many names are files, unless they lead to different images."""
    first, *others = rules
    for other in others:
        for position in probes:
            one, two = (listing.file_at(rule.path(names[position])) for rule in (first, other))
            if one is None or two is None or os.path.samefile(one, two) or _same_bytes(one, two):
                continue
            annotated = sizes_wh[position] if position < len(sizes_wh) else None
            fits_one, fits_two = (annotated is not None and _has_size(path, annotated) for path in (one, two))
            if fits_two and not fits_one:
                rest = others[others.index(other) + 1 :]
                return _the_one([other, *rest], probes, names, where, sizes_wh, listing)
            if fits_one and not fits_two:
                break
            raise DataError(
                f"{where}: the image {shown(names[position])} is at {one} and, another one, at {two}; move the one "
                "that is not meant somewhere else"
            )
    return first


def _same_bytes(one: str, two: str) -> bool:
    try:
        if os.stat(one).st_size != os.stat(two).st_size:
            return False
        with open(one, "rb") as first, open(two, "rb") as second:
            while True:
                piece = first.read(1 << 20)
                if piece != second.read(1 << 20):
                    return False
                if not piece:
                    return True
    except OSError:
        return False


def _has_size(path: str, size_wh: tuple[int, int]) -> bool:
    try:
        found = image_size(path)
    except DataError:
        return False
    return size_wh in (found, found[::-1])


def _twins(names: Sequence[str], paths: Sequence[Path | None], place: Callable[[int], str]) -> Iterator[Problem]:
    """Problems of images that are listed twice: kept if the names are equal, fatal if two names fall on one file."""
    positions_of: dict[Path, list[int]] = defaultdict(list)
    for position, path in enumerate(paths):
        if path is not None:
            positions_of[path].append(position)
    for path, (first, *others) in positions_of.items():
        for position in others:
            name = names[position]
            if parts_of(name) == parts_of(names[first]):
                text = f"the image {shown(name)} is listed more than once: kept"
                yield Problem("duplicate_image", place(position), text, False)
            else:
                text = f"the names {listed([shown(names[first]), shown(name)])} both fall on {path}; their folders are "
                yield Problem("duplicate_image", place(position), text + "not there, or one image is missing", True)


class _Listing:
    """Finder of files by path. Folders are listed once: asking for 118,000 files takes far longer."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._composed: dict[str, dict[str, list[str]]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def file_at(self, path: str) -> str | None:
        """Path of the file with this name, in whatever form its letters with marks are encoded; None without one."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = _entries(folder)
        names = self._names[folder]
        if name in names:
            return path
        if len(complete := self.with_ending(path)) == 1:
            return complete[0]
        if name.isascii() or not names:
            # A disk that ignores case knows a file by other names than it lists.
            return path if names and _is_file(path) else None
        if folder not in self._composed:
            table: dict[str, list[str]] = defaultdict(list)
            for entry in names:
                table[composed(entry)].append(entry)
            self._composed[folder] = table
        found = self._composed[folder].get(composed(name), [])
        return os.path.join(folder, found[0]) if len(found) == 1 else None

    def with_ending(self, path: str) -> list[str]:
        """Paths of the images whose stem this name is; none if it has an image's ending itself."""
        folder, name = os.path.split(path)
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            return []
        if folder not in self._stems:
            table: dict[str, list[str]] = defaultdict(list)
            for entry in sorted(filter(is_image_file, self._names.get(folder, ()))):
                table[composed(os.path.splitext(entry)[0])].append(entry)
            self._stems[folder] = table
        return [os.path.join(folder, entry) for entry in self._stems[folder].get(composed(name), ())]


def _entries(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError):
        return set()


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:
        return False


def composed(name: str) -> str:
    """Name with each letter and its marks as one character, as most systems write it; macOS takes them apart."""
    return unicodedata.normalize("NFC", name)
