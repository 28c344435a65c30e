"""One training image made of several: mosaic (arXiv 2004.10934) and mixup (arXiv 1902.04103)."""

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
    """Four images around a random crossing, each filling a corner or as much of it as it can.

    Args:
        examples: Four; left above, right above, left below, right below.
        size_wh: Of the whole, at least 2 pixels a side.
        scales: Smallest and largest factor on an image that would just fit the whole.
        generator: Decides on the crossing, on scales, and on which part of each image is seen.
        min_visible: See `keep_visible`.
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
        # Towards the crossing where the tile does not fill its corner, so that images meet.
        x = right - tile.image.width if left == 0 else left
        y = bottom - tile.image.height if top == 0 else top
        ground.paste(tile.image, (x, y))
        placed.append(tile._replace(boxes_xyxy=tile.boxes_xyxy + torch.tensor([x, y, x, y])))
    return together(placed, ground)


def mixup(example: Example, other: Example, generator: torch.Generator) -> Example:
    """The other image shining through a part of this one, as strong as it or a little weaker or stronger; all objects.

    The other one is brought to half to all of this one's size.
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
    """The image so large that it would just fit into `size_wh`, times a factor up to 1."""
    width, height = example.image.size
    ratio = min(size_wh[0] / width, size_wh[1] / height)
    fit = [min(side, max(1, round(length * ratio))) for length, side in zip((width, height), size_wh, strict=True)]
    return resize(example, (max(1, round(fit[0] * factor)), max(1, round(fit[1] * factor))))


def _window(example: Example, most_wh: tuple[int, int], generator: torch.Generator, min_visible: float) -> Example:
    """A part of the image, anywhere in it, that is no larger than `most_wh`."""
    width, height = (min(side, most) for side, most in zip(example.image.size, most_wh, strict=True))
    left = uniform_integer(0, example.image.width - width, generator)
    top = uniform_integer(0, example.image.height - height, generator)
    return crop(example, left, top, (width, height), min_visible)
