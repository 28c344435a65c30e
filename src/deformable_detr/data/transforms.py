"""What happens to images and boxes before the network sees them: the paper's transforms and their settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from deformable_detr.boxes import xyxy_to_cxcywh
from deformable_detr.errors import ConfigError
from deformable_detr.types import Target


class Example(NamedTuple):
    """An annotated image on its way through the transforms; boxes in pixels of the image as it is now."""

    image: Image.Image
    """Always RGB."""
    boxes_xyxy: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, "objects"]


Transform = Callable[[Example, torch.Generator], Example]
"""Takes every random decision from the generator, so that one seed gives one result."""

PAPER_SHORT_SIDES = tuple(range(480, 801, 32))


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

    def __post_init__(self) -> None:
        _check_sides("augmentation", self.short_sides, self.max_side)
        _check_sides("augmentation crop", self.crop_short_sides, None)
        if not 1 <= self.crop_min <= self.crop_max:
            raise ConfigError(
                f"augmentation.crop_min is {self.crop_min} and crop_max is {self.crop_max}; "
                "they need 1 <= crop_min <= crop_max"
            )
        for name in ("crop_probability", "hflip", "vflip", "rotate90", "color_jitter"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation.{name} is {value}; it must lie in 0..1")

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
        )


def _check_sides(where: str, short_sides: tuple[int, ...], max_side: int | None) -> None:
    if not short_sides or min(short_sides) < 1:
        raise ConfigError(f"{where}: short sides are {short_sides}; they must be at least 1 pixel")
    if max_side is not None and max_side < max(short_sides):
        raise ConfigError(
            f"{where}: max_side is {max_side}, below the short side of {max(short_sides)}, which no image could reach; "
            f"raise max_side (the paper's ratio gives {round(max(short_sides) * 1333 / 800)})"
        )


def resized_wh(size_wh: tuple[int, int], short_side: int, max_side: int | None) -> tuple[int, int]:
    """Width and height after bringing the shorter side to `short_side`, less if the longer would exceed `max_side`.

    The published rule, to the pixel: then the shorter side is rounded to the nearest and the longer one down, so that
    an extreme aspect ratio may miss `max_side` by a few pixels.
    """
    short, long = min(size_wh), max(size_wh)
    if max_side is not None and long * short_side > max_side * short:
        short_side = max(1, round(max_side * short / long))
    long_side = short_side * long // short
    width, height = size_wh
    return (short_side, long_side) if width < height else (long_side, short_side)


def resize(example: Example, size_wh: tuple[int, int]) -> Example:
    """To exactly this size, with PIL's antialiased bilinear filter."""
    old_width, old_height = example.image.size
    width, height = size_wh
    if (width, height) == (old_width, old_height):
        return example
    image = tv.resize(example.image, [height, width], interpolation=InterpolationMode.BILINEAR)
    return example._replace(image=image, boxes_xyxy=_scaled(example.boxes_xyxy, width / old_width, height / old_height))


def hflip(example: Example) -> Example:
    """Left and right exchanged."""
    width = example.image.width
    left, top, right, bottom = example.boxes_xyxy.unbind(-1)
    boxes = torch.stack([width - right, top, width - left, bottom], dim=-1)
    return example._replace(image=tv.horizontal_flip(example.image), boxes_xyxy=boxes)


def vflip(example: Example) -> Example:
    """Top and bottom exchanged."""
    height = example.image.height
    left, top, right, bottom = example.boxes_xyxy.unbind(-1)
    boxes = torch.stack([left, height - bottom, right, height - top], dim=-1)
    return example._replace(image=tv.vertical_flip(example.image), boxes_xyxy=boxes)


def rotate90(example: Example, quarter_turns: int) -> Example:
    """Turned counter-clockwise by so many quarters, without loss."""
    turns = quarter_turns % 4
    if turns == 0:
        return example
    boxes = example.boxes_xyxy
    width, height = example.image.size
    for _ in range(turns):
        left, top, right, bottom = boxes.unbind(-1)
        boxes = torch.stack([top, width - right, bottom, width - left], dim=-1)
        width, height = height, width
    return example._replace(image=tv.rotate(example.image, 90.0 * turns, expand=True), boxes_xyxy=boxes)


def crop(example: Example, left: int, top: int, size_wh: tuple[int, int]) -> Example:
    """A window of the image. Boxes are cut at its border; objects of which no area is left are dropped."""
    width, height = size_wh
    shift = torch.tensor([left, top, left, top], dtype=example.boxes_xyxy.dtype)
    limit = torch.tensor([width, height, width, height], dtype=example.boxes_xyxy.dtype)
    boxes = (example.boxes_xyxy - shift).clamp(min=0).minimum(limit)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return Example(tv.crop(example.image, top, left, height, width), boxes[visible], example.labels[visible])


def color_jitter(example: Example, strength: float, generator: torch.Generator) -> Example:
    """Random brightness, contrast, saturation (up to 40 % times `strength`) and hue (up to 5 % of the circle)."""
    brightness, contrast, saturation, hue = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
    spread = 0.4 * strength
    image = tv.adjust_brightness(example.image, 1 + spread * brightness)
    image = tv.adjust_contrast(image, 1 + spread * contrast)
    image = tv.adjust_saturation(image, 1 + spread * saturation)
    return example._replace(image=tv.adjust_hue(image, 0.05 * strength * hue))


def random_crop(example: Example, smallest: int, largest: int, generator: torch.Generator) -> Example:
    """A window of random size and place: each side uniform in `smallest`..`largest`, both included.

    A side of the image shorter than `smallest` is kept whole.
    """
    width, height = (
        _uniform_integer(min(smallest, side), min(largest, side), generator) for side in example.image.size
    )
    left = _uniform_integer(0, example.image.width - width, generator)
    top = _uniform_integer(0, example.image.height - height, generator)
    return crop(example, left, top, (width, height))


def augment(example: Example, generator: torch.Generator, augmentation: Augmentation) -> Example:
    """One random variation of a training image, at its final size. See `Augmentation`."""
    if _happens(augmentation.hflip, generator):
        example = hflip(example)
    if _happens(augmentation.vflip, generator):
        example = vflip(example)
    if _happens(augmentation.rotate90, generator):
        example = rotate90(example, _uniform_integer(1, 3, generator))
    if _happens(augmentation.crop_probability, generator):
        example = _resize_to_one_of(example, augmentation.crop_short_sides, None, generator)
        example = random_crop(example, augmentation.crop_min, augmentation.crop_max, generator)
    example = _resize_to_one_of(example, augmentation.short_sides, augmentation.max_side, generator)
    if augmentation.color_jitter > 0:
        example = color_jitter(example, augmentation.color_jitter, generator)
    return example


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


def to_target(example: Example) -> Target:
    """Boxes as the criterion wants them: centre and size, in 0..1 of the image as it is now."""
    width, height = example.image.size
    boxes = _scaled(example.boxes_xyxy, 1 / width, 1 / height)
    return Target(labels=example.labels, boxes=xyxy_to_cxcywh(boxes))


def _resize_for_evaluation(example: Example, generator: torch.Generator, preprocessing: Preprocessing) -> Example:
    return resize(example, resized_wh(example.image.size, preprocessing.short_side, preprocessing.max_side))


def _resize_to_one_of(
    example: Example, short_sides: tuple[int, ...], max_side: int | None, generator: torch.Generator
) -> Example:
    short_side = short_sides[_uniform_integer(0, len(short_sides) - 1, generator)]
    return resize(example, resized_wh(example.image.size, short_side, max_side))


def _scaled(boxes_xyxy: Float[Tensor, "objects 4"], x: float, y: float) -> Float[Tensor, "objects 4"]:
    return boxes_xyxy * torch.tensor([x, y, x, y], dtype=boxes_xyxy.dtype)


def _happens(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator, dtype=torch.float64).item() < probability)


def _uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())
