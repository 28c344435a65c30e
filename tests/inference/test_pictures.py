import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from deformable_detr.core.errors import DataError
from deformable_detr.data.images import load_image
from deformable_detr.inference.pictures import picture_of

WIDTH, HEIGHT = 19, 11


def pixels(*channels, dtype=np.uint8):
    top = np.iinfo(dtype).max
    return np.random.default_rng(len(channels)).integers(0, top + 1, (HEIGHT, WIDTH, *channels), dtype=dtype)


def equal(image, path):
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(path)))


def deep_png(path, values):
    """A PNG of sixteen bits a channel, which Pillow does not write for colours."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)], ids=["gray", "gray and alpha", "RGB", "RGB and alpha"])
def test_eight_bits_are_read_as_their_file(channels, tmp_path):
    array = pixels(*channels)
    Image.fromarray(array).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        equal(picture_of(opened), tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array):
        equal(picture_of(given), tmp_path / "a.png")
    if channels == ():
        equal(picture_of(array[..., None]), tmp_path / "a.png")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_read_as_their_file(channels, tmp_path):
    array = pixels(channels, dtype=np.uint16)
    deep_png(tmp_path / "a.png", array)
    with Image.open(tmp_path / "a.png") as opened:
        equal(picture_of(opened), tmp_path / "a.png")
    equal(picture_of(array), tmp_path / "a.png")
    equal(picture_of(array.astype(">u2")), tmp_path / "a.png")
    if channels == 1:
        equal(picture_of(array[..., 0]), tmp_path / "a.png")
        assert len(np.unique(np.asarray(picture_of(array)))) > 100  # scaled, not cut off at 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F", "RGBA", "LA"])
def test_pillow_images_are_read_as_their_file(mode, tmp_path):
    values = {"I;16": pixels(dtype=np.uint16), "I": pixels().astype(np.int32) * 200, "F": pixels() / np.float32(255)}
    if mode in values:
        image = Image.fromarray(values[mode])
    else:
        image = Image.fromarray(pixels(4) if mode in ("RGBA", "LA") else pixels(3)).convert(mode)
    assert image.mode == mode
    if mode in ("HSV", "LAB", "YCbCr"):  # files of them are of other modes, or changed by their compression
        np.testing.assert_array_equal(np.asarray(picture_of(image)), np.asarray(image.convert("RGB")))
        return
    path = tmp_path / "a.tiff"
    image.save(path)
    with Image.open(path) as opened:
        equal(picture_of(opened), path)
    equal(picture_of(image), path)


def test_transparent_palettes_lie_over_white(tmp_path):
    image = Image.fromarray(pixels(3)).quantize(7)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 90, 255, 3, 4, 5]))
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "P"
        equal(picture_of(opened), tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_the_file(suffix, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(pixels(3)).save(path, exif=exif)
    with Image.open(path) as opened:
        equal(picture_of(opened), path)
    with Image.open(path) as opened:
        opened.load()
        equal(picture_of(opened), path)
        equal(picture_of(opened), path)  # it has not been changed
        equal(picture_of(opened.convert("RGB")), path)  # as people do who want RGB
        equal(picture_of(ImageOps.exif_transpose(opened)), path)  # who turn it themselves, too
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    equal(picture_of(upright), path)


def test_tensors_are_read_as_their_file(tmp_path):
    image = Image.fromarray(pixels(3))
    image.save(tmp_path / "a.png")
    tensor = pil_to_tensor(image)
    for given in (tensor, tensor / 255, tensor.double() / 255, (tensor / 255).half(), (tensor / 255).requires_grad_()):
        equal(picture_of(given), tmp_path / "a.png")
    Image.fromarray(pixels()).save(tmp_path / "gray.png")
    gray = torch.from_numpy(pixels())
    for given in (gray, gray / 255):
        equal(picture_of(given), tmp_path / "gray.png")


def test_views_into_larger_arrays_are_pictures_too():
    array = pixels(3)
    turned = np.asarray(picture_of(array[::2, ::-1, ::-1]))  # as OpenCV's BGR is turned
    np.testing.assert_array_equal(turned, array[::2, ::-1, ::-1])
    given = torch.from_numpy(array).permute(2, 0, 1)
    np.testing.assert_array_equal(np.asarray(picture_of(given[:, 3:])), array[3:])


def test_a_tensor_of_three_rows_is_what_torchvision_takes_it_for():
    tensor = torch.arange(3 * 5 * 3, dtype=torch.uint8).view(3, 5, 3)
    assert picture_of(tensor).size == (3, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"not \(4, 5, 3\) in float32$"),
        (np.zeros((4, 5), bool), r"not \(4, 5\) in bool$"),
        (np.zeros((4, 5), np.int64), r"not \(4, 5\) in int64$"),
        (np.zeros((4, 5), np.uint32), r"not \(4, 5\) in uint32$"),
        (np.zeros((7, 5, 6), np.uint8), r"1 to 4 channels, in uint8 or uint16, not \(7, 5, 6\) in uint8$"),
        (np.zeros((3, 40, 50), np.uint8), r"not \(3, 40, 50\) in uint8; transpose\(1, 2, 0\) puts the channels last"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"not \(2, 4, 5, 3\) in uint8; several images are passed as a list"),
        (np.zeros(7, np.uint8), r"not \(7,\) in uint8$"),
        (np.zeros((0, 5, 3), np.uint8), r"at least one pixel; this one is \(0, 5, 3\)"),
        (torch.zeros(3, 0, 5), r"at least one pixel; this one is \(0, 5, 3\)"),
        (torch.zeros(4, 6, 5), r"not \(4, 6, 5\) in torch.float32$"),
        (torch.zeros(6, 5, 3), r"not \(6, 5, 3\) in torch.float32; permute\(2, 0, 1\) puts the channels first"),
        (torch.zeros(2, 3, 6, 5), r"not \(2, 3, 6, 5\) in torch.float32; several images are passed as a list"),
        (torch.zeros(3, 6, 5, dtype=torch.int64), r"not \(3, 6, 5\) in torch.int64"),
        (torch.full((3, 6, 5), 255.0), r"torch.float32 must hold numbers in 0..1, not 255 to 255"),
        (torch.linspace(-2.1, 2.6, 90).view(3, 6, 5), r"not -2.1 to 2.6; leave normalising to the detector"),
        (torch.full((3, 6, 5), torch.nan), "not nan to nan"),
    ],
)
def test_what_is_no_image_is_refused_with_both_facts(given, message):
    with pytest.raises(ValueError, match=message):
        picture_of(given)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with Image.open(path) as opened, pytest.raises(DataError, match=r"cut\.jpg: cannot decode .*truncated"):
        picture_of(opened)
    with pytest.raises(DataError, match=r"nope\.jpg: no such image file"):
        picture_of(tmp_path / "nope.jpg")
