from typing import Any

import numpy as np
import pytest
from pycocotools import mask as masks

from deformable_detr.data.formats.coco_boxes import CocoBoxes, read_boxes


def read(*items: dict[str, Any], size_wh: tuple[int, int] | None = None) -> CocoBoxes:
    return read_boxes(items, [size_wh] * len(items), lambda position: f"a.json: annotation {position}")


def fault(item: dict[str, Any], size_wh: tuple[int, int] | None = None) -> str:
    found = read(item, {"bbox": [1, 2, 3, 4]}, size_wh=size_wh)
    assert list(found.faults) == [0]
    assert found.boxes_xyxy[1].tolist() == [1, 2, 4, 6]
    return str(found.faults[0])


POLYGON = [5, 5.5, 25, 5.5, 25, 20, 5, 20]


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([POLYGON], [5, 5.5, 25, 20]),
        (POLYGON, [5, 5.5, 25, 20]),
        ([POLYGON, [1, 40, 2, 41, 3, 30]], [1, 5.5, 25, 41]),
        ([[5, 5], [25, 6], [11, 20]], [5, 5, 25, 20]),
        ([["5", "5", "25", "6", "11", "20.5"]], [5, 5, 25, 20.5]),
    ],
)
def test_boxes_around_polygons(segmentation: object, box: list[float]) -> None:
    found = read({"bbox": [1, 2, 3, 4], "segmentation": [POLYGON]}, {"segmentation": segmentation})
    assert found.boxes_xyxy.tolist() == [[1, 2, 4, 6], box]
    assert found.is_around.tolist() == [False, True]
    assert found.faults == {}


def random_mask(seed: int) -> np.ndarray:
    numbers = np.random.default_rng(seed)
    height, width = (int(side) for side in numbers.integers(1, 40, 2))
    return np.asfortranarray(numbers.random((height, width)) < numbers.choice([0.01, 0.3, 0.97]), dtype=np.uint8)


def runs_of(mask: np.ndarray) -> list[int]:
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("seed", range(40))
def test_boxes_around_masks(seed: int) -> None:
    """As a list and as text, against the pixels themselves."""
    mask = random_mask(seed)
    packed = masks.encode(mask)
    as_list = {"size": list(mask.shape), "counts": runs_of(mask)}
    as_text = {"size": list(mask.shape), "counts": packed["counts"].decode()}
    found = read({"segmentation": as_list}, {"segmentation": as_text}, size_wh=mask.shape[::-1])
    if not mask.any():
        assert list(found.faults) == [0, 1]
        return
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.boxes_xyxy.tolist() == [box, box]
    assert found.is_around.all()


def test_a_bbox_without_extent_stays_where_nothing_is_around() -> None:
    for segmentation in (None, [], [[]], {}, [[3, 4, 9, 4, 5, 4]], [[1, 2]], "x"):
        found = read({"bbox": [7, 8, 0, 0], "segmentation": segmentation})
        assert found.boxes_xyxy.tolist() == [[7, 8, 7, 8]]
        assert (found.faults, found.is_around.tolist()) == ({}, [False])


def test_one_flat_side_is_enough_to_look_at_the_segmentation() -> None:
    found = read({"bbox": [5, 5, 20, 0], "segmentation": [POLYGON]})
    assert found.boxes_xyxy.tolist() == [[5, 5.5, 25, 20]]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "annotation 0: it has no bbox, and no segmentation to take a box from"),
        ({"bbox": None, "segmentation": [[]]}, "it has no bbox, and no segmentation"),
        ({"bbox": {"x": 1}}, "bbox must be [left, top, width, height], not {'x': 1}"),
        ({"bbox": "1 2 3 4"}, "bbox must be [left, top, width, height], not '1 2 3 4'"),
        ({"bbox": [1, 2, None, 4]}, "each value of bbox must be a number, not None"),
        ({"segmentation": 7}, "segmentation must be polygons or a mask, not 7"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6], 7]}, "segmentation must be a list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "a polygon must have x and y in turn, and one has 7 numbers"),
        ({"segmentation": [[1, 2, 3, 4]]}, "at least three corners, not the 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, True]]}, "each value of a polygon must be a number, not True"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, "a coordinate that is not a finite number"),
        ({"segmentation": {"counts": [6]}}, "a mask must have its size, [height, width], not None"),
        ({"segmentation": {"size": [2, 3]}}, "a mask must have run lengths, not None"),
        ({"segmentation": {"size": [2, 3], "counts": [1, 4]}}, "add up to 5, and it has 3 x 2 pixels"),
        ({"segmentation": {"size": [2, 3], "counts": [8, -2]}}, "add up to 6, and it has 3 x 2 pixels"),
        ({"segmentation": {"size": [0, 0], "counts": []}}, "it has 0 x 0 pixels"),
        ({"segmentation": {"size": [2, 3], "counts": [1.5]}}, "each run length of a mask must be a whole number"),
        ({"segmentation": {"size": [2, 3], "counts": "ü"}}, "cannot be unpacked: 'ü'"),
        ({"segmentation": {"size": [2, 3], "counts": "P"}}, "are cut off: 'P'"),
        ({"segmentation": {"size": [2, 3], "counts": "o" * 99}}, "cannot be unpacked"),
    ],
)
def test_faults(item: dict[str, Any], message: str) -> None:
    assert message in fault(item)


def test_a_mask_of_another_picture() -> None:
    mask = {"segmentation": {"size": [2, 3], "counts": [1, 5]}}
    assert "its mask has 3 x 2 pixels, and its image has 30 x 20" in fault(mask, (30, 20))
