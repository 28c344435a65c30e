"""Opening of data sets in any known format, which is recognised; an error lists the files that were looked for."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, voc, yolo
from deformable_detr.data.formats.split_names import SplitLoaders, canonical_split

FormatName = Literal["coco", "yolo", "voc"]
_NESTED_FOLDERS = 3


class _Format(NamedTuple):
    find_splits: Callable[[Path], SplitLoaders]
    looked_for: str


_FORMATS: dict[FormatName, _Format] = {
    "coco": _Format(coco.find_splits, coco.LOOKED_FOR),
    "yolo": _Format(yolo.find_splits, yolo.LOOKED_FOR),
    "voc": _Format(voc.find_splits, voc.LOOKED_FOR),
}


def open_dataset(
    path: str | Path, *, split: str | None = None, format: FormatName | None = None, strict: bool = True
) -> DetectionDataset:
    """One split of the data set at a path.

    Formats are tried in the order COCO, YOLO, VOC. Where a folder holds several, the first is read and `source` names
    the others. A folder with nothing but one folder in it stands for the inner folder.

    Args:
        path: a folder, a COCO json or a YOLO yaml.
        split: name of the split; train if left out, else the first split there is.
        format: one of the formats, where a folder holds several.
        strict: raise the first problem that would stop training. Otherwise such problems are listed in `problems`, and
            the images and objects that they concern are left out of the samples.

    Raises:
        DataError: no such path, no known format, no such split, a file that cannot be parsed, or a fatal problem.
    """
    name, splits, others = _recognise(path, format)
    wanted = split
    if wanted is None:
        wanted = "train" if "train" in splits else next(iter(splits))
    elif wanted not in splits:
        wanted = canonical_split(wanted)
    if wanted not in splits:
        raise DataError(f"{path}: no split {split!r}; this {name.upper()} data set has {', '.join(splits)}")
    try:
        dataset = splits[wanted]()
    except OSError as error:
        raise _unreadable(path, error) from error
    also = f"; the folder also holds {' and '.join(other.upper() for other in others)}" if others else ""
    dataset = replace(dataset, source=f"{dataset.source}, split {wanted}{also}")
    if strict:
        _raise_first_fatal(dataset, path)
    return dataset


def list_splits(path: str | Path, *, format: FormatName | None = None) -> tuple[str, ...]:
    """Names of the splits: train, val, test as far as they exist, then others; never empty.

    A data set without splits has one split, train.

    Raises:
        DataError: no such path or no known format.
    """
    return tuple(_recognise(path, format)[1])


def recognise_format(path: str | Path, *, format: FormatName | None = None) -> FormatName:
    """Format that `open_dataset` would read.

    Raises:
        DataError: no such path or no known format.
    """
    return _recognise(path, format)[0]


def _recognise(path: str | Path, wanted: FormatName | None) -> tuple[FormatName, SplitLoaders, list[FormatName]]:
    """Format to read, its splits, and the other formats that the folder holds."""
    # Absolute, so that parents exist for ".", and samples stay valid if the working directory changes.
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if not os.path.exists(place):
        raise DataError(f"{path}: no such file or folder")
    found = _formats_in(place, wanted)
    for _ in range(_NESTED_FOLDERS):
        inner = None if found else _only_folder_in(place)
        if inner is None:
            break
        place, found = inner, _formats_in(inner, wanted)
    chosen = wanted or next(iter(found), None)
    if chosen is None or chosen not in found:
        tried = [reader.looked_for for name, reader in _FORMATS.items() if wanted in (None, name)]
        raise DataError(f"{path}: no data set recognised here. Looked for " + "; ".join(tried))
    return chosen, found[chosen], [name for name in found if name != chosen]


def _formats_in(place: Path, wanted: FormatName | None) -> dict[FormatName, SplitLoaders]:
    found: dict[FormatName, SplitLoaders] = {}
    for name, reader in _FORMATS.items():
        try:
            splits = reader.find_splits(place)
        except (DataError, OSError) as error:
            if name != wanted and (wanted or found):
                continue  # Errors in a format that will not be read do not matter.
            if isinstance(error, OSError):
                raise _unreadable(place, error) from error
            raise
        if splits:
            found[name] = splits
    return found


def _only_folder_in(place: Path) -> Path | None:
    """Only folder within a folder, or None: archives are often unpacked into a folder more than was meant."""
    if not place.is_dir():
        return None
    try:
        folders = [child for child in place.iterdir() if child.is_dir() and not child.name.startswith((".", "__"))]
    except OSError as error:
        raise _unreadable(place, error) from error
    return folders[0] if len(folders) == 1 else None


def _unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{error.filename or path}: cannot read this: {error.strerror or error}")


def _raise_first_fatal(dataset: DetectionDataset, path: str | Path) -> None:
    fatal = dataset.fatal_problems
    if not fatal:
        return
    more = f" (and {len(fatal) - 1} more: `ddetr check-data {path}` lists them)" if len(fatal) > 1 else ""
    raise DataError(f"{fatal[0].where}: {fatal[0].message}{more}")
