from dataclasses import replace

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation import pipeline as t
from deformable_detr.data.augmentation.settings import Augmentation
from tests.data.drawn import (
    example,
    generator,
)


def test_the_paper_s_settings():
    paper = Augmentation()
    assert paper.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (paper.max_side, paper.crop_short_sides) == (1333, (400, 500, 600))
    assert (paper.crop_min, paper.crop_max, paper.hflip, paper.crop_probability) == (384, 600, 0.5, 0.5)
    assert (paper.vflip, paper.rotate90, paper.color_jitter) == (0, 0, 0)
    assert (paper.photometric, paper.zoom_out, paper.iou_crop, paper.mosaic, paper.mixup) == (0, 0, 0, 0, 0)
    assert (paper.scale_jitter, paper.min_visible, paper.min_side) == ((1.0, 1.0), 0, 0)
    assert paper.scaled(800) == paper


def test_scaled_keeps_the_proportions():
    half = replace(Augmentation(), vflip=0.25, min_side=3.0).scaled(400)
    assert half.short_sides == (240, 256, 272, 288, 304, 320, 336, 352, 368, 384, 400)
    assert (half.max_side, half.crop_short_sides) == (666, (200, 250, 300))
    assert (half.crop_min, half.crop_max, half.vflip, half.min_side) == (192, 300, 0.25, 1.5)


def test_the_epochs_with_everything():
    def varied(until, *runs):
        return [Augmentation(until=until).varied_epochs(epochs) for epochs in runs]

    assert varied(1.0, 1, 2, 300) == [1, 2, 300]
    assert varied(0.85, 1, 3, 4, 20, 59, 300) == [1, 3, 3, 17, 50, 255]
    assert varied(0.01, 1, 2, 300) == [1, 1, 3]
    mixing = Augmentation(mixing_off=0.15)
    assert [mixing.mixing_epochs(epochs) for epochs in (1, 3, 4, 20, 59, 300)] == [1, 3, 3, 17, 50, 255]


def test_what_is_left_of_a_plain_augmentation():
    everything = Augmentation(
        **dict.fromkeys(("vflip", "rotate90", "color_jitter", "photometric", "zoom_out", "iou_crop"), 0.5),
        mosaic=0.5,
        mixup=0.5,
        scale_jitter=(0.5, 2.0),
        min_visible=0.25,
        until=0.9,
    )
    plain = Augmentation(crop_probability=0.0, vflip=0.5, rotate90=0.5, min_visible=0.25, until=0.9)
    assert everything.plain() == plain == plain.plain()


@pytest.mark.parametrize("short_side", [1, 2, 3, 17, 64, 128, 1024])
def test_every_size_gives_settings_that_work(short_side):
    augmentation = Augmentation().scaled(short_side)
    assert max(augmentation.short_sides) == short_side
    assert augmentation.short_sides == tuple(sorted(set(augmentation.short_sides)))
    after = t.augment(example(), generator(1), augmentation=augmentation)
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
        ({"mosaic": 1.1}, "mosaic is 1.1"),
        ({"mixing_off": -0.1}, "mixing_off is -0.1"),
        ({"until": 0.0}, "until is 0.0; it must be above 0 and at most 1"),
        ({"until": 1.01}, "until is 1.01"),
        ({"until": float("nan")}, "until is nan"),
        ({"min_visible": 2.0}, "min_visible is 2.0"),
        ({"min_side": -1.0}, "min_side is -1.0"),
        ({"min_side": float("inf")}, "min_side is inf"),
        ({"scale_jitter": (0.0, 1.0)}, "scale_jitter is 0, 1; it needs two factors in 0.01..10, the smaller one first"),
        ({"scale_jitter": (2.0, 1.0)}, "scale_jitter is 2, 1"),
        ({"mosaic_scale": (0.5, 1.5)}, "mosaic_scale is 0.5, 1.5"),
        ({"zoom_out_most": 0.5}, "zoom_out_most is 0.5"),
        ({"crop_probability": float("nan")}, "crop_probability is nan"),
    ],
)
def test_impossible_augmentation(settings, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**settings)


def test_scaled_refuses_nothing_left():
    with pytest.raises(ConfigError, match="short_side is 0"):
        Augmentation().scaled(0)
