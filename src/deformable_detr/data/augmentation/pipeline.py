"""What happens to images and boxes before the network sees them: the paper's transforms and their settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from deformable_detr.core.boxes import xyxy_to_cxcywh
from deformable_detr.core.errors import ConfigError
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
from deformable_detr.data.rng import happens, uniform_factor, uniform_integer

Draw = Callable[[torch.Generator], Example]
"""Another example of the data set, any of them."""


@runtime_checkable
class Transform(Protocol):
    """Takes every random decision from the generator, so that one seed gives one result."""

    def __call__(self, example: Example, generator: torch.Generator, draw: Draw | None = None) -> Example:
        """The example transformed; without `draw`, nothing is mixed in from others."""


PAPER_SHORT_SIDES = tuple(range(480, 801, 32))
_SHARES = (
    *("crop_probability", "hflip", "vflip", "rotate90", "color_jitter", "photometric", "zoom_out", "iou_crop"),
    *("mosaic", "mixup", "mixing_off", "min_visible"),
)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input outside training. Checkpoints carry it, so weights and input agree."""

    short_side: int = 800
    max_side: int = 1333
    """No side becomes longer than this, even if the short side then misses `short_side`."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _check_sides("preprocessing", (self.short_side,), self.max_side)
        if not all(isfinite(value) for value in self.mean):
            raise ConfigError(f"preprocessing.mean is {self.mean}; it needs three finite numbers")
        if not all(isfinite(value) and value > 0 for value in self.std):
            raise ConfigError(f"preprocessing.std is {self.std}; it needs three numbers above 0")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied. The defaults are the paper's; what it does not use is off.

    Flip, then either resize to one of `short_sides`, or, with `crop_probability`, resize to one of `crop_short_sides`,
    cut out a random window of `crop_min` to `crop_max` pixels a side, and resize that to one of `short_sides`.
    What is on beside that comes in this order: mosaic, mixup, zoom-out, flips and turns, crops, scale jitter, resize,
    colours.
    """

    short_sides: tuple[int, ...] = PAPER_SHORT_SIDES
    max_side: int = 1333
    crop_probability: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_min: int = 384
    crop_max: int = 600
    hflip: float = 0.5
    """Probability of a mirror image, left and right exchanged."""
    vflip: float = 0.0
    """Probability of top and bottom exchanged: for pictures taken from above, through a microscope and the like."""
    rotate90: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees; with 0.75 all four directions are equally likely."""
    color_jitter: float = 0.0
    """0 leaves the colours alone; 1 varies brightness, contrast and saturation by up to 40 %, the hue by 5 %."""
    photometric: float = 0.0
    """Probability of each of the stronger changes of brightness, contrast, saturation and hue, see `distort`."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor on the size of everything: large-scale jitter.

    Above 1 a window is cut out, but not of a mosaic or of what was zoomed out.
    """
    zoom_out: float = 0.0
    """Probability of the image becoming 1 to `zoom_out_most` times smaller, on a plain ground; not done to a mosaic."""
    zoom_out_most: float = 4.0
    iou_crop: float = 0.0
    """Probability of a window that overlaps some object by a random IoU, see `geometry.iou_crop`."""
    mosaic: float = 0.0
    """Probability of four images in one."""
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest factor on an image that would just fit the mosaic."""
    mixup: float = 0.0
    """Probability of another image shining through."""
    mixing_off: float = 0.15
    """Share of the epochs, the last ones, without mosaic and mixup: the model ends with pictures as they really are."""
    min_visible: float = 0.0
    """An object that keeps less than this share of its area at a cut is dropped; 0 drops what is wholly outside."""
    min_side: float = 0.0
    """An object of which a side is shorter than so many pixels in the end is dropped."""

    def __post_init__(self) -> None:
        _check_sides("augmentation", self.short_sides, self.max_side)
        _check_sides("augmentation crop", self.crop_short_sides, None)
        if not 1 <= self.crop_min <= self.crop_max:
            raise ConfigError(
                f"augmentation.crop_min is {self.crop_min} and crop_max is {self.crop_max}; "
                "they need 1 <= crop_min <= crop_max"
            )
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation.{name} is {value}; it must lie in 0..1")
        for name, highest in (("scale_jitter", 10.0), ("mosaic_scale", 1.0)):
            low, high = getattr(self, name)
            if not 0.01 <= low <= high <= highest:
                raise ConfigError(
                    f"augmentation.{name} is {low:g}, {high:g}; it needs two factors in 0.01..{highest:g}, "
                    "the smaller one first"
                )
        if not 1 <= self.zoom_out_most <= 100:
            raise ConfigError(f"augmentation.zoom_out_most is {self.zoom_out_most}; it must lie in 1..100")
        if not (isfinite(self.min_side) and self.min_side >= 0):
            raise ConfigError(f"augmentation.min_side is {self.min_side}; it must be a number of pixels, at least 0")

    def scaled(self, short_side: int) -> "Augmentation":
        """The same variation around another image size: every length times `short_side` / the largest short side.

        Lengths are rounded to whole pixels; short sides that become equal are kept once.
        """
        if short_side < 1:
            raise ConfigError(f"short_side is {short_side}; it must be at least 1")
        ratio = short_side / max(self.short_sides)

        def rescale(length: int) -> int:
            return max(1, round(length * ratio))

        return replace(
            self,
            short_sides=tuple(sorted({rescale(side) for side in self.short_sides})),
            max_side=rescale(self.max_side),
            crop_short_sides=tuple(sorted({rescale(side) for side in self.crop_short_sides})),
            crop_min=rescale(self.crop_min),
            crop_max=rescale(self.crop_max),
            min_side=self.min_side * ratio,
        )


def _check_sides(where: str, short_sides: tuple[int, ...], max_side: int | None) -> None:
    if not short_sides or min(short_sides) < 1:
        raise ConfigError(f"{where}: short sides are {short_sides}; they must be at least 1 pixel")
    if max_side is not None and max_side < max(short_sides):
        raise ConfigError(
            f"{where}: max_side is {max_side}, below the short side of {max(short_sides)}, which no image could reach; "
            f"raise max_side (the paper's ratio gives {round(max(short_sides) * 1333 / 800)})"
        )


def augment(
    example: Example, generator: torch.Generator, draw: Draw | None = None, *, augmentation: Augmentation
) -> Example:
    """One random variation of a training image, at its final size. See `Augmentation`."""
    # What is off takes no number from the generator, so that a new setting changes nothing for those who leave it off.
    example, has_ground = _mixed(example, generator, draw, augmentation)
    if happens(augmentation.hflip, generator):
        example = hflip(example)
    if happens(augmentation.vflip, generator):
        example = vflip(example)
    if happens(augmentation.rotate90, generator):
        example = rotate90(example, uniform_integer(1, 3, generator))
    if augmentation.iou_crop > 0 and happens(augmentation.iou_crop, generator):
        example = iou_crop(example, generator, augmentation.min_visible)
    if happens(augmentation.crop_probability, generator):
        short_side = _one_of(augmentation.crop_short_sides, generator)
        example = resize(example, resized_wh(example.image.size, short_side, None))
        example = random_crop(
            example, augmentation.crop_min, augmentation.crop_max, generator, augmentation.min_visible
        )
    example = without_thin(_at_final_size(example, generator, augmentation, has_ground), augmentation.min_side)
    if augmentation.color_jitter > 0:
        example = color_jitter(example, augmentation.color_jitter, generator)
    if augmentation.photometric > 0:
        example = distort(example, augmentation.photometric, generator)
    return example


def _mixed(
    example: Example, generator: torch.Generator, draw: Draw | None, augmentation: Augmentation
) -> tuple[Example, bool]:
    """And whether there is plain ground beside the image now."""
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
        if factor > 1 and not has_ground:  # else the window might show nothing but ground
            example = zoom_in(example, factor, generator, augmentation.min_visible)
    short_side = _one_of(augmentation.short_sides, generator)
    width, height = resized_wh(example.image.size, short_side, augmentation.max_side)
    if factor < 1:
        # Smaller and no margin: the batch pads it anyway.
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
    return resize(example, (width, height))


def training_transform(augmentation: Augmentation) -> Transform:
    """The paper's random flip, crop and resize, or what `augmentation` makes of them."""
    return partial(augment, augmentation=augmentation)


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """Only the resize; nothing random, the generator is not touched."""
    return partial(_resize_for_evaluation, preprocessing=preprocessing)


def normalise(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "3 height width"]:
    """The image at its present size as numbers: 0..1, minus the mean, divided by the standard deviation."""
    pixels = tv.pil_to_tensor(image).to(torch.float32).div_(255)
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return pixels.sub_(mean).div_(std)


def to_model_input(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "3 height width"]:
    """An RGB image of any size, resized as for evaluation and normalised."""
    width, height = resized_wh(image.size, preprocessing.short_side, preprocessing.max_side)
    if (width, height) != image.size:
        image = tv.resize(image, [height, width], interpolation=InterpolationMode.BILINEAR)
    return normalise(image, preprocessing)


def to_picture(image: Float[Tensor, "3 height width"], preprocessing: Preprocessing) -> Image.Image:
    """What `normalise` was given."""
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    pixels = (image * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def to_target(example: Example) -> Target:
    """Boxes as the criterion wants them: centre and size, in 0..1 of the image as it is now, none without an extent."""
    width, height = example.image.size
    boxes = scaled(example.boxes_xyxy, 1 / width, 1 / height)
    # Rounding may have made the two sides of a very thin box one.
    example = chosen(example._replace(boxes_xyxy=boxes), (boxes[:, 2:] > boxes[:, :2]).all(dim=1))
    return Target(labels=example.labels, boxes=xyxy_to_cxcywh(example.boxes_xyxy))


def _resize_for_evaluation(
    example: Example, generator: torch.Generator, draw: Draw | None = None, *, preprocessing: Preprocessing
) -> Example:
    return resize(example, resized_wh(example.image.size, preprocessing.short_side, preprocessing.max_side))


def _one_of(sides: tuple[int, ...], generator: torch.Generator) -> int:
    return sides[uniform_integer(0, len(sides) - 1, generator)]
