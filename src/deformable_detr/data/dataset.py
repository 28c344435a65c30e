"""Data set type for every format: class names and samples. `formats` makes them from files; nothing here reads any."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from deformable_detr.core.errors import DataError, listed

SMALL_AREA = 32**2
"""Area in square pixels below which an object is small in COCO's evaluation."""
MEDIUM_AREA = 96**2
"""Area in square pixels below which an object that is not small is medium; larger ones are large."""

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
    "wrong_unit",
    "many_objects",
    "unknown_class",
    "unused_class",
    "invalid_annotation",
    "ignored_shape",
    "duplicate_image",
    "shared_image",
    "leak",
    "not_kept",
]


IMAGE_PROBLEMS: tuple[ProblemKind, ...] = ("missing_image", "unreadable_image", "size_mismatch")
"""Kinds of problems of image files, which `--skip-bad-images` passes over."""


class Problem(NamedTuple):
    """Problem of a data set; a fatal one stops training, any other was mended as its message says."""

    kind: ProblemKind
    """Kind of problem, by which problems are counted."""
    where: str
    """File, and image or line or annotation within it."""
    message: str
    """Sentence that says what is wrong and what was done about it."""
    fatal: bool
    """Whether it stops training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Image with its objects, in pixels of the image as `size_wh` describes it."""

    path: Path
    """Image file."""
    size_wh: tuple[int, int]
    """Width and height of the image in pixels, as annotated."""
    boxes_xyxy: Float[np.ndarray, "objects 4"]
    """Left, top, right, bottom of each object in pixels."""
    class_ids: Int[np.ndarray, "objects"]
    """Class of each object: position in the data set's `classes`, from 0."""
    is_crowd: Bool[np.ndarray, "objects"]
    """Whether each object is a region of many, which evaluation ignores and training leaves out."""
    areas: Float[np.ndarray, "objects"]
    """Area in square pixels: the source's own (COCO: of the mask), else width x height; makes small/medium/large."""
    image_id: int
    """Id of the image in the source where it has one, else the position of the sample, from 1."""
    object_ids: tuple[int, ...]
    """Annotation ids of the source where it has them, else numbers unique in the data set, from 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionDataset:
    """Data set: class names and samples; class ids are positions in `classes`."""

    classes: tuple[str, ...]
    """Class names, by class id."""
    category_ids: tuple[int, ...]
    """Numbers that the source has for the classes (COCO's 1..90 with gaps), in the order of `classes`."""
    samples: Sequence[Sample]
    """Images with their objects, in the source's order."""
    problems: tuple[Problem, ...] = ()
    """Everything the reader found wrong, and how it was mended; nothing is dropped without an entry here."""
    source: str = ""
    """Format and files that the data set was read from, for people."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_objects(self) -> int:
        """Number of objects in all samples, crowd boxes included."""
        return sum(len(sample.class_ids) for sample in self.samples)

    @property
    def fatal_problems(self) -> tuple[Problem, ...]:
        """Problems that would stop training."""
        return tuple(problem for problem in self.problems if problem.fatal)

    def objects_per_class(self) -> dict[str, int]:
        """Number of objects of each class, crowd boxes included, in the order of `classes`."""
        totals = np.zeros(len(self.classes), dtype=np.int64)
        for sample in self.samples:
            totals += np.bincount(sample.class_ids, minlength=len(self.classes))
        return dict(zip(self.classes, totals.tolist(), strict=True))

    def subset(self, indices: Iterable[int]) -> "DetectionDataset":
        """Data set of the samples at these positions, in this order, with the same classes and without problems."""
        return replace(self, samples=[self.samples[index] for index in indices], problems=())


def align_classes(dataset: DetectionDataset, classes: Sequence[str], category_ids: Sequence[int]) -> DetectionDataset:
    """Data set with class ids that are positions in `classes`, matched by name.

    It is meant for a validation split, or an evaluation, whose data set lists its classes in another order or lists
    fewer. Classes of the data set that are not in `classes` are left out if no object is labelled with them.

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
