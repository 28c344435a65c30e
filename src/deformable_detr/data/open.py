"""Opening of data sets in any known format, which is recognised; an error lists the files that were looked for."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.errors import DataError, listed
from deformable_detr.core.format_names import FormatName
from deformable_detr.data.archives import UnpackedArchive, unpack
from deformable_detr.data.dataset import IMAGE_PROBLEMS, DetectionDataset
from deformable_detr.data.formats import (
    coco,
    createml,
    csv,
    cvat,
    datumaro,
    dota,
    huggingface,
    kitti,
    labelme,
    labelstudio,
    openimages,
    supervisely,
    via,
    visdrone,
    voc,
    yolo,
)
from deformable_detr.data.formats.json_kinds import JsonStarts, start_of_json
from deformable_detr.data.formats.parsing import read_json, shown
from deformable_detr.data.formats.split_names import SplitLoaders, main_split
from deformable_detr.data.images import is_image_file

_LARGEST_TO_DESCRIBE = 1 << 26
_NESTED_FOLDERS = 3
_MOST_NEIGHBOURS = 50


class _Format(NamedTuple):
    find_splits: Callable[[Path, JsonStarts], SplitLoaders]
    """Splits of the format in a folder or a file; empty if there are none."""
    looked_for: str


def _no_json(find_splits: Callable[[Path], SplitLoaders]) -> Callable[[Path, JsonStarts], SplitLoaders]:
    """Function of the table for a format that has no json files to tell apart, from its `find_splits`."""
    return lambda place, _: find_splits(place)


# In this order they are tried; of several in one folder the first is read.
_FORMATS: dict[FormatName, _Format] = {
    "coco": _Format(coco.find_splits, coco.LOOKED_FOR),
    "yolo": _Format(_no_json(yolo.find_splits), yolo.LOOKED_FOR),
    "voc": _Format(_no_json(voc.find_splits), voc.LOOKED_FOR),
    "csv": _Format(_no_json(csv.find_splits), csv.LOOKED_FOR),
    "labelme": _Format(labelme.find_splits, labelme.LOOKED_FOR),
    "cvat": _Format(_no_json(cvat.find_splits), cvat.LOOKED_FOR),
    "via": _Format(via.find_splits, via.LOOKED_FOR),
    "createml": _Format(createml.find_splits, createml.LOOKED_FOR),
    "labelstudio": _Format(labelstudio.find_splits, labelstudio.LOOKED_FOR),
    "datumaro": _Format(datumaro.find_splits, datumaro.LOOKED_FOR),
    "visdrone": _Format(_no_json(visdrone.find_splits), visdrone.LOOKED_FOR),
    "kitti": _Format(_no_json(kitti.find_splits), kitti.LOOKED_FOR),
    "openimages": _Format(_no_json(openimages.find_splits), openimages.LOOKED_FOR),
    "dota": _Format(_no_json(dota.find_splits), dota.LOOKED_FOR),
    "huggingface": _Format(_no_json(huggingface.find_splits), huggingface.LOOKED_FOR),
    "supervisely": _Format(_no_json(supervisely.find_splits), supervisely.LOOKED_FOR),
}


def open_dataset(
    path: str | Path, *, split: str | None = None, format: FormatName | None = None, strict: bool = True
) -> DetectionDataset:
    """One split of the data set at a path.

    Formats are tried in the order of `FormatName`. Where a folder holds several, the first is read and `source` names
    the others. A folder without a data set of its own stands for the one folder in it that is a data set.

    Args:
        path: a folder, an annotation file such as a COCO json, or a zip archive.
        split: name of the split; train if left out, else the first split there is.
        format: one of the formats, where a folder holds several.
        strict: raise the first problem that would stop training. Otherwise such problems are listed in `problems`, and
            the images and objects that they concern are left out of the samples.

    Raises:
        DataError: no such path, no known format, no such split, a file that cannot be parsed, or a fatal problem.
    """
    return recognise(path, format=format).open(split, strict=strict)


def list_splits(path: str | Path, *, format: FormatName | None = None) -> tuple[str, ...]:
    """Names of the splits: train, val, test as far as they exist, then others; never empty.

    A data set without splits has one split, train.

    Raises:
        DataError: no such path or no known format.
    """
    return recognise(path, format=format).splits


class FoundDataset(NamedTuple):
    """Data set that was recognised: its format and splits, none of which is read before it is opened.

    Opening several splits reads each annotation file once: what one split was read with is kept for the others, as long
    as this object lives. After a change of the files, recognise the data set again.
    """

    path: str | Path
    """Path of the data set, as it was given."""
    format: FormatName
    """Format to read."""
    loaders: SplitLoaders
    """Functions that read the splits."""
    others: tuple[FormatName, ...]
    """Other formats that the folder holds."""
    archive: UnpackedArchive | None
    """Archive that it was unpacked from."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train, val, test as far as they exist, then others; never empty."""
        return tuple(self.loaders)

    def open(self, split: str | None = None, *, strict: bool) -> DetectionDataset:
        """One split, read.

        Args:
            split: name of the split; train if left out, else the first split there is.
            strict: raise the first problem that would stop training.

        Raises:
            DataError: no such split, a file that cannot be parsed, or a fatal problem.
        """
        wanted = split
        if wanted is None:
            wanted = "train" if "train" in self.loaders else self.splits[0]
        elif wanted not in self.loaders:
            wanted = main_split(wanted) or wanted
        if wanted not in self.loaders:
            there = f"this {self.format.upper()} data set has {', '.join(self.splits)}"
            raise DataError(f"{self.path}: no split {split!r}; {there}")
        try:
            dataset = self.loaders[wanted]()
        except OSError as error:
            raise _unreadable(self.path, error) from error
        also = f"; the folder also holds {' and '.join(map(str.upper, self.others))}" if self.others else ""
        unpacked = f"; {self.archive.remark}" if self.archive else ""
        dataset = replace(dataset, source=f"{dataset.source}, split {wanted}{also}{unpacked}")
        if strict:
            refuse_fatal(dataset, self.path)
        return dataset


def recognise(path: str | Path, *, format: FormatName | None = None) -> FoundDataset:
    """Data set at a path, recognised once for all questions about it.

    Args:
        path: a folder, an annotation file such as a COCO json, or a zip archive.
        format: one of the formats, where a folder holds several.

    Raises:
        DataError: no such path or no known format.
    """
    if format is not None and format not in _FORMATS:
        raise DataError(f"{path}: no format is called {shown(format)}; there are {', '.join(_FORMATS)}")
    # Absolute, so that parents exist for ".", and samples stay valid if the working directory changes.
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if not os.path.exists(place):
        raise DataError(f"{path}: no such file or folder")
    archive = unpack(path)
    if archive is not None:
        place = archive.folder
    given = place
    starts = cache(start_of_json)  # many formats are json, and each asks
    found = _formats_in(place, format, starts)
    for _ in range(_NESTED_FOLDERS):
        inner = {} if found else _data_sets_below(place, format, starts)
        if len(inner) > 1:
            names = [f"{next(iter(formats)).upper()} in {folder.name}/" for folder, formats in inner.items()]
            raise DataError(f"{path}: several data sets are here: {listed(names, 5)}; give the folder of one of them")
        if not inner:
            break
        ((place, found),) = inner.items()
    chosen = format or next(iter(found), None)
    if chosen is None or chosen not in found:
        unpacked = f" ({archive.remark})" if archive else ""
        raise DataError(f"{_not_recognised(path, given, format)}{unpacked}")
    return FoundDataset(path, chosen, found[chosen], tuple(name for name in found if name != chosen), archive)


def _not_recognised(path: str | Path, place: Path, wanted: FormatName | None) -> str:
    if wanted is not None:
        return f"{path}: no data set of this format here: {_contents(place)}. Looked for {_FORMATS[wanted].looked_for}"
    known = ", ".join(_FORMATS)
    return (
        f"{path}: no data set recognised here: {_contents(place)}. Known formats are {known}; name one with "
        "--format, or format= in Python, to be told what is missing"
    )


def _contents(place: Path) -> str:
    """Content of a folder in words, so that people see what was looked at."""
    if not place.is_dir():
        return f"it is one file, {shown(place.name)}{_content_of(place)}"
    try:
        entries = sorted((one for one in os.scandir(place) if one.name[0] != "."), key=lambda one: one.name)
    except OSError as error:
        raise _unreadable(place, error) from error
    folders = [f"{shown(entry.name)[1:-1]}/" for entry in entries if entry.is_dir()]
    files = [entry.name for entry in entries if not entry.is_dir()]
    images = [name for name in files if is_image_file(name)]
    others = [name for name in files if not is_image_file(name)]
    by_ending = Counter(os.path.splitext(name)[1].lower() for name in others)
    kinds = [
        shown(next(name for name in others if os.path.splitext(name)[1].lower() == ending))[1:-1]
        + (f" and {count - 1} more {ending or 'without an ending'}" if count > 1 else "")
        for ending, count in by_ending.most_common()
    ]
    parts = [f"the folders {listed(folders, 5)}"] * bool(folders) + [
        f"{len(images)} image{'s' * (len(images) != 1)}"
    ] * bool(images)
    return f"found {', '.join([*parts, listed(kinds, 5)] if kinds else parts) or 'nothing'}"


def _content_of(file: Path) -> str:
    """Content of a json file in words, after a comma; empty for any other file.

    Raises:
        DataError: it is broken, which is then the reason why nothing could recognise it.
    """
    if file.suffix.lower() != ".json" or file.stat().st_size > _LARGEST_TO_DESCRIBE:
        return ""
    value = read_json(file)
    if isinstance(value, dict):
        return f", an object with {listed([shown(key) for key in value], 5) or 'nothing'}"
    return f", not an object but {shown(value)}"


def _formats_in(place: Path, wanted: FormatName | None, starts: JsonStarts) -> dict[FormatName, SplitLoaders]:
    found: dict[FormatName, SplitLoaders] = {}
    for name, reader in _FORMATS.items():
        try:
            splits = reader.find_splits(place, starts)
        except (DataError, OSError) as error:
            if name != wanted and (wanted or found):
                continue  # Errors in a format that will not be read do not matter.
            if isinstance(error, OSError):
                raise _unreadable(place, error) from error
            raise
        if splits:
            found[name] = splits
    return found


def _data_sets_below(
    place: Path, wanted: FormatName | None, starts: JsonStarts
) -> dict[Path, dict[FormatName, SplitLoaders]]:
    """Folders within a folder that are data sets; the only folder there is, even if it is none.

    Archives are often unpacked into a folder more than was meant, and data sets lie beside scripts and papers.
    """
    if not place.is_dir():
        return {}
    try:
        children = sorted(child for child in place.iterdir() if not child.name.startswith((".", "__")))
        folders = [child for child in children if child.is_dir()]
    except OSError as error:
        raise _unreadable(place, error) from error
    if len(folders) == 1:
        return {folders[0]: _formats_in(folders[0], wanted, starts)}
    found = {}
    for folder in folders[:_MOST_NEIGHBOURS]:
        try:
            formats = _formats_in(folder, wanted, starts)
        except DataError:
            continue  # It may be no data set at all; given by itself, it is explained.
        if formats and (wanted is None or wanted in formats):
            found[folder] = formats
    return found


def _unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{error.filename or path}: cannot read this: {error.strerror or error}")


def refuse_fatal(dataset: DetectionDataset, path: str | Path, *, skip_bad_images: bool = False) -> None:
    """Refuse a data set with problems that would stop training.

    Args:
        dataset: the data set.
        path: where it was opened, for the way out.
        skip_bad_images: pass over images that are missing, cannot be read or have another size.

    Raises:
        DataError: there is such a problem; the message is that of the first one, with the ways out.
    """
    fatal = [problem for problem in dataset.fatal_problems if not (skip_bad_images and problem.kind in IMAGE_PROBLEMS)]
    if not fatal:
        return
    first = f"{fatal[0].where}: {fatal[0].message}"
    more = f"{len(fatal) - 1} more: " if len(fatal) > 1 else ""
    if len(dataset) and all(problem.kind in IMAGE_PROBLEMS for problem in fatal):
        raise DataError(f"{first} ({more}{ways_past_bad_images(path)})")
    raise DataError(f"{first} (and {more}`ddetr check-data {path}` lists them)" if more else first)


def ways_past_bad_images(path: str | Path | None = None) -> str:
    """Words for what to do about images that cannot be used.

    Args:
        path: the data set; left out where it is not known.
    """
    command = "ddetr check-data" if path is None else f"ddetr check-data {path}"
    return f"`{command}` lists all such images; --skip-bad-images, or skip_bad_images in Python, goes on without them"
