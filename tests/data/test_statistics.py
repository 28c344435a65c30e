import numpy as np

from deformable_detr.data.statistics import SIDE_NAMES, statistics_of
from tests.report.cases import dataset, sample


def test_counts_by_hand():
    first = sample([[0, 0, 10, 10], [0, 0, 31, 32], [0, 0, 32, 32], [0, 0, 200, 150]], [0, 1, 1, 1], size_wh=(300, 200))
    second = sample([[0, 0, 96, 96], [0, 0, 9, 9]], [0, 0], is_crowd=[0, 1], size_wh=(90, 400), image_id=2)
    one = statistics_of(dataset(first, second, sample([], [], image_id=3)))
    assert (one.images, one.images_without_objects, one.boxes, one.crowd_boxes) == (3, 1, 5, 1)
    assert one.boxes_per_image == (0, 1.0, 4)
    assert (one.smallest_wh, one.largest_wh) == ((90, 200), (300, 400))
    assert one.boxes_per_class == {"cat": 2, "dog": 3, "emu": 0}
    assert (one.small, one.medium, one.large) == (2, 1, 2)
    # Sides 10, 31.5, 32, 173, 96: each in the bin that begins at or below it.
    assert dict(zip(SIDE_NAMES, one.sides, strict=True)) == {
        "<8": 0, "8": 1, "16": 1, "32": 1, "64": 1, "128": 1, "256": 0, "512+": 0
    }  # fmt: skip


def test_areas_of_the_source_decide_the_size():
    one = sample([[0, 0, 100, 100]], [0])
    one.areas[:] = 20.0
    found = statistics_of(dataset(one))
    assert (found.small, found.medium, found.large) == (1, 0, 0)


def test_no_images_and_no_objects():
    assert statistics_of(dataset()).images == 0
    nothing = statistics_of(dataset(sample([], [])))
    assert (nothing.boxes, nothing.images_without_objects, np.sum(nothing.sides)) == (0, 1, 0)
