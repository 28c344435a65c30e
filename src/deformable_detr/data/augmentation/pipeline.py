"""Transforms of images and boxes, for training and for evaluation, each made of the settings."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch

from deformable_detr.core.boxes import xyxy_to_cxcywh
from deformable_detr.core.types import Target
from deformable_detr.data.augmentation.color import color_jitter, distort
from deformable_detr.data.augmentation.geometry import (
    Example,
    chosen,
    hflip,
    iou_crop,
    random_crop,
    resize,
    resized_wh,
    rotate90,
    scaled,
    vflip,
    without_thin,
    zoom_in,
    zoom_out,
)
from deformable_detr.data.augmentation.mixing import mixup, mosaic
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.data.rng import happens, uniform_factor, uniform_integer

# Aspect ratio above which the paper's crop begins with a smaller picture.
_MOST_DRAWN_OUT = 20

Draw = Callable[[torch.Generator], Example]
"""Function that draws a random example of the data set."""


@runtime_checkable
class Transform(Protocol):
    """Transform of an image and its boxes; all random numbers come from the generator, so a seed gives one result."""

    def __call__(self, example: Example, generator: torch.Generator, draw: Draw | None = None) -> Example:
        """Example after the transform; without `draw`, no other example is mixed in."""


def augment(
    example: Example, generator: torch.Generator, draw: Draw | None = None, *, augmentation: Augmentation
) -> Example:
    """Random variation of a training image at its final size, see `Augmentation`."""
    # A setting that is off takes no random number, so that new settings change nothing for those who leave them off.
    # (The paper's own steps always take theirs.) First what builds the scene, then its orientation.
    example, has_ground = _mixed(example, generator, draw, augmentation)
    if happens(augmentation.hflip, generator):
        example = hflip(example)
    if happens(augmentation.vflip, generator):
        example = vflip(example)
    if happens(augmentation.rotate90, generator):
        example = rotate90(example, uniform_integer(1, 3, generator))
    # Crops, before the resize: that of SSD, then that of the paper.
    if augmentation.iou_crop > 0 and happens(augmentation.iou_crop, generator):
        example = iou_crop(example, generator, augmentation.min_visible)
    if happens(augmentation.crop_probability, generator):
        short_side = _one_of(augmentation.crop_short_sides, generator)
        # No longest side, as published, except for pictures like a thread, which would become enormous.
        example = resize(example, resized_wh(example.image.size, short_side, _MOST_DRAWN_OUT * short_side))
        example = random_crop(
            example, augmentation.crop_min, augmentation.crop_max, generator, augmentation.min_visible
        )
    # The final size, and colours last, on as few pixels as possible.
    example = without_thin(_at_final_size(example, generator, augmentation, has_ground), augmentation.min_side)
    if augmentation.color_jitter > 0:
        example = color_jitter(example, augmentation.color_jitter, generator)
    if augmentation.photometric > 0:
        example = distort(example, augmentation.photometric, generator)
    return example


def _mixed(
    example: Example, generator: torch.Generator, draw: Draw | None, augmentation: Augmentation
) -> tuple[Example, bool]:
    """Example after mosaic or zoom-out, and mixup; and whether plain background lies beside the image now."""
    has_ground = False
    size_wh = resized_wh(example.image.size, max(augmentation.short_sides), augmentation.max_side)
    if draw is not None and min(size_wh) > 1 and augmentation.mosaic > 0 and happens(augmentation.mosaic, generator):
        four = [example, *(draw(generator) for _ in range(3))]
        example = mosaic(four, size_wh, augmentation.mosaic_scale, generator, augmentation.min_visible)
        has_ground = True
    elif augmentation.zoom_out > 0 and happens(augmentation.zoom_out, generator):
        example = zoom_out(example, uniform_factor(1.0, augmentation.zoom_out_most, generator), generator)
        has_ground = True
    if draw is not None and augmentation.mixup > 0 and happens(augmentation.mixup, generator):
        example = mixup(resize(example, size_wh), draw(generator), generator)
    return example, has_ground


def _at_final_size(
    example: Example, generator: torch.Generator, augmentation: Augmentation, has_ground: bool
) -> Example:
    factor = 1.0
    if augmentation.scale_jitter != (1.0, 1.0):
        factor = uniform_factor(*augmentation.scale_jitter, generator)
        if factor > 1 and not has_ground:  # else the window might show nothing but background
            example = zoom_in(example, factor, generator, augmentation.min_visible)
    short_side = _one_of(augmentation.short_sides, generator)
    width, height = resized_wh(example.image.size, short_side, augmentation.max_side)
    if factor < 1:
        # Smaller, but without a margin: the batch is padded anyway.
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
    return resize(example, (width, height))


def training_transform(augmentation: Augmentation) -> Transform:
    """Transform of training images with these settings; by default the paper's random flip, crop and resize."""
    return partial(augment, augmentation=augmentation)


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """Transform of images in evaluation: the resize alone, without any random number."""
    return partial(_resize_for_evaluation, preprocessing=preprocessing)


def to_target(example: Example) -> Target:
    """Target of an example: boxes cxcywh in 0..1 of the image as it is now, without boxes that have no extent."""
    width, height = example.image.size
    boxes = scaled(example.boxes_xyxy, 1 / width, 1 / height)
    # Rounding may have brought the two sides of a very thin box together.
    example = chosen(example._replace(boxes_xyxy=boxes), (boxes[:, 2:] > boxes[:, :2]).all(dim=1))
    return Target(labels=example.labels, boxes=xyxy_to_cxcywh(example.boxes_xyxy))


def _resize_for_evaluation(
    example: Example, generator: torch.Generator, draw: Draw | None = None, *, preprocessing: Preprocessing
) -> Example:
    return resize(example, resized_wh(example.image.size, preprocessing.short_side, preprocessing.max_side))


def _one_of(sides: tuple[int, ...], generator: torch.Generator) -> int:
    return sides[uniform_integer(0, len(sides) - 1, generator)]
