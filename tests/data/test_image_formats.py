import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, PngImagePlugin

from deformable_detr.core.errors import DataError
from deformable_detr.data import image_formats
from deformable_detr.data.image_formats import format_of
from deformable_detr.data.images import image_size, list_images, load_image

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf\0\0\x01\xa1meta"


def written(file_format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (7, 5), (1, 2, 3)).save(stream, file_format)
    return stream.getvalue()[:256]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_each_format_is_known_by_its_first_bytes(name: str) -> None:
    assert format_of(written(name)) == name


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"", "it is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6\x1e\0", "PostScript"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"\n<!doctype html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video"),
        (b"Photos of our cat", "can be read; JPEG, PNG, BMP, TIFF, WebP, GIF, PPM, AVIF and HEIC are"),
    ],
)
def test_other_files_are_named(start: bytes, what: str) -> None:
    with pytest.raises(ValueError, match="not an image in a format that can be read") as error:
        format_of(start)
    assert what in str(error.value)


@pytest.fixture
def without_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pillow as it is, without pillow-heif, even where that is installed."""
    known = {key: Image.OPEN.pop(key) for key in ("HEIF",) if key in Image.OPEN}
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    yield
    Image.OPEN.pop("HEIF", None)
    Image.OPEN.update(known)


@pytest.mark.usefixtures("without_plugin")
@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "a.heif", "a.hif", "a.jpg"])
def test_heic_without_its_plugin_says_what_to_install(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(HEIC)
    for function in (image_size, load_image):
        with pytest.raises(DataError, match=f"{name}: HEIC needs pip install pillow-heif, or convert"):
            function(path)


def test_photos_of_phones_count_as_images_of_a_folder(tmp_path: Path) -> None:
    names = ["IMG_1.HEIC", "IMG_2.heif", "IMG_3.HIF", "IMG_4.AVIF"]
    for name in names:
        (tmp_path / name).write_bytes(HEIC)
    assert [path.name for path in list_images(tmp_path)] == names


@pytest.mark.usefixtures("without_plugin")
def test_heic_is_read_where_the_plugin_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin(PngImagePlugin.PngImageFile):
        """Stands for the decoder: what follows the first box of the file is a PNG."""

        format = "HEIF"

        def __init__(self, stream: io.BufferedReader, filename: str) -> None:
            stream.seek(len(HEIC))
            super().__init__(io.BytesIO(stream.read()), filename)

    module = ModuleType("pillow_heif")
    module.register_heif_opener = lambda: Image.register_open("HEIF", Plugin, lambda start: start[4:8] == b"ftyp")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    stream = io.BytesIO()
    Image.new("RGB", (7, 5), (1, 2, 3)).save(stream, "PNG")
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(HEIC + stream.getvalue())
    assert image_size(path) == (7, 5)
    assert load_image(path).getpixel((6, 4)) == (1, 2, 3)


def test_avif_is_read_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B\0\0\0\xf5meta")
    monkeypatch.setattr(image_formats, "_reads_avif", lambda: False)
    with pytest.raises(DataError, match=r"a\.avif: AVIF needs pip install --upgrade pillow"):
        load_image(path)
    monkeypatch.undo()
    if not image_formats._reads_avif():
        return
    Image.new("RGB", (7, 5), (1, 2, 3)).save(path)
    assert load_image(path).size == image_size(path) == (7, 5)
