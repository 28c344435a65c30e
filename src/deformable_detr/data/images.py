"""Reading of image files: RGB of eight bits, in the orientation they are displayed in; every error names the file.

What a file is, its first bytes decide, whatever its name. Only the formats that the documentation names are opened:
Pillow knows dozens more, and hands PostScript to another program. See `image_formats`.

Transparent pixels become white, which is how people saw the image when they drew its boxes. Sixteen-bit gray is
scaled by its full range (65535 becomes 255), never by its own darkest and brightest value, so that images stay
comparable.
"""

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from deformable_detr.core.errors import DataError
from deformable_detr.core.reading import open_file
from deformable_detr.data.dataset import Sample
from deformable_detr.data.image_formats import format_of, refuse_foreign

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"),
        # Counted as images also where what reads them is not installed: no photo is passed over in silence.
        *(".avif", ".heic", ".heif", ".hif"),
    }
)
"""Endings, in lower case, of files that count as images when a folder is searched."""

_UNREAD_SUFFIXES = frozenset(
    {
        *(".jp2", ".j2k", ".jxl", ".psd", ".tga", ".exr", ".eps", ".svg"),
        *(".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    }
)

LONGEST_SIDE = 100_000
"""Longest side, in pixels, of a picture that is read; photos and scans are far below."""
_MOST_BYTES = 1 << 30
# Pixels that are converted at a time, so that a large picture needs little more memory than itself.
_STRIP = 1 << 22
_PREVIEW_TAG = 254

# Entries of `info` in which Pillow looks for an orientation.
_TELLS_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
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
    return _files_below(folder, is_image_file)


def list_unread(folder: Path) -> list[Path]:
    """Files in a folder and the folders below it that are pictures by their names, in formats that are not read.

    Raises:
        DataError: the folder cannot be listed.
    """
    return _files_below(folder, lambda name: os.path.splitext(name)[1].lower() in _UNREAD_SUFFIXES)


def _files_below(folder: Path, is_meant: Callable[[str], bool]) -> list[Path]:
    found: list[str] = []
    visited = {_identity(str(folder))}  # A link may lead back up.
    waiting = [str(folder)]  # A list, because folders may be nested deeper than Python's recursion limit.
    while waiting:
        try:
            with os.scandir(waiting.pop()) as listing:
                entries = sorted((entry for entry in listing if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot list this folder: {error.strerror}") from error
        inner = []
        for entry in entries:
            if os.path.isdir(entry.path):
                identity = _identity(entry.path)
                if identity not in visited:
                    visited.add(identity)
                    inner.append(entry.path)
            elif is_meant(entry.name):
                found.append(entry.path)
        waiting += reversed(inner)
    return [Path(path) for path in sorted(found)]


def _identity(folder: str) -> tuple[int, int] | None:
    """Numbers that tell a folder from every other, whatever path leads there; None if it has just gone."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
        DataError: Pillow has not decoded the image yet, and cannot, or would start another program to do it.
    """
    name = getattr(image, "filename", None) or f"a picture of {image.width} x {image.height}"
    with _explained(name):
        refuse_foreign(image, name)
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
    with _explained(path), open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _MOST_BYTES:
            raise DataError(f"{path}: it has {size:,} bytes, and no image file with more than {_MOST_BYTES:,} is read")
        with Image.open(stream, formats=[_format(path, stream)]) as image:
            width, height = image.size
            if max(width, height) > LONGEST_SIDE:
                raise DataError(
                    f"{path}: it is {width:,} x {height:,} pixels, and no picture with a side above {LONGEST_SIDE:,} "
                    "is read; cut it into tiles"
                )
            if image.format == "TIFF" and _is_preview(image):
                raise DataError(
                    f"{path}: its first picture is only a preview of another, as in raw files of cameras; "
                    "convert it to JPEG, PNG or TIFF"
                )
            yield image


def _format(path: str | Path, stream: BinaryIO) -> str:
    try:
        return format_of(stream.read(256))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _is_preview(image: Image.Image) -> bool:
    kind = getattr(image, "tag_v2", {}).get(_PREVIEW_TAG, 0)
    return isinstance(kind, int) and kind & 1 == 1


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
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # that is no fault of the image, and must not count as one
        # The system's own errors would repeat the name.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason.strip().rstrip(".") or type(error).__name__
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
    """Turned image, which no longer says that it has to be turned: it may be looked at as a picture again."""
    if orientation != 1 and file_format != "TIFF":
        image = image.transpose(_TURN_UPRIGHT[orientation])
    for name in _TELLS_ORIENTATION:
        image.info.pop(name, None)
    return image


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
    factor = 1 / 257.0
    if image.mode == "F":
        factor = 255.0 if max(_values(strip).max(initial=0.0) for _, strip in _strips(image)) <= 1.0 else 1.0

    def scaled(strip: Image.Image) -> Image.Image:
        return Image.fromarray(np.rint((_values(strip) * factor).clip(0, 255)).astype(np.uint8))

    return _by_strips(image, scaled)


def _values(strip: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(strip, dtype=np.float64), nan=0.0, posinf=255.0, neginf=0.0)


def _over_white(image: Image.Image) -> Image.Image:
    return _by_strips(image, _strip_over_white)


def _strip_over_white(strip: Image.Image) -> Image.Image:
    with_alpha = strip.convert("RGBA")
    alpha = with_alpha.getchannel("A")
    picture = with_alpha.convert("RGB")
    if alpha.getextrema() == (255, 255):
        return picture
    white = Image.new("RGB", strip.size, (255, 255, 255))
    white.paste(picture, mask=alpha)
    return white


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """RGB of an image that is converted a strip at a time."""
    whole = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        whole.paste(convert(strip).convert("RGB"), (0, top))
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Upper edge and content of each strip of an image, from top to bottom."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))
