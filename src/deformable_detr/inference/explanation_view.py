"""Views of an object for pictures of explanations: the photo around it, lightened, enlarged, and drawn on."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw

from deformable_detr.inference.drawing import Color, font_of

BoxXyxy = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
LONG_SIDE = 1000
"""Longer side of the view of an explanation, in pixels."""
# Side of the part of the image that is shown, in sides of the object.
_AROUND = 3.0
_SMALLEST_WINDOW = 16
_WHITE_SHARE = 0.35
_LEAST_UNIT = 0.5
INK: Color = (20, 20, 20)
WHITE: Color = (255, 255, 255)
"""Colours of lines that can be seen on any photo: one on the other."""
_DOT_ALPHA = 0.75
_SUPERSAMPLED = 4


class View(NamedTuple):
    """Part of an image, enlarged; places in it are pixels of the view."""

    picture: Image.Image
    """Picture to draw on."""
    window: tuple[int, int, int, int]
    """Left, top, right, bottom of the part, in pixels of the image."""
    size_wh: tuple[int, int]
    """Width and height of the whole image, in pixels."""
    scale: float
    """Pixels of the view for each pixel of the image."""
    is_cropped: bool
    """Whether the view is less than the whole image."""

    @property
    def unit(self) -> float:
        """Factor for widths of lines and sizes of dots and letters, 1 in a view of the usual size.

        In small views they shrink less than the photo, to be seen at all.
        """
        return max(_LEAST_UNIT, max(self.picture.size) / LONG_SIDE)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Place in the view of a place in the image."""
        return (x - self.window[0]) * self.scale, (y - self.window[1]) * self.scale

    def box(self, box_xyxy: Sequence[float]) -> BoxXyxy:
        """Box in the view of a box in the image."""
        left, top, right, bottom = box_xyxy
        return *self.place(left, top), *self.place(right, bottom)

    def holds(self, x: float, y: float) -> bool:
        """Whether a place in the view can be seen in it."""
        return 0 <= x <= self.picture.width and 0 <= y <= self.picture.height


def view_of(
    image: Image.Image, around_xyxy: Sequence[float], *, long_side: int = LONG_SIDE, gray: bool = False
) -> View:
    """View of a part of an image: three times as large as a box around it, or the whole image if that is smaller.

    Args:
        image: image as displayed.
        around_xyxy: box that the view is around, in pixels of the image.
        long_side: longer side of the view in pixels.
        gray: take the colours away, so that those drawn on top are the only ones.
    """
    left, top, right, bottom = around_xyxy
    side = max(right - left, bottom - top, _SMALLEST_WINDOW / _AROUND) * _AROUND
    edges = []
    for low, high, length in ((left, right, image.width), (top, bottom, image.height)):
        extent = max(1, min(round(side), length))
        first = int(min(max(0, round((low + high - extent) / 2)), length - extent))
        edges.append((first, first + extent))
    window = (edges[0][0], edges[1][0], edges[0][1], edges[1][1])
    size = (window[2] - window[0], window[3] - window[1])
    scale = long_side / max(size)
    width, height = (max(1, round(length * scale)) for length in size)
    part = image.crop(window).convert("L" if gray else "RGB").point(_lightened() * (1 if gray else 3))
    picture = part.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0).convert("RGB")
    return View(picture, window, image.size, scale, size != image.size)


def draw_dots(view: View, dots: Sequence[tuple[float, float, float, Color]]) -> None:
    """Draw dots with white rims that let the photo shine through.

    Args:
        view: view to draw on.
        dots: x, y and radius in pixels of the view, and colour; the first is drawn first.
    """
    rim = max(1.0, 1.2 * view.unit)
    for x, y, radius, color in dots:
        masks = _dot_masks(*(round(4 * size) for size in (radius, radius + rim, radius + rim + 1)))
        for mask, ink in zip(masks, (INK, WHITE, color), strict=True):
            view.picture.paste(ink, (round(x) - mask.width // 2, round(y) - mask.height // 2), mask)


@lru_cache(maxsize=1)
def _lightened() -> list[int]:
    return [round((1 - _WHITE_SHARE) * value + _WHITE_SHARE * 255) for value in range(256)]


@lru_cache(maxsize=256)
def _dot_masks(inner: int, outer: int, shadow: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Masks of the shadow, of the rim and of the dot itself; the radii are in quarters of a pixel.

    A white rim alone would be lost on white paper.
    """
    dot, rim, edge = _disc(inner), _disc(outer), _disc(shadow)
    return (
        ImageChops.subtract(edge, _grown(rim, edge.size)).point(_halved),
        ImageChops.subtract(rim, _grown(dot, rim.size)),
        dot.point(_faded),
    )


def _grown(mask: Image.Image, size_wh: tuple[int, int]) -> Image.Image:
    """Mask in the middle of a larger one; both have odd sides."""
    grown = Image.new("L", size_wh, 0)
    grown.paste(mask, ((size_wh[0] - mask.width) // 2, (size_wh[1] - mask.height) // 2))
    return grown


def _disc(quarters: int) -> Image.Image:
    """Mask of a disc with smooth edges; the radius is in quarters of a pixel."""
    radius = quarters / 4
    half = int(radius) + 1
    size = (2 * half + 1) * _SUPERSAMPLED
    mask = Image.new("L", (size, size), 0)
    middle, reach = (size - 1) / 2, radius * _SUPERSAMPLED
    ImageDraw.Draw(mask).ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=255)
    return mask.resize((2 * half + 1, 2 * half + 1), Image.Resampling.BOX)


def _faded(value: int) -> int:
    return round(value * _DOT_ALPHA)


def _halved(value: int) -> int:
    return value // 2


def draw_square(view: View, x: float, y: float, cell_wh: tuple[float, float], color: Color) -> None:
    """Draw a faint rectangle around a place, such as one cell of a feature map.

    Args:
        view: view to draw on.
        x: place in the view.
        y: place in the view.
        cell_wh: width and height in pixels of the view.
        color: colour of the line.
    """
    width, height = cell_wh
    left, top = round(x - width / 2), round(y - height / 2)
    first = max(0, left), max(0, top)
    last = min(view.picture.width, round(x + width / 2)), min(view.picture.height, round(y + height / 2))
    veil = Image.new("L", (max(1, last[0] - first[0]), max(1, last[1] - first[1])), 0)
    edges = (left - first[0], top - first[1], left - first[0] + round(width), top - first[1] + round(height))
    ImageDraw.Draw(veil).rectangle(edges, fill=18, outline=170, width=max(1, round(2 * view.unit)))
    view.picture.paste(color, first, veil)


def draw_solid(view: View, box_xyxy: Sequence[float], color: Color) -> None:
    """Draw a box of the image in the colour of its class, with a dark and a light edge.

    Args:
        view: view to draw on.
        box_xyxy: box in pixels of the image.
        color: colour of the line.
    """
    left, top, right, bottom = view.box(box_xyxy)
    draw, width = ImageDraw.Draw(view.picture), max(2, round(4 * view.unit))
    draw.rectangle(_ordered(left - 1, top - 1, right + 1, bottom + 1), outline=INK, width=width + 2)
    draw.rectangle(_ordered(left, top, right, bottom), outline=color, width=width)


def draw_dashed(view: View, box_xyxy: Sequence[float], width: float) -> None:
    """Draw a box of the image as a dashed line in black and white, which can be seen on any photo.

    Args:
        view: view to draw on.
        box_xyxy: box in pixels of the image.
        width: width of the line in a view of the usual size.
    """
    left, top, right, bottom = _ordered(*view.box(box_xyxy))
    draw, line, dash = ImageDraw.Draw(view.picture), max(1, round(width * view.unit)), max(4.0, 11 * view.unit)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for (x1, y1), (x2, y2) in pairwise(corners):
        length = max(1.0, abs(x2 - x1) + abs(y2 - y1))
        count = min(1000, max(1, round(length / dash)))
        for number in range(count):
            start, stop = number / count, (number + 1) / count
            ends = [(x1 + (x2 - x1) * share, y1 + (y2 - y1) * share) for share in (start, stop)]
            draw.line(ends, fill=WHITE if number % 2 else INK, width=line)


def draw_cross(view: View, x: float, y: float) -> None:
    """Draw a cross in black and white at a place of the image."""
    x, y = view.place(x, y)
    draw, reach = ImageDraw.Draw(view.picture), 13 * view.unit
    for color, width in ((WHITE, 7), (INK, 3)):
        line = max(1, round(width * view.unit))
        draw.line((x - reach, y, x + reach, y), fill=color, width=line)
        draw.line((x, y - reach, x, y + reach), fill=color, width=line)


def draw_label(
    view: View, x: float, y: float, text: str, color: Color = WHITE, *, size: int = 18, centred: bool = False
) -> None:
    """Draw a text on a small plate at a place of the view, moved inside if needed.

    Args:
        view: view to draw on.
        x: left of the plate.
        y: bottom of the plate.
        text: text on one line.
        color: colour of the plate.
        size: size of the letters in a view of the usual size.
        centred: whether the place is the middle of the plate instead of its lower left corner.
    """
    letters = font_of(max(10, round(size * view.unit)), is_plain=text.isascii())
    draw = ImageDraw.Draw(view.picture)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=letters)
    pad = max(1, round(3 * view.unit))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    if centred:
        x, y = x - width / 2, y + height / 2
    x = round(min(max(0, x), max(0, view.picture.width - 1 - width)))
    y = round(min(max(height, y), view.picture.height - 1))
    draw.rectangle((x, y - height, x + width, y), fill=color, outline=INK)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] <= 120
    draw.text((x + pad - left, y - height + pad - top), text, fill=WHITE if dark else INK, font=letters)


def _ordered(left: float, top: float, right: float, bottom: float) -> BoxXyxy:
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)
