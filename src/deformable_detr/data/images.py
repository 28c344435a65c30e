"""Reading of image files: RGB of eight bits, in the orientation they are displayed in; every error names the file.

Transparent pixels become white, which is how people saw the image when they drew its boxes. Sixteen-bit gray is
scaled by its full range (65535 becomes 255), never by its own darkest and brightest value, so that images stay
comparable.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import Sample

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".avif"}
)
"""Endings, in lower case, of files that count as images when a folder is searched."""

_ORIENTATION_TAG = 0x0112
_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Errors that Pillow's plugins raise on damaged files. Warnings are here for programs that turn them into errors.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


class SizeMismatchError(DataError):
    """Error in an image's size: it is not the annotated one, neither as displayed nor as stored."""


def is_image_file(path: str | Path) -> bool:
    """Whether a file's name ends like an image's and is not hidden; the file itself is not opened."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Image files in a folder and the folders below it, sorted by path; hidden ones are left out.

    Raises:
        DataError: the folder cannot be listed.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot list this folder: {error.strerror}") from error

    visited = {os.path.realpath(folder)}  # A link may lead back up.
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        places = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name, place in places.items() if place not in visited]
        visited.update(places.values())
        found.extend(os.path.join(parent, name) for name in names if is_image_file(name))
    return [Path(path) for path in sorted(found)]


def image_size(path: str | Path) -> tuple[int, int]:
    """Size of an image as displayed, (width, height), with EXIF orientation applied; only the header is read.

    Raises:
        DataError: the file is missing or is not an image.
    """
    with _opened(path) as image:
        return _displayed_wh(image, _orientation(image))


def load_image(path: str | Path) -> Image.Image:
    """Image of a file in RGB as displayed, whatever its orientation, palette, depth or transparency.

    Raises:
        DataError: the file is missing, is not an image, is cut off, or is far too large to be a photo.
    """
    with _opened(path) as image:
        return _displayed(image)


def displayed(image: Image.Image) -> Image.Image:
    """Image opened or made by Pillow, in RGB exactly as `load_image` reads its file.

    An EXIF orientation that the image still has is applied, even if the program has turned the image by itself.

    Raises:
        DataError: Pillow has not decoded the image yet, and cannot.
    """
    with _explained(getattr(image, "filename", None) or f"a picture of {image.width} x {image.height}"):
        return _displayed(image)


def read_image(sample: Sample) -> Image.Image:
    """Image of a sample in RGB, in the orientation its boxes were drawn in.

    That is the displayed orientation if the annotated size fits it, else the stored orientation if it fits that.

    Raises:
        SizeMismatchError: neither size is the annotated one.
        DataError: the file cannot be read.
    """
    with _opened(sample.path) as image:
        orientation = _orientation(image)
        displayed_wh = _displayed_wh(image, orientation)
        if sample.size_wh not in (displayed_wh, image.size):
            stored = "" if displayed_wh == image.size else f" (stored as {image.width} x {image.height})"
            raise SizeMismatchError(
                f"{sample.path}: the image is {displayed_wh[0]} x {displayed_wh[1]}{stored} but its annotation says "
                f"{sample.size_wh[0]} x {sample.size_wh[1]}"
            )
        if sample.size_wh != displayed_wh:
            orientation = 1
        return _upright(_to_rgb(image), orientation, image.format)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    with _explained(path), Image.open(path) as image:
        yield image


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Context in which an error of Pillow becomes one line that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image in a format that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: refusing to decode: {error}") from error
    except _DAMAGED as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise DataError(f"{path}: cannot decode this image: {reason}") from error


def _displayed(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return _upright(_to_rgb(image), orientation, image.format)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or the EXIF block is damaged."""
    try:
        # The base method, because that of PNG decodes the whole image to find EXIF data behind it.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except _DAMAGED:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _displayed_wh(image: Image.Image, orientation: int) -> tuple[int, int]:
    # Pillow turns TIFF files itself and reports the turned size from the start.
    if orientation >= 5 and image.format != "TIFF":
        return image.height, image.width
    return image.width, image.height


def _upright(image: Image.Image, orientation: int, file_format: str | None) -> Image.Image:
    if orientation == 1 or file_format == "TIFF":
        return image
    return image.transpose(_TURN_UPRIGHT[orientation])


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_gray(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _over_white(image)
    return image.convert("RGB")


def _from_deep_gray(image: Image.Image) -> Image.Image:
    """RGB of deep gray: integers by the range of 16 bits, floats by 0..1, or by 0..255 if any is above 1."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        scaled = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
    else:
        scaled = values / 257.0
    return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    alpha = with_alpha.getchannel("A")
    picture = with_alpha.convert("RGB")
    if alpha.getextrema() == (255, 255):
        return picture
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(picture, mask=alpha)
    return white
