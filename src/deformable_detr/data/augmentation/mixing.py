"""Mixing of several training images into one: mosaic (arXiv 2004.10934) and mixup (arXiv 1902.04103)."""

from collections.abc import Sequence

import torch
from PIL import Image

from deformable_detr.data.augmentation.geometry import FILL, Example, crop, resize, together
from deformable_detr.data.rng import uniform, uniform_factor, uniform_integer

_CROSSING = (0.3, 0.7)
_MIXUP_SIZE = (0.5, 1.0)
_MIXUP_WEIGHT = (0.4, 0.6)


def mosaic(
    examples: Sequence[Example],
    size_wh: tuple[int, int],
    scales: tuple[float, float],
    generator: torch.Generator,
    min_visible: float = 0.0,
) -> Example:
    """Mosaic of four images around a random crossing, each filling its corner as far as it can.

    Args:
        examples: four; left above, right above, left below, right below.
        size_wh: width and height of the whole, at least 2 pixels each.
        scales: smallest and largest factor on the size at which an image would just fit the whole.
        generator: decides the crossing, the scales, and which part of each image is seen.
        min_visible: see `keep_visible`.
    """
    assert len(examples) == 4
    column, row = (max(1, min(side - 1, round(side * uniform(*_CROSSING, generator)))) for side in size_wh)
    width, height = size_wh
    ground = Image.new("RGB", size_wh, FILL)
    corners = [(0, 0, column, row), (column, 0, width, row), (0, row, column, height), (column, row, width, height)]
    placed = []
    for example, (left, top, right, bottom) in zip(examples, corners, strict=True):
        fitted = _fitted(example, size_wh, uniform_factor(*scales, generator))
        tile = _window(fitted, (right - left, bottom - top), generator, min_visible)
        # A tile that does not fill its corner lies next to the crossing, so that the images meet.
        x = right - tile.image.width if left == 0 else left
        y = bottom - tile.image.height if top == 0 else top
        ground.paste(tile.image, (x, y))
        placed.append(tile._replace(boxes_xyxy=tile.boxes_xyxy + torch.tensor([x, y, x, y])))
    return together(placed, ground)


def mixup(example: Example, other: Example, generator: torch.Generator) -> Example:
    """Image blended with another one in a random part of it, with the objects of both.

    The other image is resized to fit half to all of the first, and gets a weight of 0.4 to 0.6.
    """
    guest = _fitted(other, example.image.size, uniform(*_MIXUP_SIZE, generator))
    x = uniform_integer(0, example.image.width - guest.image.width, generator)
    y = uniform_integer(0, example.image.height - guest.image.height, generator)
    weight = uniform(*_MIXUP_WEIGHT, generator)
    below = example.image.crop((x, y, x + guest.image.width, y + guest.image.height))
    image = example.image.copy()  # the original may be a cached one
    image.paste(Image.blend(below, guest.image, weight), (x, y))
    moved = guest._replace(boxes_xyxy=guest.boxes_xyxy + torch.tensor([x, y, x, y]))
    return together([example, moved], image)


def _fitted(example: Example, size_wh: tuple[int, int], factor: float) -> Example:
    """Example resized to just fit into `size_wh`, times a factor up to 1."""
    width, height = example.image.size
    ratio = min(size_wh[0] / width, size_wh[1] / height)
    fit = [min(side, max(1, round(length * ratio))) for length, side in zip((width, height), size_wh, strict=True)]
    return resize(example, (max(1, round(fit[0] * factor)), max(1, round(fit[1] * factor))))


def _window(example: Example, most_wh: tuple[int, int], generator: torch.Generator, min_visible: float) -> Example:
    """Window at a random place in an example, no larger than `most_wh`."""
    width, height = (min(side, most) for side, most in zip(example.image.size, most_wh, strict=True))
    left = uniform_integer(0, example.image.width - width, generator)
    top = uniform_integer(0, example.image.height - height, generator)
    return crop(example, left, top, (width, height), min_visible)
