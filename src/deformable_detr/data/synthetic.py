"""Synthetic data sets of drawn shapes with known boxes, for the demonstration and for tests; no download."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from PIL import Image, ImageDraw, ImageFilter

from deformable_detr.core.errors import ConfigError, OutputError
from deformable_detr.core.files import write_text
from deformable_detr.data.formats.coco_document import document, image_record, object_record

SHAPES = ("disc", "square", "triangle", "ring", "star", "cross")
"""Names of all shapes that can be drawn, in the order of their hues."""

_SUPERSAMPLING = 4
_TRIES = 12
_LEAST_VISIBLE = 0.55
_RING_HOLE = 0.55


class Scene(NamedTuple):
    """Drawn image with its objects; each box is tight around the part of its object inside the image.

    Parts that another object covers belong to the box. At least 55 % of every object can be seen.
    """

    image: Image.Image
    """Image in RGB."""
    boxes_xyxy: Float[np.ndarray, "objects 4"]
    """Left, top, right, bottom of each object in pixels."""
    class_ids: Int64[np.ndarray, "objects"]
    """Class of each object: position in `SceneStyle.classes`."""
    areas: Float[np.ndarray, "objects"]
    """Pixels of each shape inside the image, covered or not; less than the area of its box."""


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """Settings of drawn images. The defaults are easy enough for a small detector and a few minutes."""

    size_wh: tuple[int, int] = (192, 144)
    """Largest size in pixels; images are up to a fifth smaller on each side, and one in three is turned to portrait."""
    classes: tuple[str, ...] = SHAPES
    """Shapes to draw, each a class."""
    most_objects: int = 6
    """Largest number of objects in an image; the smallest is 1."""
    smallest: float = 0.14
    """Diameter of the smallest object, as a share of the image's shorter side."""
    largest: float = 0.62
    """Diameter of the largest object, as a share of the image's shorter side."""
    own_colors: bool = True
    """Whether each class has its own range of hues; else any object has any colour, which is harder."""
    same_size: bool = False
    """Whether all images have exactly `size_wh`, none of them smaller or turned."""
    plain_background: bool = False
    """Whether the background is one muted colour with grain, without gradient and clouds, which is easier."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.classes if name not in SHAPES]
        if unknown or not self.classes:
            raise ConfigError(f"scenes cannot have the classes {self.classes}; choose from {', '.join(SHAPES)}")
        if min(self.size_wh) < 16 or self.most_objects < 1 or not 0 < self.smallest <= self.largest <= 1:
            raise ConfigError(
                f"scenes need sides of 16 pixels or more, at least 1 object and 0 < smallest <= largest <= 1: "
                f"size_wh {self.size_wh}, most_objects {self.most_objects}, {self.smallest} to {self.largest}"
            )


class _Placed(NamedTuple):
    mask: Bool[np.ndarray, "height width"]
    num_pixels: float
    """Pixels of the whole shape, including those outside the image."""
    class_id: int


def draw_scenes(
    folder: str | Path,
    num_train: int,
    num_val: int,
    *,
    num_test: int = 0,
    seed: int = 0,
    style: SceneStyle | None = None,
) -> Path:
    """Write `train` and `val`, each with JPEG images and `_annotations.coco.json`; one seed gives one data set.

    The splits share no image, and a larger data set begins with the images of a smaller one.

    Args:
        folder: folder of the data set.
        num_train: number of training images.
        num_val: number of validation images.
        num_test: number of images in a third split, `test`; 0 = there is none.
        seed: decides every image.
        style: settings of the images; the defaults if left out.

    Returns:
        The folder, as a path.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    splits = (("train", num_train), ("val", num_val), ("test", num_test))
    for split_id, (split, num_images) in enumerate(splits if num_test else splits[:2]):
        try:
            (folder / split).mkdir(parents=True, exist_ok=True)
            _write_split(folder / split, num_images, (seed, split_id), style or SceneStyle())
        except OSError as error:
            raise OutputError(f"{folder / split}: cannot write the scenes here ({error.strerror})") from error
    return folder


def _write_split(folder: Path, num_images: int, seed: tuple[int, int], style: SceneStyle) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(num_images):
        scene = draw_scene(np.random.default_rng((*seed, number)), style)
        name = f"scene_{number:05d}.jpg"
        scene.image.save(folder / name, quality=92)
        images.append(image_record(number + 1, name, scene.image.size))
        for box, class_id, area in zip(
            scene.boxes_xyxy.tolist(), scene.class_ids.tolist(), scene.areas.tolist(), strict=True
        ):
            annotations.append(object_record(len(annotations) + 1, number + 1, class_id + 1, box, area=area))
    content = document(images, annotations, style.classes, range(1, len(style.classes) + 1))
    write_text(folder / "_annotations.coco.json", json.dumps(content))


def draw_scene(rng: np.random.Generator, style: SceneStyle) -> Scene:
    """One scene: a soft background, then the objects, large ones first."""
    width, height = style.size_wh
    if not style.same_size:
        width, height = (round(side * rng.uniform(0.8, 1.0)) for side in style.size_wh)
        if rng.random() < 1 / 3:
            width, height = height, width
    image = _plain_background(rng, width, height) if style.plain_background else _background(rng, width, height)
    # Sizes are uniform in the logarithm. Large objects come first, so that small ones are not hidden.
    num_objects = int(rng.integers(1, style.most_objects + 1))
    diameters = min(width, height) * np.exp(rng.uniform(np.log(style.smallest), np.log(style.largest), num_objects))
    placed: list[_Placed] = []
    for diameter in sorted(diameters.tolist(), reverse=True):
        class_id = int(rng.integers(len(style.classes)))
        sprite = _sprite(rng, style.classes[class_id], diameter)
        corner = _free_corner(rng, sprite, placed, (width, height))
        if corner is not None:
            canvas = Image.new("L", (width, height))
            canvas.paste(sprite, corner)
            _paint(rng, image, canvas, _hue(rng, style, class_id), diameter)
            placed.append(_Placed(_solid(canvas), float(_solid(sprite).sum()), class_id))
    # Boxes follow from the masks: neither the cut at the border nor what covers an object needs a rule of its own.
    boxes = [_tight_box(one.mask) for one in placed]
    return Scene(
        image,
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array([one.class_id for one in placed], dtype=np.int64),
        np.array([one.mask.sum() for one in placed], dtype=np.float64),
    )


def _free_corner(
    rng: np.random.Generator, sprite: Image.Image, placed: Sequence[_Placed], size_wh: tuple[int, int]
) -> tuple[int, int] | None:
    """Left top of a place for the sprite at which enough of it and of all below stays visible; None if not found."""
    shape = _solid(sprite)
    for _ in range(_TRIES):
        left, top = (
            int(rng.integers(-side // 5, room - side * 4 // 5 + 1) if room > side * 3 // 5 else 0)
            for side, room in zip(sprite.size, size_wh, strict=True)
        )
        canvas = Image.new("L", size_wh)
        canvas.paste(sprite, (left, top))
        mask = _solid(canvas)
        if mask.sum() < _LEAST_VISIBLE * shape.sum():
            continue
        cover = mask.copy()
        for below in reversed(placed):
            if (below.mask & ~cover).sum() < _LEAST_VISIBLE * below.num_pixels:
                break
            cover |= below.mask
        else:
            return left, top
    return None


def _sprite(rng: np.random.Generator, shape: str, diameter: float) -> Image.Image:
    """Coverage of a shape, 0..255, turned and a little stretched, in the smallest image that holds it."""
    angle = rng.uniform(0, 2 * pi)
    stretch = rng.uniform(0.82, 1.0)
    radius = diameter / 2 * _SUPERSAMPLING
    side = int(np.ceil(2 * radius)) + 4 * _SUPERSAMPLING
    side += -side % _SUPERSAMPLING
    large = Image.new("L", (side, side))
    pen = ImageDraw.Draw(large)

    def outline(scale: float) -> list[tuple[float, float]]:
        corners = []
        for x, y in _corners(shape):
            x, y = scale * radius * x, scale * radius * y * stretch
            corners.append((side / 2 + x * cos(angle) - y * sin(angle), side / 2 + x * sin(angle) + y * cos(angle)))
        return corners

    pen.polygon(outline(1.0), fill=255)
    if shape == "ring":
        pen.polygon(outline(_RING_HOLE), fill=0)
    small = large.reduce(_SUPERSAMPLING)
    return small.crop(small.getbbox())


def _corners(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape, on or within the unit circle."""
    if shape == "square":
        return _regular(4)
    if shape == "triangle":
        return _regular(3)
    if shape == "star":
        return [(radius * x, radius * y) for (x, y), radius in zip(_regular(10), (1.0, 0.42) * 5, strict=True)]
    if shape == "cross":
        long, thin = 0.94, 0.33
        arm = [(thin, thin), (thin, long), (-thin, long)]
        return [
            (x * cos(turn) - y * sin(turn), x * sin(turn) + y * cos(turn))
            for turn in (0, pi / 2, pi, 3 * pi / 2)
            for x, y in arm
        ]
    assert shape in ("disc", "ring"), shape
    return _regular(72)


def _regular(num_corners: int) -> list[tuple[float, float]]:
    return [(cos(2 * pi * i / num_corners), sin(2 * pi * i / num_corners)) for i in range(num_corners)]


def _hue(rng: np.random.Generator, style: SceneStyle, class_id: int) -> float:
    if not style.own_colors:
        return float(rng.random())
    return float((class_id + rng.uniform(-0.3, 0.3)) / len(style.classes) % 1.0)


def _paint(rng: np.random.Generator, image: Image.Image, coverage: Image.Image, hue: float, diameter: float) -> None:
    """Paint an object: a soft shadow, the texture where the shape covers the image, and a darker rim."""
    # A shadow to the right and below, blurred in proportion to the object.
    blur = max(1.0, diameter / 18)
    shadow = Image.new("L", image.size)
    shadow.paste(coverage, (round(blur), round(1.5 * blur)))
    shadow = shadow.filter(ImageFilter.GaussianBlur(blur)).point(lambda value: value * 0.45)
    image.paste((12, 14, 22), mask=shadow)
    # The texture mixes a light and a dark colour of one hue.
    light = _color(hue, rng.uniform(0.65, 0.95), rng.uniform(0.85, 1.0))
    dark = _color(hue + rng.uniform(-0.03, 0.03), rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.6))
    mix = _texture(rng, image.size, diameter)[..., None]
    pixels = (mix * light + (1 - mix) * dark).round().astype(np.uint8)
    image.paste(Image.fromarray(pixels), mask=coverage)
    # The rim is what a minimum filter takes off the coverage.
    width = 2 * max(1, round(diameter / 40)) + 1
    inside = np.asarray(coverage.filter(ImageFilter.MinFilter(width)), dtype=np.int16)
    rim = np.asarray(coverage, dtype=np.int16) - inside
    image.paste(tuple(int(value * 0.55) for value in dark), mask=Image.fromarray(rim.astype(np.uint8)))


def _texture(rng: np.random.Generator, size_wh: tuple[int, int], diameter: float) -> Float[np.ndarray, "height width"]:
    """Share of the light colour at each pixel, 0..1: stripes, dots, a chequerboard, a gradient or plain."""
    angle = rng.uniform(0, 2 * pi)
    y, x = np.mgrid[: size_wh[1], : size_wh[0]].astype(np.float64)
    along, across = x * cos(angle) + y * sin(angle), y * cos(angle) - x * sin(angle)
    period = max(5.0, diameter / rng.uniform(3, 6))
    wave_along, wave_across = np.sin(2 * pi * along / period), np.sin(2 * pi * across / period)
    kind = rng.integers(5)
    if kind == 0:
        mix = 0.5 + 2 * wave_along
    elif kind == 1:
        mix = 0.5 + 3 * (wave_along + wave_across - 0.8)
    elif kind == 2:
        mix = 0.5 + 3 * wave_along * wave_across
    elif kind == 3:
        mix = 0.5 + 0.5 * np.sin(2 * pi * along / (2.5 * diameter) + rng.uniform(0, 2 * pi))
    else:
        mix = np.full_like(x, rng.uniform(0.6, 1.0))
    return (mix + rng.normal(0, 0.04, mix.shape)).clip(0, 1)


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Background image: two muted colours in a gradient, clouds, and fine grain."""
    angle = rng.uniform(0, 2 * pi)
    y, x = np.mgrid[:height, :width]
    slope = (x / width - 0.5) * cos(angle) + (y / height - 0.5) * sin(angle) + 0.5
    first, second = (_color(rng.random(), rng.uniform(0.0, 0.25), rng.uniform(0.45, 0.9)) for _ in range(2))
    pixels = slope[..., None] * first + (1 - slope[..., None]) * second
    for cells, strength in ((3, 22.0), (9, 12.0)):
        coarse = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    pixels += rng.normal(0, 5.0, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _plain_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Background image of one muted colour with fine grain."""
    pixels = _color(rng.random(), rng.uniform(0.0, 0.25), rng.uniform(0.45, 0.9)) + rng.normal(
        0, 5.0, (height, width, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _color(hue: float, saturation: float, value: float) -> Float[np.ndarray, "3"]:
    """Red, green and blue in 0..255 of a colour with hue, saturation and value in 0..1."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return 255 * value * (1 - saturation * np.minimum(sector, 4 - sector).clip(0, 1))


def _solid(coverage: Image.Image) -> Bool[np.ndarray, "height width"]:
    return np.asarray(coverage) > 127


def _tight_box(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
