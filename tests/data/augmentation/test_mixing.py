import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data.augmentation import mixing as m
from deformable_detr.data.augmentation.geometry import FILL, Example
from tests.data.drawn import Scene, check_boxes, example, generator, random_scene

SCENES = [random_scene(seed, count=count, first_label=10 * seed) for seed, count in enumerate([4, 0, 1, 3])]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("min_visible", [0.0, 0.4])
def test_in_a_mosaic_every_box_encloses_its_object(seed, min_visible):
    def four(painted):
        examples = [scene.example(painted) for scene in SCENES]
        return m.mosaic(examples, (120, 90), (0.5, 1.0), generator(seed), min_visible)

    assert four(None).image.size == (120, 90)
    check_boxes(four, [0, 1, 2, 3, 20, 30, 31, 32], min_visible=min_visible)


def test_a_mosaic_shows_all_four_and_ground_where_there_is_none():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    filled = ground = 0
    for seed in range(20):
        examples = [
            Example(Image.new("RGB", (40, 30)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) for _ in colours
        ]
        for one, colour in zip(examples, colours, strict=True):
            one.image.paste(colour, (0, 0, 40, 30))
        pixels = np.asarray(m.mosaic(examples, (80, 61), (0.5, 1.0), generator(seed)).image)
        shares = [(pixels == colour).all(axis=2).mean() for colour in colours]
        rest = (pixels == FILL).all(axis=2).mean()
        assert sum(shares) + rest == pytest.approx(1)
        assert min(shares) > 0.02
        filled += rest == 0
        ground += rest > 0
    assert ground > 5


def test_small_objects_that_are_cut_too_far_are_left_out():
    examples = [scene.example() for scene in SCENES]
    kept = [len(m.mosaic(examples, (120, 90), (1.0, 1.0), generator(1), share).labels) for share in (0.0, 0.5, 1.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[2]


@pytest.mark.parametrize("size_wh", [(2, 2), (2, 9), (31, 3)])
def test_mosaics_of_next_to_nothing(size_wh):
    tiny = [example(1, 1)._replace(boxes_xyxy=torch.tensor([[0.0, 0.0, 1.0, 1.0]]), labels=torch.tensor([5]))] * 4
    after = m.mosaic(tiny, size_wh, (0.1, 1.0), generator(0))
    assert after.image.size == size_wh
    assert (after.boxes_xyxy[:, 2:] > after.boxes_xyxy[:, :2]).all()


@pytest.mark.parametrize("seed", range(12))
def test_mixup_keeps_all_objects_of_both(seed):
    first, second = random_scene(seed), random_scene(seed + 1, first_label=10)

    def mixed(painted):
        return m.mixup(first.example(painted), second.example(painted), generator(seed))

    assert mixed(None).labels.tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert mixed(None).image.size == first.size_wh
    check_boxes(mixed, [10, 11, 12, 13])
    outside = check_boxes(mixed, [])
    assert outside == 8


def test_mixup_blends_half_and_half_and_leaves_its_sources_alone():
    white, black = Scene((50, 40), [(0, 0, 50, 40)]), Scene((50, 40), [(0, 0, 50, 40)], 1)
    one, other = white.example(0), black.example()
    before = one.image.tobytes(), other.image.tobytes()
    levels = set()
    for seed in range(20):
        pixels = np.asarray(m.mixup(one, other, generator(seed)).image)
        levels |= set(pixels[pixels < 255].tolist())
    assert (one.image.tobytes(), other.image.tobytes()) == before
    assert 255 * 0.39 < min(levels) < 255 * 0.45
    assert 255 * 0.55 < max(levels) < 255 * 0.61
