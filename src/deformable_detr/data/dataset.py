"""One type for every data set: class names and samples. Files become samples in `formats`; nothing here reads any."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from deformable_detr.core.errors import DataError, listed

SMALL_AREA = 32**2
"""Objects of less area, in square pixels, are small to COCO's evaluation."""
MEDIUM_AREA = 96**2
"""Objects of less area that are not small are medium; the others are large."""

ProblemKind = Literal[
    "missing_image",
    "orphan_image",
    "orphan_annotation",
    "unannotated_image",
    "unreadable_image",
    "size_mismatch",
    "invalid_box",
    "degenerate_box",
    "outside_box",
    "clipped_box",
    "duplicate_box",
    "unknown_class",
    "unused_class",
    "invalid_annotation",
    "duplicate_image",
    "shared_image",
    "not_kept",
]


class Problem(NamedTuple):
    """Something wrong with a data set. `fatal` ones stop training; the others were mended as `message` says."""

    kind: ProblemKind
    where: str
    """File, and image or line or annotation within it."""
    message: str
    fatal: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One image and its objects, in pixels of the image as `size_wh` describes it."""

    path: Path
    size_wh: tuple[int, int]
    boxes_xyxy: Float[np.ndarray, "objects 4"]
    class_ids: Int[np.ndarray, "objects"]
    is_crowd: Bool[np.ndarray, "objects"]
    areas: Float[np.ndarray, "objects"]
    """The source's own area where it gives one (COCO: of the mask), else width x height; decides small/medium/large."""
    image_id: int
    """The source's id where it has one, else the position of the sample, from 1."""
    object_ids: tuple[int, ...]
    """The source's annotation ids where it has them, else numbers unique in the data set, from 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionDataset:
    """Class names and samples; class ids are positions in `classes`.

    `category_ids` are the source's own numbers for the classes (COCO's 1..90 with holes), in the same order.
    `problems` is what the reader found wrong and what it did about it; nothing is dropped without an entry here.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    samples: Sequence[Sample]
    problems: tuple[Problem, ...] = ()
    source: str = ""
    """The format and the files this came from, for people."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_objects(self) -> int:
        """Objects over all samples, crowd boxes included."""
        return sum(len(sample.class_ids) for sample in self.samples)

    @property
    def fatal_problems(self) -> tuple[Problem, ...]:
        """The problems that would stop training."""
        return tuple(problem for problem in self.problems if problem.fatal)

    def objects_per_class(self) -> dict[str, int]:
        """Number of objects of each class, crowd boxes included, in the order of `classes`."""
        totals = np.zeros(len(self.classes), dtype=np.int64)
        for sample in self.samples:
            totals += np.bincount(sample.class_ids, minlength=len(self.classes))
        return dict(zip(self.classes, totals.tolist(), strict=True))

    def subset(self, indices: Iterable[int]) -> "DetectionDataset":
        """The samples at these positions, in this order, with the same classes; problems stay with the whole."""
        return replace(self, samples=[self.samples[index] for index in indices], problems=())


def align_classes(dataset: DetectionDataset, classes: Sequence[str], category_ids: Sequence[int]) -> DetectionDataset:
    """The same samples with class ids that are positions in `classes`, matched by name.

    For a validation split or an evaluation whose data set lists its classes in another order, or lists fewer. Classes
    of the data set that are not in `classes` are forgotten if nothing is labelled with them.

    Raises:
        DataError: objects are labelled with classes that are not in `classes`.
    """
    if tuple(classes) == dataset.classes and tuple(category_ids) == dataset.category_ids:
        return dataset
    position = {name: index for index, name in enumerate(classes)}
    new_ids = np.array([position.get(name, -1) for name in dataset.classes], dtype=np.int64)
    counts = dataset.objects_per_class()
    unknown = [name for name in dataset.classes if name not in position and counts[name]]
    if unknown:
        strange, known = (listed([repr(name) for name in names], 10) for names in (unknown, classes))
        raise DataError(
            f"{dataset.source}: objects are labelled {strange}, which is not among the classes to predict: {known}"
        )
    samples = [replace(sample, class_ids=new_ids[sample.class_ids]) for sample in dataset.samples]
    return replace(dataset, classes=tuple(classes), category_ids=tuple(category_ids), samples=samples)
