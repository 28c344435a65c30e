"""Pictures that appear twice in a data set, byte for byte, and training images among those to validate with."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable

from deformable_detr.core.reading import open_file
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.split_names import MAIN_SPLITS

_LEAK_SHARE = 0.1
_COMPARED_IMAGES = 1000
_MOST_CANDIDATES = 20_000
_PIECE_BYTES = 4096
_MEGABYTE = 1 << 20


def repeated_images(datasets: dict[str, DetectionDataset]) -> list[Problem]:
    """Images with the same bytes in one split or in two; an image in two splits spoils the evaluation.

    A tenth of a split that is in the training split, too, is a leak, which comes first.
    """
    # A list such as trainval repeats the main splits on purpose.
    compared = [split for split in datasets if split in MAIN_SPLITS] or list(datasets)
    splits_of: dict[str, list[str]] = defaultdict(list)
    for split in compared:
        for sample in datasets[split].samples:
            splits_of[str(sample.path)].append(split)
    problems: list[Problem] = []
    num_leaked: dict[str, int] = defaultdict(int)
    for group in _same_content(splits_of):
        first, *others = group
        splits = sorted({split for path in group for split in splits_of[path]}, key=compared.index)
        same = f"the same picture as {', '.join(others)}" if others else "the same file"
        if len(splits) > 1:
            text = f"{same}, in the splits {' and '.join(splits)}"
            problems.append(Problem("shared_image", first, text, False))
        elif others:
            problems.append(Problem("duplicate_image", first, f"{same}, in the split {splits[0]}", False))
        if "train" in splits:
            for split in splits:
                num_leaked[split] += sum(split in splits_of[path] for path in group)
    leaks = [
        Problem("leak", f"split {split}", _leak_text(num_leaked[split], len(datasets[split]), "images"), False)
        for split in compared
        if split != "train" and num_leaked[split] and num_leaked[split] >= _LEAK_SHARE * len(datasets[split])
    ]
    return leaks + problems


def _leak_text(count: int, total: int, images: str) -> str:
    return (
        f"{_share_text(count, total, images)}: AP on them rewards what was remembered, and says little about new images"
    )


def _share_text(count: int, total: int, images: str) -> str:
    return f"{f'all {total}' if count == total else f'{count} of {total}'} {images} are training images, too"


def training_images_among(train: DetectionDataset, val: DetectionDataset) -> str | None:
    """Sentence on validation images that are training images, too; None if none was found.

    Of many validation images 1000 are compared, evenly spread, and only with files of equal length, so that this takes
    a moment also before a training on large data.
    """
    step = max(1, -(-len(val) // _COMPARED_IMAGES))
    probes = [str(sample.path) for sample in val.samples[::step]]
    wanted = {length for path in probes if (length := _length_of(path)) is not None}
    candidates = [path for sample in train.samples if _length_of(path := str(sample.path)) in wanted]
    candidates = candidates[:: max(1, -(-len(candidates) // _MOST_CANDIDATES))]
    # Pictures that are not compressed have all the same length, and most of them differ in a small piece.
    pieces = {path: _digest_of(path, middle=True) for path in probes}
    alike = {piece for piece in pieces.values() if piece is not None}
    known = {_digest_of(path) for path in candidates if _digest_of(path, middle=True) in alike} - {None}
    leaked = sum(_digest_of(path) in known for path in probes) if known else 0
    if not leaked:
        return None
    spread = f" of {len(val)} that were compared" if step > 1 else ""
    images = f"validation images{spread}"
    if leaked < _LEAK_SHARE * len(probes):
        return f"{_share_text(leaked, len(probes), images)}; `ddetr check-data` lists them"
    return _leak_text(leaked, len(probes), images)


def _same_content(paths: Iterable[str]) -> list[list[str]]:
    """Paths grouped by the content of their files; only files of equal length are read."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        length = _length_of(path)
        if length is not None:  # else gone since the annotations were read; decoding reports it
            by_length[length].append(path)
    groups: list[list[str]] = []
    for candidates in by_length.values():
        if len(candidates) == 1:
            groups.append(candidates)
            continue
        by_digest: dict[bytes, list[str]] = defaultdict(list)
        for path in candidates:
            digest = _digest_of(path)
            if digest is not None:
                by_digest[digest].append(path)
        groups += by_digest.values()
    return groups


def _length_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _digest_of(path: str, *, middle: bool = False) -> bytes | None:
    """Digest of a file, or of a small piece in the middle of it; None if it cannot be read."""
    try:
        with open_file(path) as stream:
            if middle:
                stream.seek(os.fstat(stream.fileno()).st_size // 2)
                return hashlib.sha1(stream.read(_PIECE_BYTES)).digest()
            digest = hashlib.sha1()
            while piece := stream.read(_MEGABYTE):
                digest.update(piece)
            return digest.digest()
    except OSError:
        return None
