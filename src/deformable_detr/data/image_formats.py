"""Formats of image files, told apart by their first bytes; names say little."""

import re
from importlib import import_module

from PIL import Image

from deformable_detr.core.errors import DataError

READ = "JPEG, PNG, BMP, TIFF, WebP, GIF, PPM, AVIF and HEIC"
"""Formats that are read, for people."""

# Pillow's names; that of JPEG also reads the pictures of phones that hold several (MPO).
_STARTS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("BMP", rb"BM"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]|II\0\*|MM\*\0"),
    ("WEBP", rb"RIFF.{4}WEBP"),
    ("PPM", rb"P[0-6fFy]\s"),
)
_FOREIGN = (
    (rb"\Z", "it is empty"),
    (rb"version https://git-lfs", "it only stands for a file that Git LFS keeps elsewhere; run git lfs pull"),
    (rb"%!PS|\xc5\xd0\xd3\xc6|\x04%!PS", "it is PostScript"),
    (rb"%PDF", "it is PDF"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "it is JPEG 2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "it is JPEG XL"),
    (rb"8BPS", "it is of Photoshop"),
    (rb"v/1\x01", "it is OpenEXR"),
    (rb"\0\0\x01\0", "it is an icon"),
    (rb"(\xef\xbb\xbf)?\s*<(\?xml|svg)", "it is SVG or other XML"),
    (rb"(\xef\xbb\xbf)?\s*<", "it is a web page"),
    (rb"PK\x03\x04", "it is a zip archive; unpack it first"),
    (rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3", "it is a video, or of another kind that begins like one"),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}


def format_of(start: bytes) -> str:
    """Pillow's name of the format of an image file, ready to be read.

    Args:
        start: the first 256 bytes of the file.

    Raises:
        ValueError: it is none of the formats that are read, or what reads it is not installed; the message says which.
    """
    for name, pattern in _STARTS:
        if re.match(pattern, start, re.DOTALL):
            return name
    brands = _brands(start)
    if brands & _AVIF_BRANDS:
        if not _reads_avif():
            raise ValueError("AVIF needs pip install --upgrade pillow: this Pillow does not read it")
        return "AVIF"
    if brands & _HEIF_BRANDS:
        if not _reads_heif():
            raise ValueError("HEIC needs pip install pillow-heif, or convert the file to JPEG")
        return "HEIF"
    for pattern, what in _FOREIGN:
        if re.match(pattern, start, re.DOTALL):
            raise ValueError(f"not an image in a format that can be read: {what}; {READ} are read")
    raise ValueError(f"not an image in a format that can be read; {READ} are")


def refuse_foreign(image: Image.Image, name: str) -> None:
    """Refuse an image of Pillow that is not decoded yet, and that Pillow hands to another program for that.

    Raises:
        DataError: it is PostScript, or a picture for Windows to draw.
    """
    if image.format in ("EPS", "WMF") and getattr(image, "tile", None):
        raise DataError(f"{name}: {image.format} is decoded by other programs; only {READ} are read")


def _brands(start: bytes) -> set[bytes]:
    """Brands of a file of the MP4 family: the main one, and those that it is compatible with."""
    if start[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(start[:4], "big"), len(start))
    return {start[8:12], *(start[place : place + 4] for place in range(16, end - 3, 4))}


def _reads_avif() -> bool:
    try:
        plugin = import_module("PIL.AvifImagePlugin")
    except ImportError:
        return "AVIF" in Image.OPEN  # the plugin of another package
    return bool(plugin.SUPPORTED)


def _reads_heif() -> bool:
    if "HEIF" in Image.OPEN:
        return True
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True
