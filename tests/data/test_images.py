import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from deformable_detr.core.errors import DataError
from deformable_detr.data import images
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.images import (
    SizeMismatchError,
    displayed,
    image_size,
    list_images,
    load_image,
    read_image,
)

WIDTH, HEIGHT = 33, 21


def gradient() -> Image.Image:
    """Every pixel tells its place."""
    across, down = np.meshgrid(np.arange(WIDTH) * 7, np.arange(HEIGHT) * 11)
    return Image.fromarray(np.stack([across, down, across // 2 + down // 2], axis=-1).astype(np.uint8))


def sample_of(path: Path, size_wh: tuple[int, int], drawn: DetectionDataset) -> Sample:
    return replace(drawn.samples[1], path=path, size_wh=size_wh)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp", ".jpg"])
def test_orientation_equals_pillows_own(orientation: int, suffix: str, tmp_path: Path, drawn: DetectionDataset) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    gradient().save(path, exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert image_size(path) == expected.size
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(expected))
    turned = read_image(sample_of(path, expected.size, drawn))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(expected))
    # What is turned once is not turned again when it is used as a picture.
    for image in (load_image(path), turned, displayed(load_image(path))):
        np.testing.assert_array_equal(np.asarray(displayed(image)), np.asarray(expected))


def test_boxes_of_the_stored_picture_get_the_stored_picture(tmp_path: Path, drawn: DetectionDataset) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    gradient().save(path, exif=exif)
    image = read_image(sample_of(path, (WIDTH, HEIGHT), drawn))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(gradient()))


def test_another_size_names_both(tmp_path: Path, drawn: DetectionDataset) -> None:
    path = tmp_path / "a.png"
    gradient().save(path)
    with pytest.raises(SizeMismatchError, match=r"a\.png: the image is 33 x 21 but .* says 21 x 33"):
        read_image(sample_of(path, (HEIGHT, WIDTH), drawn))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    gradient().save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12nonsense")
    assert image_size(path) == (WIDTH, HEIGHT)
    assert load_image(path).size == (WIDTH, HEIGHT)


def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    for suffix in (".png", ".tiff"):
        path = tmp_path / f"deep{suffix}"
        Image.fromarray(values).save(path)
        got = np.asarray(load_image(path)).astype(float)
        assert got.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_allclose(got[..., 0], values / 65535 * 255, atol=0.5)


def test_thirty_two_bits_and_floats(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([[0, 257, 65535, 9_000_000]], dtype=np.int32)).save(path)
    assert np.asarray(load_image(path))[0, :, 1].tolist() == [0, 1, 255, 255]
    Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32)).save(path)
    assert np.asarray(load_image(path))[0, :, 1].tolist() == [0, 128, 255, 0]
    Image.fromarray(np.array([[0.0, 90.0, 300.0, -4.0]], dtype=np.float32)).save(path)
    assert np.asarray(load_image(path))[0, :, 1].tolist() == [0, 90, 255, 0]


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    Image.fromarray(pixels[:, :1]).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[10, 20, 30]]]


def test_gray_with_alpha_palettes_and_single_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[50, 255], [50, 0]]], dtype=np.uint8), mode=None).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[50] * 3, [255] * 3]]

    palette = Image.new("P", (3, 1))
    palette.putpalette([1, 2, 3, 40, 50, 60, 70, 80, 90])
    palette.putdata([0, 1, 2])
    palette.save(path)
    assert np.asarray(load_image(path)).tolist() == [[[1, 2, 3], [40, 50, 60], [70, 80, 90]]]
    palette.save(path, transparency=bytes([255, 0, 255]))
    assert np.asarray(load_image(path)).tolist() == [[[1, 2, 3], [255, 255, 255], [70, 80, 90]]]

    Image.new("1", (2, 1), 1).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[255] * 3] * 2]
    Image.new("L", (2, 1), 9).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[9] * 3] * 2]


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path)
    red, green, blue = np.asarray(load_image(path))[4, 4]
    assert red > 240
    assert green < 20
    assert blue < 20


def test_a_truncated_photo_is_named(tmp_path: Path, drawn: DetectionDataset) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    assert image_size(path) == (WIDTH, HEIGHT)
    with pytest.raises(DataError, match=r"cut\.jpg: cannot decode .*truncated"):
        read_image(sample_of(path, (WIDTH, HEIGHT), drawn))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_no_image_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for function in (image_size, load_image):
        with pytest.raises(DataError, match=r"a\.png"):
            function(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.png: no such image file"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="cannot decode"):
        load_image(tmp_path)


def test_pictures_that_unpack_to_enormous_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    gradient().save(path)
    for limit in (WIDTH * HEIGHT - 1, 100):  # Pillow warns above the limit and refuses above twice the limit.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"bomb\.png: refusing to decode"):
            load_image(path)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other program can be started."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    for module, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "execve"), (os, "fork")):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps", "photo.png", "photo"])
def test_postscript_starts_no_program(name: str, tmp_path: Path, drawn: DetectionDataset) -> None:
    path = tmp_path / name
    path.write_bytes(POSTSCRIPT)
    for function in (image_size, load_image, lambda path: read_image(sample_of(path, (9, 9), drawn))):
        with pytest.raises(DataError, match="it is PostScript; JPEG, PNG"):
            function(path)
    # Pillow itself opens it, and would start Ghostscript when the picture is used.
    with Image.open(path) as image, pytest.raises(DataError, match="EPS is decoded by other programs"):
        displayed(image)


@pytest.mark.parametrize("suffix", [".ico", ".tga", ".pcx", ".sgi", ".dds", ".jp2", ".icns", ".pdf"])
def test_only_the_documented_formats_are_opened_whatever_the_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    gradient().resize((64, 64)).save(path)
    path = path.rename(tmp_path / "a.jpg")
    for function in (image_size, load_image):
        with pytest.raises(DataError, match=r"a\.jpg: not an image in a format that can be read"):
            function(path)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for file_format in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"):
        path = tmp_path / "a.heic"
        gradient().save(path, file_format)
        assert load_image(path).size == image_size(path) == (WIDTH, HEIGHT), file_format


def test_photos_of_several_pictures_are_the_first_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    gradient().save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 5))])
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert load_image(path).size == image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "link.jpg", "zero.png"):
        for function in (image_size, load_image):
            with pytest.raises(DataError, match=rf"{name}: cannot decode this image: it is a pipe or a device"):
                function(tmp_path / name)


def test_an_enormous_file_is_refused_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    gradient().save(path)
    os.truncate(path, 2**30 + 1)  # without taking place on the disk
    with pytest.raises(DataError, match=r"a\.png: it has 1,073,741,825 bytes"):
        load_image(path)


def png_of(size_wh: tuple[int, int]) -> bytes:
    """Black picture of one bit per pixel, packed."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    width, height = size_wh
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + -(-width // 8))), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size_wh", [(170_000_000, 1), (1, 1_000_000), (100_001, 2)])
def test_pictures_as_thin_as_a_thread_are_refused(size_wh: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    path.write_bytes(png_of(size_wh))
    for function in (image_size, load_image):
        with pytest.raises(DataError, match=rf"{size_wh[0]:,} x {size_wh[1]:,} pixels, and no picture .* 100,000"):
            function(path)


def test_the_longest_picture_is_read(tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    path.write_bytes(png_of((100_000, 1)))
    assert load_image(path).size == image_size(path) == (100_000, 1)


def test_previews_in_raw_files_are_not_taken_for_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "photo.tiff"
    gradient().save(path, tiffinfo={254: 1})
    with pytest.raises(DataError, match="only a preview of another"):
        load_image(path)


def test_large_pictures_are_converted_by_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    deep = generator.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    floats = generator.random((HEIGHT, WIDTH)).astype(np.float32)
    floats[-1, -1] = 2.0  # one value above 1, in the last strip, decides on the range of all
    colours = generator.integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    for values, suffix in ((deep, ".png"), (floats, ".tiff"), (colours, ".png")):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(values).save(path)
        monkeypatch.setattr(images, "_STRIP", 10**9)
        whole = np.asarray(load_image(path))
        monkeypatch.setattr(images, "_STRIP", 3 * WIDTH - 1)
        np.testing.assert_array_equal(np.asarray(load_image(path)), whole)


def test_damaged_images_never_raise_anything_else(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    outcomes = {"read": 0, "refused": 0}
    for suffix in (".jpg", ".png", ".gif", ".webp", ".bmp", ".tiff"):
        path = tmp_path / f"a{suffix}"
        gradient().save(path)
        content = path.read_bytes()
        for _ in range(40):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            places = generator.integers(0, len(damaged), 4)
            damaged[places] = generator.integers(0, 256, 4)
            length = len(damaged) if generator.random() < 0.6 else generator.integers(1, len(damaged))
            path.write_bytes(damaged[:length].tobytes())
            try:
                load_image(path)
                outcomes["read"] += 1
            except DataError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


@pytest.mark.skipif(os.name == "nt", reason="paths are shorter there")
def test_folders_nested_beyond_the_recursion_limit_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep = Path(*["d"] * 1200)
    for parent in [*reversed(deep.parents), deep]:
        parent.mkdir(exist_ok=True)
    try:
        Image.new("RGB", (2, 1)).save(deep / "a.png")
        assert list_images(Path("d")) == [deep / "a.png"]
    finally:  # what removes old folders of tests recurses, too
        os.remove(deep / "a.png")
        os.removedirs(deep)


def test_listing_finds_images_below_and_skips_the_rest(tmp_path: Path, photo: Callable[..., Path]) -> None:
    expected = [photo(tmp_path / name) for name in ("B.JPG", "a.png", "sub/c.webp")]
    for name in (".hidden.png", ".folder/d.png"):
        photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub/back").symlink_to(tmp_path)
    assert list_images(tmp_path) == sorted(expected)
    with pytest.raises(DataError, match="cannot list"):
        list_images(tmp_path / "nothing")
