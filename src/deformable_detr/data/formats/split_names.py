"""Names of the splits of a data set: one spelling for each, in a fixed order."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from deformable_detr.data.dataset import DetectionDataset

SplitLoaders = dict[str, Callable[[], DetectionDataset]]
"""Functions that read the splits, by split name, in the order train, val, test, then the others by name."""

_SPELLINGS = {
    "train": re.compile(r"train(ing)?[-_]?(set)?(\d{4})?"),
    "val": re.compile(r"(val|valid|validation|dev)[-_]?(set)?(\d{4})?"),
    "test": re.compile(r"test(ing)?[-_]?(set)?(\d{4})?"),
}
_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+")

MAIN_SPLITS = tuple(_SPELLINGS)
"""Main splits, which have several spellings: train, val and test."""


def canonical_split(name: str) -> str:
    """Canonical name of a split: train, val or test for usual spellings (`valid`, `val2017`), else the name itself."""
    for canonical, spelling in _SPELLINGS.items():
        if spelling.fullmatch(name.lower()):
            return canonical
    return name


def main_split(name: str) -> str | None:
    """Main split that a name speaks of, also as one of several words: `custom_train`, `val_annotations`, `TestSet2`.

    `test-dev` speaks of test. None if a name speaks of none of them, or of several, as `train_val` does.
    """
    if canonical_split(name) in _SPELLINGS:
        return canonical_split(name)
    words = {word.lower() for word in _BETWEEN_WORDS.split(name)}
    found = {canonical_split(word) for word in words - {"dev"}} & set(MAIN_SPLITS)
    # "dev" is val, but beside "test" it says which of several it is.
    if "dev" in words and "test" not in found:
        found.add("val")
    return found.pop() if len(found) == 1 else None


def split_in_name(stem: str) -> str:
    """Main split that a name speaks of (`train_labels`, `DET-test-dev`), else the canonical whole name.

    Args:
        stem: stem of a file, or name of a folder within a data set; what a whole data set is called says little.
    """
    return main_split(stem) or canonical_split(stem)


def name_splits(found: Iterable[tuple[str, Callable[[], DetectionDataset]]]) -> SplitLoaders:
    """Splits under their canonical names, in the fixed order.

    Names that would become equal (train2014 and train2017) stay as they are, and equal names are numbered. A longer
    name that speaks of a main split (custom_train) stands for it if no other name does. A single split with another
    name, such as `annotations` or `default`, is called `train`, because it is all there is to train on.
    """
    parts = list(found)
    canonical = [canonical_split(name) for name, _ in parts]
    spoken = [main_split(name) for name, _ in parts]
    if len(parts) == 1 and canonical[0] not in _SPELLINGS:
        canonical = ["train"]
    elif len(parts) > 1:
        canonical = [
            main if main is not None and spoken.count(main) == 1 else short
            for short, main in zip(canonical, spoken, strict=True)
        ]
    names_of: dict[str, set[str]] = defaultdict(set)
    for (name, _), short in zip(parts, canonical, strict=True):
        names_of[short].add(name)
    names = [short if len(names_of[short]) == 1 else name for (name, _), short in zip(parts, canonical, strict=True)]
    # Of two splits of one name, none is lost.
    earlier = [names[:place].count(name) for place, name in enumerate(names)]
    names = [f"{name} ({number + 1})" if number else name for name, number in zip(names, earlier, strict=True)]
    loaders = {name: loader for name, (_, loader) in zip(names, parts, strict=True)}
    rank = {name: position for position, name in enumerate(_SPELLINGS)}
    return {name: loaders[name] for name in sorted(loaders, key=lambda name: (rank.get(name, len(rank)), name))}
