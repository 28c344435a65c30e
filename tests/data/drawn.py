"""Pictures that say themselves where their objects are."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from deformable_detr.data.augmentation.geometry import Example
from deformable_detr.data.dataset import DetectionDataset

WIDTH, HEIGHT = 57, 38
SIZES_WH = [(40, 25), (31, 47), (40, 25), (50, 22), (33, 33), (31, 47), (40, 25)]
BOXES = [[3.0, 5.0, 20.0, 11.0], [0.0, 0.0, 57.0, 38.0], [40.5, 30.25, 41.0, 37.5]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def example(width: int = WIDTH, height: int = HEIGHT) -> Example:
    return Example(noise(width, height), torch.tensor(BOXES), torch.tensor([4, 0, 7]))


def marked(width: int, height: int, left: int, top: int, right: int, bottom: int) -> Example:
    """Black but for one white box, so that the picture itself says where the box is."""
    return Scene((width, height), [(left, top, right, bottom)], 2).example(2)


def white_box(image: Image.Image) -> list[float]:
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def broken(dataset: DetectionDataset, *positions: int) -> DetectionDataset:
    for position in positions:
        dataset.samples[position].path.write_bytes(b"not an image")
    return dataset


class Scene(NamedTuple):
    """Objects on black, labelled with consecutive numbers, of which any one can be painted white."""

    size_wh: tuple[int, int]
    boxes: Sequence[tuple[int, int, int, int]]
    first_label: int = 0

    def example(self, painted: int | None = None) -> Example:
        pixels = np.zeros((self.size_wh[1], self.size_wh[0], 3), dtype=np.uint8)
        labels = range(self.first_label, self.first_label + len(self.boxes))
        for label, (left, top, right, bottom) in zip(labels, self.boxes, strict=True):
            if label == painted:
                pixels[top:bottom, left:right] = 255
        boxes = torch.tensor(self.boxes, dtype=torch.float32).reshape(-1, 4)
        return Example(Image.fromarray(pixels), boxes, torch.tensor(list(labels), dtype=torch.int64))


def random_scene(seed: int, count: int = 4, first_label: int = 0, smallest: int = 12) -> Scene:
    """Of a size that is never square, its objects at least `smallest` pixels a side."""
    numbers = np.random.default_rng(seed)
    width, height = int(numbers.integers(60, 90)), int(numbers.integers(91, 130))
    if seed % 2:
        width, height = height, width
    boxes = []
    for _ in range(count):
        left, top = int(numbers.integers(0, width - smallest)), int(numbers.integers(0, height - smallest))
        right, bottom = (
            int(numbers.integers(left + smallest, width + 1)),
            int(numbers.integers(top + smallest, height + 1)),
        )
        boxes.append((left, top, right, bottom))
    return Scene((width, height), boxes, first_label)


def check_boxes(
    transform: Callable[[int | None], Example],
    labels: Sequence[int],
    tolerance: float = 1.0,
    min_visible: float = 0.0,
    edge: float = 0.5,
) -> int:
    """Compare every box with the region that changes when its object alone is painted; how many were compared.

    `transform(label)` must give the same random result each time, with the object of that label painted. Its region is
    what changes by more than `edge` of the largest change.
    """
    plain = transform(None)
    width, height = plain.image.size
    assert len(plain.boxes_xyxy) == len(plain.labels)
    kept = dict(zip(plain.labels.tolist(), plain.boxes_xyxy.tolist(), strict=True))
    assert len(kept) == len(plain.labels), "an object comes twice"
    for label in labels:
        painted = np.asarray(transform(label).image, dtype=int)
        change = np.abs(painted - np.asarray(plain.image, dtype=int)).max(axis=2)
        if label not in kept:
            assert min_visible > 0 or change.max() < 120, f"object {label} is seen but has no box"
            continue
        left, top, right, bottom = kept[label]
        assert 0 <= left < right <= width + 1e-3
        assert 0 <= top < bottom <= height + 1e-3
        if min(right - left, bottom - top) < 4:
            continue  # interpolation leaves no clear edge of so little
        rows, columns = np.nonzero(change > edge * change.max())
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array(seen) - kept[label]).max() <= tolerance, (label, seen, kept[label])
    return len(kept)
