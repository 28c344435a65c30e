from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.images import SizeMismatchError, image_size, list_images, load_image, read_image

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
    displayed = read_image(sample_of(path, expected.size, drawn))
    np.testing.assert_array_equal(np.asarray(displayed), np.asarray(expected))


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


def test_listing_finds_images_below_and_skips_the_rest(tmp_path: Path, photo: Callable[..., Path]) -> None:
    expected = [photo(tmp_path / name) for name in ("B.JPG", "a.png", "sub/c.webp")]
    for name in (".hidden.png", ".folder/d.png"):
        photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub/back").symlink_to(tmp_path)
    assert list_images(tmp_path) == sorted(expected)
    with pytest.raises(DataError, match="cannot list"):
        list_images(tmp_path / "nothing")
