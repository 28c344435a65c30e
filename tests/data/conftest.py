"""Small data sets on disk, drawn for one test each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deformable_detr.data.dataset import DetectionDataset, Sample
from tests.data.drawn import SIZES_WH


def draw(path: Path, size_wh: tuple[int, int] = (50, 30), shade: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, (shade, 90, 200)).save(path, **options)
    return path


@pytest.fixture
def photo() -> Callable[..., Path]:
    """Writes an image of one colour: photo(path, size_wh, shade)."""
    return draw


@pytest.fixture
def coco_json(tmp_path: Path) -> Callable[..., Path]:
    """Writes `data.json` with two images beside it, any section replaced by keyword."""

    def write(**sections: Any) -> Path:
        draw(tmp_path / "a.png", (50, 30))
        draw(tmp_path / "b.png", (20, 40))
        document = {
            "images": [
                {"id": 7, "file_name": "b.png", "width": 20, "height": 40},
                {"id": 3, "file_name": "a.png", "width": 50, "height": 30},
            ],
            "annotations": [
                {"id": 11, "image_id": 3, "category_id": 9, "bbox": [1, 2.5, 10, 20], "area": 77.5, "iscrowd": 0},
                {"id": 12, "image_id": 7, "category_id": 2, "bbox": [0, 0, 20, 40], "iscrowd": 1},
                {"id": 10, "image_id": 3, "category_id": 2, "bbox": [4, 4, 3, 2]},
            ],
            "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        path = tmp_path / "data.json"
        path.write_text(json.dumps({**document, **sections}))
        return path

    return write


@pytest.fixture
def drawn(tmp_path: Path) -> DetectionDataset:
    """Three images out of alphabetical order, two of the same stem, one without objects; odd coordinates, a crowd."""
    generator = np.random.default_rng(5)
    samples = []
    next_id = 1
    for index, (name, size_wh, count) in enumerate(
        [("z.png", (61, 37), 3), ("a.jpg", (23, 59), 0), ("z.jpg", (40, 90), 5)]
    ):
        corners = np.sort(generator.uniform(0, 1, (count, 2, 2)), axis=1) * size_wh
        boxes = corners.reshape(-1, 4)
        samples.append(
            Sample(
                path=draw(tmp_path / "source" / str(index) / name, size_wh, shade=index),
                size_wh=size_wh,
                boxes_xyxy=boxes,
                class_ids=np.arange(count, dtype=np.int64) % 3,
                is_crowd=np.arange(count) == 4,
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                image_id=index + 40,
                object_ids=tuple(range(next_id, next_id + count)),
            )
        )
        next_id += count
    return DetectionDataset(classes=("zebra", "ant", "été"), category_ids=(3, 8, 90), samples=samples)


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """Image i is filled with the gray value 10 * i and has i objects, every second one a crowd."""
    samples = []
    for number, (width, height) in enumerate(SIZES_WH):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (width, height), (10 * number,) * 3).save(path)
        left = np.arange(number, dtype=np.float64)
        boxes = np.stack([left, left + 1, left + 8, left + 6], axis=1)
        samples.append(
            Sample(
                path=path,
                size_wh=(width, height),
                boxes_xyxy=boxes,
                class_ids=np.arange(number) % 3,
                is_crowd=np.arange(number) % 2 == 1,
                areas=np.full(number, 40.0),
                image_id=number + 1,
                object_ids=tuple(100 * number + i for i in range(number)),
            )
        )
    return DetectionDataset(classes=("a", "b", "c"), category_ids=(1, 2, 3), samples=samples, source="drawn")
