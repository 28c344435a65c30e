"""Geometric transforms of an image together with its boxes: resize, flip, turn, crop, and a margin around it.

Only cropping loses objects, by one rule: `keep_visible`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor

from deformable_detr.core.boxes import area
from deformable_detr.data.rng import uniform, uniform_integer

FILL = (124, 116, 104)
"""Colour where there is no image: the mean of ImageNet, close to 0 after normalisation, as padding is."""

_IOU_CHOICES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
_IOU_TRIALS = 40
_IOU_SMALLEST_SHARE = 0.3
_IOU_ASPECTS = (0.5, 2.0)


class Example(NamedTuple):
    """Annotated image on its way through the transforms."""

    image: Image.Image
    """Image, always in RGB."""
    boxes_xyxy: Float[Tensor, "objects 4"]
    """Left, top, right, bottom of each object in pixels of the image as it is now."""
    labels: Int64[Tensor, "objects"]
    """Class id of each object."""


def resized_wh(size_wh: tuple[int, int], short_side: int, max_side: int | None) -> tuple[int, int]:
    """Width and height after bringing the shorter side to `short_side`, less if the longer would exceed `max_side`.

    This is the rule of the published code, to the pixel. If `max_side` decides, the shorter side is rounded to the
    nearest pixel and the longer one down, so that a long picture may miss `max_side` by a few pixels. One that would
    miss it by more than a twentieth, because its shorter side is of a few pixels, gets exactly `max_side`.
    """
    short, long = min(size_wh), max(size_wh)
    if max_side is not None and long * short_side > max_side * short:
        short_side = max(1, round(max_side * short / long))
    long_side = short_side * long // short
    if max_side is not None and 20 * long_side > 21 * max_side:
        long_side = max_side
    width, height = size_wh
    return (short_side, long_side) if width < height else (long_side, short_side)


def resize(example: Example, size_wh: tuple[int, int]) -> Example:
    """Example resized to exactly this size, with PIL's antialiased bilinear filter."""
    old_width, old_height = example.image.size
    width, height = size_wh
    if (width, height) == (old_width, old_height):
        return example
    image = example.image.resize((width, height), Image.Resampling.BILINEAR)
    return example._replace(image=image, boxes_xyxy=scaled(example.boxes_xyxy, width / old_width, height / old_height))


def scaled(boxes_xyxy: Float[Tensor, "objects 4"], x: float, y: float) -> Float[Tensor, "objects 4"]:
    """Boxes of an image that has become `x` times as wide and `y` times as high."""
    return boxes_xyxy * torch.tensor([x, y, x, y], dtype=boxes_xyxy.dtype)


def hflip(example: Example) -> Example:
    """Example with left and right exchanged."""
    width = example.image.width
    left, top, right, bottom = example.boxes_xyxy.unbind(-1)
    boxes = torch.stack([width - right, top, width - left, bottom], dim=-1)
    return example._replace(image=example.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes_xyxy=boxes)


def vflip(example: Example) -> Example:
    """Example with top and bottom exchanged."""
    height = example.image.height
    left, top, right, bottom = example.boxes_xyxy.unbind(-1)
    boxes = torch.stack([left, height - bottom, right, height - top], dim=-1)
    return example._replace(image=example.image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), boxes_xyxy=boxes)


def rotate90(example: Example, quarter_turns: int) -> Example:
    """Example turned counter-clockwise by a number of quarter turns, without loss."""
    turns = quarter_turns % 4
    if turns == 0:
        return example
    boxes = example.boxes_xyxy
    width, height = example.image.size
    for _ in range(turns):
        left, top, right, bottom = boxes.unbind(-1)
        boxes = torch.stack([top, width - right, bottom, width - left], dim=-1)
        width, height = height, width
    return example._replace(image=example.image.rotate(90 * turns, expand=True), boxes_xyxy=boxes)


def keep_visible(
    before_xyxy: Float[Tensor, "objects 4"], after_xyxy: Float[Tensor, "objects 4"], min_visible: float
) -> Bool[Tensor, "objects"]:
    """Mask of the objects that stay after a cut: some area is left, and at least the share `min_visible` of it.

    Args:
        before_xyxy: boxes before the cut.
        after_xyxy: boxes after it, at the same scale.
        min_visible: smallest share of the area, in 0..1.
    """
    exists = (after_xyxy[:, 2:] > after_xyxy[:, :2]).all(dim=1)
    # A little below the share, so that an object that is not cut at all is not lost to rounding.
    return exists & (area(after_xyxy) >= min_visible * (1 - 1e-4) * area(before_xyxy))


def crop(example: Example, left: int, top: int, size_wh: tuple[int, int], min_visible: float = 0.0) -> Example:
    """Window of an example. Boxes are cut at its border; objects of which too little is left are dropped."""
    width, height = size_wh
    shift = torch.tensor([left, top, left, top], dtype=example.boxes_xyxy.dtype)
    limit = torch.tensor([width, height, width, height], dtype=example.boxes_xyxy.dtype)
    boxes = (example.boxes_xyxy - shift).clamp(min=0).minimum(limit)
    visible = keep_visible(example.boxes_xyxy, boxes, min_visible)
    image = example.image.crop((left, top, left + width, top + height))
    return Example(image, boxes[visible], example.labels[visible])


def random_crop(
    example: Example, smallest: int, largest: int, generator: torch.Generator, min_visible: float = 0.0
) -> Example:
    """Window of random size and place: each side uniform in `smallest`..`largest` pixels, both included.

    A side of the image that is shorter than `smallest` is kept whole.
    """
    width, height = (uniform_integer(min(smallest, side), min(largest, side), generator) for side in example.image.size)
    return _crop_anywhere(example, (width, height), generator, min_visible)


def zoom_in(example: Example, factor: float, generator: torch.Generator, min_visible: float = 0.0) -> Example:
    """Window at a random place with 1 / `factor` of each side; resized to the old size, objects are `factor` larger."""
    width, height = (max(1, round(side / factor)) for side in example.image.size)
    return _crop_anywhere(example, (width, height), generator, min_visible)


def zoom_out(example: Example, factor: float, generator: torch.Generator) -> Example:
    """Image `factor` times smaller, at a random place on a plain background of the old size."""
    width, height = example.image.size
    small = resize(example, (max(1, round(width / factor)), max(1, round(height / factor))))
    left = uniform_integer(0, width - small.image.width, generator)
    top = uniform_integer(0, height - small.image.height, generator)
    ground = Image.new("RGB", (width, height), FILL)
    ground.paste(small.image, (left, top))
    return small._replace(image=ground, boxes_xyxy=small.boxes_xyxy + torch.tensor([left, top, left, top]))


def iou_crop(example: Example, generator: torch.Generator, min_visible: float = 0.0) -> Example:
    """Window whose IoU with some object is at least a random value in 0..0.9 (SSD, arXiv 1512.02325).

    Each side is 0.3 to 1 of the image's, and the aspect ratio is at most doubled or halved. If none of 40 windows
    fits, the whole image stays.
    """
    wanted = _IOU_CHOICES[uniform_integer(0, len(_IOU_CHOICES) - 1, generator)]
    for _ in range(_IOU_TRIALS):
        width, height = (
            max(1, round(side * uniform(_IOU_SMALLEST_SHARE, 1.0, generator))) for side in example.image.size
        )
        left = uniform_integer(0, example.image.width - width, generator)
        top = uniform_integer(0, example.image.height - height, generator)
        stretch = width * example.image.height / (height * example.image.width)
        if not _IOU_ASPECTS[0] <= stretch <= _IOU_ASPECTS[1]:
            continue
        window = torch.tensor([[left, top, left + width, top + height]], dtype=example.boxes_xyxy.dtype)
        overlaps = _iou(window, example.boxes_xyxy)
        if len(overlaps) == 0 or (overlaps.max() > 0 and overlaps.max() >= wanted):
            return crop(example, left, top, (width, height), min_visible)
    return example


def without_thin(example: Example, min_side: float) -> Example:
    """Example without the objects that have a side shorter than `min_side` pixels."""
    sizes = example.boxes_xyxy[:, 2:] - example.boxes_xyxy[:, :2]
    return chosen(example, (sizes >= min_side).all(dim=1))


def chosen(example: Example, kept: Bool[Tensor, "objects"]) -> Example:
    """Example with the objects marked True alone."""
    return example._replace(boxes_xyxy=example.boxes_xyxy[kept], labels=example.labels[kept])


def together(examples: Sequence[Example], image: Image.Image) -> Example:
    """Example of one image with the objects of several, whose boxes stay as they are."""
    return Example(
        image,
        torch.cat([example.boxes_xyxy for example in examples]),
        torch.cat([example.labels for example in examples]),
    )


def _iou(window_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    sides = torch.minimum(window_xyxy[:, 2:], boxes_xyxy[:, 2:]) - torch.maximum(window_xyxy[:, :2], boxes_xyxy[:, :2])
    overlap = sides.clamp(min=0).prod(dim=1)
    return overlap / (area(window_xyxy) + area(boxes_xyxy) - overlap)


def _crop_anywhere(
    example: Example, size_wh: tuple[int, int], generator: torch.Generator, min_visible: float
) -> Example:
    left = uniform_integer(0, example.image.width - size_wh[0], generator)
    top = uniform_integer(0, example.image.height - size_wh[1], generator)
    return crop(example, left, top, size_wh, min_visible)
