from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from deformable_detr.data import transforms as t
from deformable_detr.errors import ConfigError

WIDTH, HEIGHT = 57, 38
BOXES = [[3.0, 5.0, 20.0, 11.0], [0.0, 0.0, 57.0, 38.0], [40.5, 30.25, 41.0, 37.5]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def example(width: int = WIDTH, height: int = HEIGHT) -> t.Example:
    return t.Example(noise(width, height), torch.tensor(BOXES), torch.tensor([4, 0, 7]))


def marked(width: int, height: int, left: int, top: int, right: int, bottom: int) -> t.Example:
    """Black but for one white box, so that the picture itself says where the box is."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[top:bottom, left:right] = 255
    box = torch.tensor([[left, top, right, bottom]], dtype=torch.float32)
    return t.Example(Image.fromarray(pixels), box, torch.tensor([2]))


def white_box(image: Image.Image) -> list[float]:
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# Worked out by hand from the published rule.
@pytest.mark.parametrize(
    ("size_wh", "short_side", "max_side", "expected"),
    [
        ((640, 480), 800, 1333, (1066, 800)),
        ((480, 640), 800, 1333, (800, 1066)),
        ((500, 375), 800, 1333, (1066, 800)),
        ((640, 427), 800, 1333, (1199, 800)),
        ((2000, 500), 800, 1333, (1332, 333)),
        ((500, 2000), 800, 1333, (333, 1332)),
        ((333, 333), 480, 1333, (480, 480)),
        ((1000, 600), 800, None, (1333, 800)),
        ((10000, 1), 800, 1333, (10000, 1)),
        ((1, 1), 3, 5, (3, 3)),
    ],
)
def test_resized_wh(size_wh, short_side, max_side, expected):
    assert t.resized_wh(size_wh, short_side, max_side) == expected


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(1, 1000),
    st.one_of(st.none(), st.integers(1, 2000)),
)
def test_resized_wh_is_the_float_rule(width, height, short_side, max_side):
    size = short_side
    if max_side is not None:
        short, long = float(min(width, height)), float(max(width, height))
        if long / short * size > max_side:
            size = max(1, round(max_side * short / long))
    long_side = int(size * max(width, height) / min(width, height))
    expected = (size, long_side) if width < height else (long_side, size)
    assert t.resized_wh((width, height), short_side, max_side) == expected


def test_resize_scales_image_and_boxes_per_axis():
    resized = t.resize(example(), (114, 19))
    assert resized.image.size == (114, 19)
    expected = torch.tensor(BOXES) * torch.tensor([2.0, 0.5, 2.0, 0.5])
    torch.testing.assert_close(resized.boxes_xyxy, expected)
    assert np.array_equal(
        np.asarray(resized.image), np.asarray(noise(WIDTH, HEIGHT).resize((114, 19), Image.Resampling.BILINEAR))
    )


def test_resize_to_the_same_size_changes_nothing():
    before = example()
    assert t.resize(before, (WIDTH, HEIGHT)) is before


@pytest.mark.parametrize(("ours", "theirs"), [(t.hflip, tv.horizontal_flip), (t.vflip, tv.vertical_flip)])
def test_flips_agree_with_torchvision_and_undo_themselves(ours, theirs):
    before = example()
    after = ours(before)
    boxes = tv_tensors.BoundingBoxes(before.boxes_xyxy, format="XYXY", canvas_size=(HEIGHT, WIDTH))
    torch.testing.assert_close(after.boxes_xyxy, theirs(boxes).as_subclass(torch.Tensor))
    assert np.array_equal(np.asarray(after.image), np.asarray(theirs(before.image)))
    torch.testing.assert_close(ours(after).boxes_xyxy, before.boxes_xyxy)


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4, 7])
def test_rotation_keeps_the_box_on_its_object(turns):
    after = t.rotate90(marked(31, 17, 4, 2, 9, 5), turns)
    assert after.image.size == ((31, 17) if turns % 2 == 0 else (17, 31))
    assert after.boxes_xyxy[0].tolist() == white_box(after.image)


def test_quarter_turn_is_counter_clockwise():
    assert t.rotate90(marked(31, 17, 0, 0, 1, 1), 1).boxes_xyxy[0].tolist() == [0, 30, 1, 31]


def test_crop_clips_boxes_and_drops_what_is_outside():
    boxes = [
        [0, 0, 57, 38],  # covers the window
        [5, 6, 12, 9],  # reaches in from the left
        [0, 0, 10, 38],  # touches the window's left border: no area left
        [30, 10, 35, 12],  # inside
        [50, 8, 57, 20],  # right of it
        [12, 36, 20, 38],  # below it
    ]
    before = t.Example(noise(WIDTH, HEIGHT), torch.tensor(boxes, dtype=torch.float32), torch.arange(6))
    after = t.crop(before, 10, 5, (33, 29))
    assert after.image.size == (33, 29)
    assert after.labels.tolist() == [0, 1, 3]
    assert after.boxes_xyxy.tolist() == [[0, 0, 33, 29], [0, 1, 2, 4], [20, 5, 25, 7]]
    assert np.array_equal(np.asarray(after.image), np.asarray(before.image)[5:34, 10:43])


def test_crop_of_an_image_without_objects():
    empty = t.Example(noise(9, 14), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert t.crop(empty, 1, 2, (3, 5)).boxes_xyxy.shape == (0, 4)


def test_random_crop_reaches_every_size_and_place_and_no_other():
    before = example(11, 7)
    sizes, lefts = set(), set()
    for seed in range(400):
        after = t.random_crop(before, 5, 8, generator(seed))
        sizes.add(after.image.size)
        if after.image.width == 8:
            lefts.add(white_left(before.image, after.image))
    assert sizes == {(width, height) for width in (5, 6, 7, 8) for height in (5, 6, 7)}
    assert lefts == {0, 1, 2, 3}


def white_left(whole: Image.Image, window: Image.Image) -> int:
    haystack, needle = np.asarray(whole), np.asarray(window)
    height, width = needle.shape[:2]
    for top in range(haystack.shape[0] - height + 1):
        for left in range(haystack.shape[1] - width + 1):
            if np.array_equal(haystack[top : top + height, left : left + width], needle):
                return left
    raise AssertionError("the window is not part of the image")


def test_random_crop_keeps_an_image_smaller_than_the_minimum():
    assert t.random_crop(example(11, 7), 384, 600, generator(0)).image.size == (11, 7)
    assert t.random_crop(example(11, 700), 384, 600, generator(0)).image.width == 11


def test_colour_jitter_moves_colours_and_nothing_else():
    before = example()
    after = t.color_jitter(before, 0.7, generator(3))
    assert after.image.mode == "RGB"
    assert after.image.size == before.image.size
    assert after.boxes_xyxy is before.boxes_xyxy
    assert not np.array_equal(np.asarray(after.image), np.asarray(before.image))
    gentle = t.color_jitter(before, 1e-6, generator(3))
    difference = np.abs(np.asarray(gentle.image, dtype=int) - np.asarray(before.image, dtype=int))
    assert difference.mean() < 3  # the way through 8-bit HSV rounds


SMALL = t.Augmentation(
    short_sides=(30, 34, 38),
    max_side=64,
    crop_short_sides=(20, 26),
    crop_min=15,
    crop_max=25,
)


def test_one_seed_one_result():
    everything = replace(SMALL, vflip=0.5, rotate90=0.5, color_jitter=0.5)
    transform = t.training_transform(everything)
    first, again = transform(example(), generator(5)), transform(example(), generator(5))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert torch.equal(first.boxes_xyxy, again.boxes_xyxy)
    others = [transform(example(), generator(seed)).image.tobytes() for seed in range(8)]
    assert len(set(others)) == 8


def test_no_global_random_numbers_are_used():
    before = torch.random.get_rng_state()
    transform = t.training_transform(replace(SMALL, color_jitter=1.0, rotate90=1.0))
    transform(example(), generator(0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_crop_the_short_side_is_one_of_those_asked_for():
    plain = t.training_transform(replace(SMALL, crop_probability=0.0))
    sides = {min(plain(example(), generator(seed)).image.size) for seed in range(60)}
    assert sides == {30, 34, 38}


def test_with_crop_the_aspect_ratio_varies():
    cropped = t.training_transform(replace(SMALL, crop_probability=1.0))
    sizes = {cropped(example(), generator(seed)).image.size for seed in range(60)}
    assert len({width / height for width, height in sizes}) > 20
    assert all(min(size) in (30, 34, 38) or max(size) <= 66 for size in sizes)


def test_probabilities_are_met():
    half = t.training_transform(t.Augmentation(short_sides=(17,), max_side=31, crop_probability=0.0, hflip=0.25))
    flipped = sum(half(marked(31, 17, 0, 0, 3, 17), generator(seed)).boxes_xyxy[0, 0] > 15 for seed in range(400))
    assert 70 < flipped < 130


@settings(max_examples=60)
@given(st.integers(8, 90), st.integers(8, 90), st.data(), st.integers(0, 2**32), st.booleans())
def test_boxes_stay_on_their_objects(width, height, data, seed, crops):
    left = data.draw(st.integers(0, width - 4))
    top = data.draw(st.integers(0, height - 4))
    right = data.draw(st.integers(left + 4, width))
    bottom = data.draw(st.integers(top + 4, height))
    everything = replace(SMALL, vflip=0.5, rotate90=0.75, crop_probability=float(crops))
    after = t.augment(marked(width, height, left, top, right, bottom), generator(seed), everything)
    assert len(after.boxes_xyxy) == len(after.labels) <= 1
    for box in after.boxes_xyxy.tolist():
        assert 0 <= box[0] < box[2] <= after.image.width + 1e-4
        assert 0 <= box[1] < box[3] <= after.image.height + 1e-4
        if min(box[2] - box[0], box[3] - box[1]) > 3:
            # Interpolation blurs an edge by at most the scale factor, here below 6.
            scale = max(1.0, max(after.image.size) / min(width, height))
            assert np.abs(np.array(white_box(after.image)) - box).max() <= 1 + scale


def test_the_paper_s_settings():
    paper = t.Augmentation()
    assert paper.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (paper.max_side, paper.crop_short_sides) == (1333, (400, 500, 600))
    assert (paper.crop_min, paper.crop_max, paper.hflip, paper.crop_probability) == (384, 600, 0.5, 0.5)
    assert (paper.vflip, paper.rotate90, paper.color_jitter) == (0, 0, 0)
    assert paper.scaled(800) == paper


def test_scaled_keeps_the_proportions():
    half = replace(t.Augmentation(), vflip=0.25).scaled(400)
    assert half.short_sides == (240, 256, 272, 288, 304, 320, 336, 352, 368, 384, 400)
    assert (half.max_side, half.crop_short_sides) == (666, (200, 250, 300))
    assert (half.crop_min, half.crop_max, half.vflip) == (192, 300, 0.25)


@pytest.mark.parametrize("short_side", [1, 2, 3, 17, 64, 128, 1024])
def test_every_size_gives_settings_that_work(short_side):
    augmentation = t.Augmentation().scaled(short_side)
    assert max(augmentation.short_sides) == short_side
    assert augmentation.short_sides == tuple(sorted(set(augmentation.short_sides)))
    after = t.augment(example(), generator(1), augmentation)
    assert max(after.image.size) <= max(4, 1.7 * short_side)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_sides": ()}, "short sides"),
        ({"short_sides": (0, 5)}, "short sides"),
        ({"short_sides": (480, 1400)}, "max_side is 1333, below the short side of 1400"),
        ({"crop_short_sides": ()}, "crop"),
        ({"crop_min": 601}, "crop_min is 601 and crop_max is 600"),
        ({"crop_min": 0}, "crop_min is 0"),
        ({"hflip": 1.5}, "hflip is 1.5"),
        ({"color_jitter": -0.1}, "color_jitter is -0.1"),
        ({"crop_probability": float("nan")}, "crop_probability is nan"),
    ],
)
def test_impossible_augmentation(settings, message):
    with pytest.raises(ConfigError, match=message):
        t.Augmentation(**settings)


def test_scaled_refuses_nothing_left():
    with pytest.raises(ConfigError, match="short_side is 0"):
        t.Augmentation().scaled(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side": 0}, "at least 1"),
        ({"short_side": 1600}, "raise max_side.*2666"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"mean": (0.2, float("inf"), 0.2)}, "finite"),
    ],
)
def test_impossible_preprocessing(settings, message):
    with pytest.raises(ConfigError, match=message):
        t.Preprocessing(**settings)


def test_model_input_is_resized_and_normalised():
    preprocessing = t.Preprocessing(short_side=19, max_side=40, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    image = noise(WIDTH, HEIGHT)
    tensor = t.to_model_input(image, preprocessing)
    assert tensor.shape == (3, 19, 28)
    pixels = np.asarray(image.resize((28, 19), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = (pixels - [0.1, 0.2, 0.3]) / [1, 2, 4]
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
    assert np.array_equal(np.asarray(image), np.asarray(noise(WIDTH, HEIGHT)))


def test_evaluation_transform_and_model_input_see_the_same_image():
    preprocessing = t.Preprocessing(short_side=23, max_side=31)
    after = t.evaluation_transform(preprocessing)(example(), generator(0))
    assert torch.equal(t.normalise(after.image, preprocessing), t.to_model_input(example().image, preprocessing))
    torch.testing.assert_close(
        after.boxes_xyxy, torch.tensor(BOXES) * torch.tensor([31 / 57, 21 / 38, 31 / 57, 21 / 38])
    )


def test_target_is_relative_to_the_transformed_image():
    target = t.to_target(t.resize(example(), (100, 50)))
    expected = [
        [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
        for x1, y1, x2, y2 in BOXES
    ]
    torch.testing.assert_close(target.boxes, torch.tensor(expected))
    assert target.labels.tolist() == [4, 0, 7]
