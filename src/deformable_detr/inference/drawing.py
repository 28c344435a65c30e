"""Drawing: boxes with class names and scores on an image, and contact sheets of several images."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageColor, ImageDraw, ImageFont

from deformable_detr.core.detections import Detections
from deformable_detr.core.short_text import printable
from deformable_detr.data.dataset import Sample

Color = tuple[int, int, int]
"""Red, green, blue in 0..255."""

# Okabe and Ito's colours and the darker ones of Paul Tol: colour-blind people can tell them apart, too.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (68, 170, 153),
    (136, 34, 85),
    (153, 153, 51),
    (51, 34, 136),
    (17, 119, 51),
)
"""Colours of the first twelve classes, in their order."""
_GOLDEN_ANGLE = 137.508
PAPER: Color = (246, 246, 244)
"""Colour of what lies around pictures."""
_TRUTH_COLOR = (255, 255, 255)
# Letters of a class name that are looked at. Fewer fit into half of any image, however large.
_MOST_LETTERS = 400


class _Rectangle(NamedTuple):
    """Rectangle in whole pixels; `right` and `bottom` are the last pixels inside."""

    left: int
    top: int
    right: int
    bottom: int

    def overlap(self, other: "_Rectangle") -> int:
        width = min(self.right, other.right) - max(self.left, other.left) + 1
        height = min(self.bottom, other.bottom) - max(self.top, other.top) + 1
        return max(0, width) * max(0, height)


class _Tag(NamedTuple):
    """Label of a box: text on a filled rectangle."""

    place: _Rectangle
    text: str
    color: Color


class _Pen(NamedTuple):
    """Drawing style for an image of one size: line width and padding in pixels, and font."""

    line_width: int
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    padding: int


def class_color(class_id: int) -> Color:
    """Colour of a class, the same in every image; colour-blind people can tell the first twelve apart, too."""
    if class_id < len(PALETTE):
        return PALETTE[class_id]
    hue = class_id * _GOLDEN_ANGLE % 360
    red, green, blue = ImageColor.getrgb(f"hsv({hue:.2f}, 67%, 88%)")[:3]
    return red, green, blue


def draw_detections(
    image: Image.Image,
    detections: Detections,
    classes: Sequence[str],
    *,
    threshold: float = 0.0,
    ground_truth: Sample | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Copy of an image with a box and a label, class and score, for every detection; the best score on top.

    Line width and font size follow the size of the image. Labels stay inside the image and, where there is room, do not
    overlap.

    Args:
        image: image of the detections, as displayed.
        detections: detections with boxes in pixels of `image`.
        classes: class names by class id.
        threshold: lowest score that is drawn, in 0..1.
        ground_truth: annotated objects, drawn as dashed white boxes without labels.
        scale: factor by which the image is enlarged first, for small images that labels would cover; below 1 it
            becomes smaller.

    Raises:
        ValueError: a detection has a class id without a name.
    """
    canvas = _enlarged(image, scale)
    names = [one_line(name) for name in classes]
    pen = _pen(canvas.size, is_plain=all(name.isascii() for name in names))
    draw = ImageDraw.Draw(canvas)
    # Boxes that can be seen, best score first.
    chosen = []
    for box, score, class_id in zip(
        detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.class_ids.tolist(), strict=True
    ):
        if class_id >= len(classes):
            raise ValueError(f"a detection has class id {class_id}, but there are {len(classes)} classes")
        place = _visible(box, scale, canvas.size)
        if score >= threshold and place is not None:
            chosen.append((score, place, class_id))
    chosen.sort(key=lambda entry: entry[0], reverse=True)
    # Drawn from the lowest score to the best, so that the best is on top; labels come last, over all boxes.
    for _, place, class_id in reversed(chosen):
        _draw_box(draw, place, class_color(class_id), pen.line_width)
    if ground_truth is not None:
        for box in ground_truth.boxes_xyxy.tolist():
            place = _visible(box, scale, canvas.size)
            if place is not None:
                _draw_dashed(draw, place, max(1, pen.line_width // 2), pen.padding)
    named = [
        (place, _shortened(names[class_id], pen, canvas.width, f" {score:.2f}").strip(), class_color(class_id))
        for score, place, class_id in chosen
    ]
    _draw_tags(draw, named, pen, canvas.size)
    return canvas


def draw_objects(
    image: Image.Image,
    boxes_xyxy: Sequence[Sequence[float]],
    class_ids: Sequence[int],
    classes: Sequence[str],
    *,
    scale: float = 1.0,
) -> Image.Image:
    """Copy of an image with the box and the class name of every annotated object.

    Args:
        image: image of the objects, as displayed.
        boxes_xyxy: left, top, right, bottom of each object in pixels of `image`.
        class_ids: class id of each object.
        classes: class names by class id.
        scale: factor by which the image is enlarged first, for small images that labels would cover.
    """
    canvas = _enlarged(image, scale)
    names = [one_line(name) for name in classes]
    pen = _pen(canvas.size, is_plain=all(name.isascii() for name in names))
    draw = ImageDraw.Draw(canvas)
    named = []
    for box, class_id in zip(boxes_xyxy, class_ids, strict=True):
        place = _visible(box, scale, canvas.size)
        if place is not None:
            _draw_box(draw, place, class_color(class_id), pen.line_width)
            named.append((place, _shortened(names[class_id], pen, canvas.width), class_color(class_id)))
    _draw_tags(draw, named, pen, canvas.size)
    return canvas


def contact_sheet(
    images: Sequence[Image.Image], columns: int, *, cell_width: int | None = None, gap: int = 12
) -> Image.Image:
    """Contact sheet: images side by side, row by row, each in the middle of its cell and as large as it allows.

    Small images are enlarged. Cells are as high as the median image at the width of a cell, but never higher than wide.

    Args:
        images: the images, in the order of the cells.
        columns: number of cells in a row, at least 1.
        cell_width: width of a cell in pixels; by default that of the widest image, 640 at most.
        gap: space around the cells, in pixels.

    Raises:
        ValueError: there are no images, or `columns` is below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"a contact sheet of {len(images)} images in {columns} columns cannot be drawn")
    columns = min(columns, len(images))
    width = cell_width or min(640, max(image.width for image in images))
    heights = sorted(max(1, round(image.height * width / image.width)) for image in images)
    height = min(width, heights[(len(heights) - 1) // 2])
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), PAPER)
    for position, image in enumerate(images):
        ratio = min(width / image.width, height / image.height)
        size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        row, column = divmod(position, columns)
        left = gap + column * (width + gap) + (width - size[0]) // 2
        top = gap + row * (height + gap) + (height - size[1]) // 2
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
    return sheet


def _enlarged(image: Image.Image, scale: float) -> Image.Image:
    image = image.convert("RGB")
    if scale == 1:
        return image.copy()
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _pen(size_wh: tuple[int, int], *, is_plain: bool) -> _Pen:
    mean_side = sum(size_wh) / 2
    font_size = max(10, round(mean_side / 42))
    return _Pen(max(1, round(mean_side / 200)), font_of(font_size, is_plain=is_plain), max(2, font_size // 5))


def font_of(size: int, *, is_plain: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Font of a size in pixels: Pillow's for ASCII; else matplotlib's, with accents, Greek, Cyrillic and more.

    Args:
        size: height of a line in pixels, about.
        is_plain: whether all texts to be written are ASCII.
    """
    if is_plain:
        return ImageFont.load_default(size)
    spec = find_spec("matplotlib")  # where it lies is known without importing it
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).with_name("mpl-data")
    if not data.exists():  # some Linux distributions keep it elsewhere
        import matplotlib

        data = Path(matplotlib.get_data_path())
    return ImageFont.truetype(data / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _visible(box_xyxy: Sequence[float], scale: float, size_wh: tuple[int, int]) -> _Rectangle | None:
    """Box in whole pixels, clipped to the image; None if no part of it can be seen."""
    if not all(isfinite(side) for side in box_xyxy):
        return None
    left, top, right, bottom = (side * scale for side in box_xyxy)
    width, height = size_wh
    if right < 0 or bottom < 0 or left > width or top > height or right < left or bottom < top:
        return None
    left, right = (min(max(round(side), 0), width - 1) for side in (left, right - 1))
    top, bottom = (min(max(round(side), 0), height - 1) for side in (top, bottom - 1))
    return _Rectangle(left, top, max(left, right), max(top, bottom))


def one_line(name: str) -> str:
    """Name on one line, with escapes for what fonts cannot draw: control characters, lone surrogates."""
    return printable(" ".join(name[: 2 * _MOST_LETTERS].split()))


def _shortened(name: str, pen: _Pen, picture_width: int, after: str = "") -> str:
    """Name that is shortened to fit into half the image, and what comes after it, which stays whole."""
    room = max(picture_width // 2, min(picture_width, 12 * round(pen.font.getlength("0")))) - 2 * pen.padding
    if len(name) <= _MOST_LETTERS and pen.font.getlength(name + after) <= room:
        return name + after
    # The longest beginning that fits, by halving: measuring takes as long as the text.
    fits, too_long = 0, min(len(name), _MOST_LETTERS) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if pen.font.getlength(f"{name[:middle]}...{after}") <= room:
            fits = middle
        else:
            too_long = middle
    return f"{name[:fits]}...{after}" if fits else after


def _draw_tags(
    draw: ImageDraw.ImageDraw, named: Sequence[tuple[_Rectangle, str, Color]], pen: _Pen, size_wh: tuple[int, int]
) -> None:
    """Draw a label for each box; the first is placed first and is on top."""
    tags: list[_Tag] = []
    for place, text, color in named:
        tags.append(_Tag(_tag_place(draw, place, text, pen, tags, size_wh), text, color))
    for tag in reversed(tags):
        _draw_tag(draw, tag, pen)


def _tag_place(
    draw: ImageDraw.ImageDraw, box: _Rectangle, text: str, pen: _Pen, tags: Sequence[_Tag], size_wh: tuple[int, int]
) -> _Rectangle:
    """Place of a label above, below or inside its box, where it covers least of the earlier labels."""
    ascent_and_descent = draw.textbbox((0, 0), "Ag", font=pen.font)
    width = round(draw.textlength(text, font=pen.font)) + 2 * pen.padding
    height = round(ascent_and_descent[3]) + pen.padding
    above, below = box.top - height, box.bottom + 1
    at_left, at_right = box.left, box.right - width + 1
    corners = [
        (at_left, above),
        (at_right, above),
        (at_left, below),
        (at_right, below),
        (at_left, box.top),
        (at_right, box.top),
        (at_left, box.bottom - height + 1),
        (at_right, box.bottom - height + 1),
    ]

    def inside(corner: tuple[int, int]) -> _Rectangle:
        left = max(0, min(corner[0], size_wh[0] - width))
        top = max(0, min(corner[1], size_wh[1] - height))
        return _Rectangle(left, top, left + width - 1, top + height - 1)

    def cost(corner: tuple[int, int]) -> int:
        place = inside(corner)
        moved = abs(place.left - corner[0]) + abs(place.top - corner[1])
        return 4 * sum(place.overlap(tag.place) for tag in tags) + moved

    return inside(min(corners, key=cost))


def _draw_box(draw: ImageDraw.ImageDraw, place: _Rectangle, color: Color, width: int) -> None:
    """Draw a box with a thin edge of opposite brightness, so that it is visible on any background."""
    edge = (20, 20, 20) if _is_light(color) else (235, 235, 235)
    outer = _Rectangle(place.left - 1, place.top - 1, place.right + 1, place.bottom + 1)
    draw.rectangle(outer, outline=edge, width=width + 2)
    draw.rectangle(place, outline=color, width=width)


def _draw_dashed(draw: ImageDraw.ImageDraw, place: _Rectangle, width: int, gap: int) -> None:
    draw.rectangle(place, outline=(20, 20, 20), width=width)
    dash = 2 * gap + width
    for first, last, vertical in (
        (place.left, place.right, False),
        (place.top, place.bottom, True),
    ):
        ends = [*range(first, last + 1, dash), last + 1]
        for start, stop in list(pairwise(ends))[::2]:
            for side in (0, 1):
                if vertical:
                    x = place.left if side == 0 else max(place.left, place.right - width + 1)
                    draw.rectangle((x, start, x + width - 1, stop - 1), fill=_TRUTH_COLOR)
                else:
                    y = place.top if side == 0 else max(place.top, place.bottom - width + 1)
                    draw.rectangle((start, y, stop - 1, y + width - 1), fill=_TRUTH_COLOR)


def _draw_tag(draw: ImageDraw.ImageDraw, tag: _Tag, pen: _Pen) -> None:
    ink = (0, 0, 0) if _is_light(tag.color) else (255, 255, 255)
    # A thin rim of a colour in between, so that overlapping labels of one class can be told apart.
    draw.rectangle(tag.place, fill=tag.color, outline=_between(tag.color, ink))
    draw.text((tag.place.left + pen.padding, tag.place.top), tag.text, fill=ink, font=pen.font)


def _is_light(color: Color) -> bool:
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue > 120


def _between(first: Color, second: Color) -> Color:
    return (first[0] + second[0]) // 2, (first[1] + second[1]) // 2, (first[2] + second[2]) // 2
