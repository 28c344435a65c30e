import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deformable_detr.data.augmentation import pipeline as t
from deformable_detr.data.augmentation.geometry import Example, resize
from deformable_detr.data.augmentation.settings import Augmentation
from tests.data.drawn import (
    BOXES,
    HEIGHT,
    WIDTH,
    check_boxes,
    example,
    generator,
    marked,
    noise,
    random_scene,
    white_box,
)

SMALL = Augmentation(
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
    half = t.training_transform(Augmentation(short_sides=(17,), max_side=31, crop_probability=0.0, hflip=0.25))
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
    after = t.augment(marked(width, height, left, top, right, bottom), generator(seed), augmentation=everything)
    assert len(after.boxes_xyxy) == len(after.labels) <= 1
    for box in after.boxes_xyxy.tolist():
        assert 0 <= box[0] < box[2] <= after.image.width + 1e-4
        assert 0 <= box[1] < box[3] <= after.image.height + 1e-4
        if min(box[2] - box[0], box[3] - box[1]) > 3:
            # Interpolation blurs an edge by at most the scale factor, here below 6.
            scale = max(1.0, max(after.image.size) / min(width, height))
            assert np.abs(np.array(white_box(after.image)) - box).max() <= 1 + scale


# Image size, short side, seed, checksum of the pixels, labels, boxes and the generator's next number, recorded before
# anything but the paper's augmentation existed.
RECORDED = [
    (
        800,
        0,
        (1008, 672),
        2218922475,
        [4, 0, 7],
        [
            [53.05262756347656, 88.42105102539062, 353.6842041015625, 194.52630615234375],
            [0.0, 0.0, 1007.9999389648438, 672.0],
            [716.2105102539062, 534.9473266601562, 725.0526123046875, 663.1578979492188],
        ],
        683,
    ),
    (
        800,
        1,
        (640, 650),
        1545521433,
        [4, 0],
        [[387.54718017578125, 17.569494247436523, 640.0, 146.12680053710938], [0.0, 0.0, 640.0, 650.0]],
        13,
    ),
    (
        800,
        2,
        (768, 512),
        3512876503,
        [4, 0, 7],
        [
            [40.421051025390625, 67.36842346191406, 269.47369384765625, 148.2105255126953],
            [0.0, 0.0, 768.0, 512.0],
            [545.6842041015625, 407.5789489746094, 552.4210815429688, 505.2631530761719],
        ],
        511,
    ),
    (
        800,
        3,
        (795, 608),
        227712879,
        [4, 0, 7],
        [
            [533.8038330078125, 33.198238372802734, 795.0, 138.92510986328125],
            [0.0, 0.0, 795.0, 608.0],
            [163.98724365234375, 478.1322021484375, 172.7924041748047, 605.8854370117188],
        ],
        386,
    ),
    (
        800,
        4,
        (1008, 672),
        2835327313,
        [4, 0, 7],
        [
            [654.3157348632812, 88.42105102539062, 954.9473266601562, 194.52630615234375],
            [0.0, 0.0, 1007.9999389648438, 672.0],
            [282.9473571777344, 534.9473266601562, 291.7894592285156, 663.1578979492188],
        ],
        361,
    ),
    (
        800,
        5,
        (945, 704),
        1065732817,
        [4, 0, 7],
        [
            [47.570274353027344, 88.90745544433594, 367.8453674316406, 202.04525756835938],
            [0.0, 0.0, 945.0, 704.0],
            [754.0595092773438, 565.029052734375, 763.4793701171875, 701.7372436523438],
        ],
        318,
    ),
    (
        64,
        0,
        (81, 54),
        3265733787,
        [4, 0, 7],
        [
            [4.263157844543457, 7.105262756347656, 28.421051025390625, 15.63157844543457],
            [0.0, 0.0, 81.0, 53.999996185302734],
            [57.55262756347656, 42.986839294433594, 58.26315689086914, 53.28947067260742],
        ],
        683,
    ),
    (
        64,
        1,
        (51, 54),
        149588575,
        [4, 0],
        [[32.47028350830078, 0.0, 51.0, 3.100477457046509], [0.0, 0.0, 51.0, 54.0]],
        13,
    ),
    (
        64,
        2,
        (61, 41),
        3426113127,
        [4, 0, 7],
        [
            [3.21052622795105, 5.394737243652344, 21.403507232666016, 11.86842155456543],
            [0.0, 0.0, 61.0, 41.000003814697266],
            [43.342105865478516, 32.638160705566406, 43.877193450927734, 40.46052932739258],
        ],
        511,
    ),
    (
        64,
        3,
        (49, 53),
        2456500960,
        [4, 0],
        [[22.888158798217773, 0.398496150970459, 49.0, 9.962407112121582], [0.0, 0.0, 49.0, 53.0]],
        386,
    ),
    (
        64,
        4,
        (81, 54),
        96897027,
        [4, 0, 7],
        [
            [52.57894515991211, 7.105262756347656, 76.7368392944336, 15.63157844543457],
            [0.0, 0.0, 81.0, 53.999996185302734],
            [22.736841201782227, 42.986839294433594, 23.44736671447754, 53.28947067260742],
        ],
        361,
    ),
    (
        64,
        5,
        (71, 56),
        1944042251,
        [4, 0, 7],
        [
            [0.0, 7.36842155456543, 18.775354385375977, 16.210525512695312],
            [0.0, 0.0, 71.0, 56.0],
            [48.67008972167969, 44.578948974609375, 49.399234771728516, 55.26315689086914],
        ],
        318,
    ),
]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: f"{recorded[0]}-{recorded[1]}")
def test_the_paper_s_augmentation_is_what_it_always_was(recorded):
    short_side, seed, size_wh, checksum, labels, boxes, number = recorded
    random = generator(seed)

    def never(random: torch.Generator) -> Example:
        raise AssertionError("the paper mixes nothing")

    after = t.augment(example(), random, never, augmentation=Augmentation().scaled(short_side))
    assert (after.image.size, zlib.crc32(after.image.tobytes())) == (size_wh, checksum)
    assert (after.labels.tolist(), after.boxes_xyxy.tolist()) == (labels, boxes)
    assert int(torch.randint(1000, (), generator=random)) == number


EVERYTHING = replace(
    SMALL,
    vflip=0.5,
    rotate90=0.75,
    photometric=0.0,  # colours would move the threshold of the painted region
    scale_jitter=(0.5, 1.8),
    zoom_out=0.4,
    zoom_out_most=2.0,
    iou_crop=0.4,
    mosaic=0.4,
    mixup=0.3,
    crop_probability=0.2,
    short_sides=(60, 75, 90),
    max_side=150,
    crop_short_sides=(60, 80),
    crop_min=30,
    crop_max=60,
)


def augmented(seed: int, augmentation: Augmentation, painted: int | None = None) -> Example:
    """Of one scene, with others at hand whose objects have other labels."""
    drawn = 0

    def draw(random: torch.Generator) -> Example:
        nonlocal drawn
        drawn += 1
        number = int(torch.randint(1000, (), generator=random))
        return random_scene(number, count=number % 3, first_label=100 * drawn).example(painted)

    return t.augment(random_scene(seed).example(painted), generator(seed), draw, augmentation=augmentation)


@pytest.mark.parametrize("seed", range(40))
def test_every_box_stays_on_its_object_through_everything(seed):
    labels = [label for first in (0, 100, 200, 300, 400) for label in range(first, first + 4)]
    present = set(augmented(seed, EVERYTHING).labels.tolist())
    # What another image shines over is seen with 0.4 of its strength.
    check_boxes(
        lambda painted: augmented(seed, EVERYTHING, painted), sorted(present & set(labels)), tolerance=2.0, edge=0.3
    )


def test_everything_happens_in_those_tests():
    sizes = {augmented(seed, EVERYTHING).image.size for seed in range(60)}
    several = sum(any(label >= 100 for label in augmented(seed, EVERYTHING).labels.tolist()) for seed in range(60))
    assert len(sizes) > 30
    assert 15 < several < 50


def test_without_draw_nothing_is_mixed():
    mixing = replace(EVERYTHING, mosaic=1.0, mixup=1.0)
    assert max(t.augment(random_scene(3).example(), generator(5), augmentation=mixing).labels.tolist()) < 100
    assert max(augmented(3, mixing).labels.tolist()) >= 100


def test_thin_objects_are_dropped_at_the_final_size():
    example_ = marked(40, 60, 5, 6, 13, 46)
    plain = Augmentation(short_sides=(20,), max_side=30, crop_probability=0.0)
    assert len(t.augment(example_, generator(0), augmentation=replace(plain, min_side=4.0)).labels) == 1
    assert len(t.augment(example_, generator(0), augmentation=replace(plain, min_side=4.1)).labels) == 0


def test_nothing_but_ground_is_never_all_there_is_to_see():
    enlarging = replace(
        EVERYTHING,
        zoom_out=1.0,
        zoom_out_most=4.0,
        scale_jitter=(4.0, 4.0),
        iou_crop=0.0,
        crop_probability=0.0,
        mosaic=0.0,
    )
    for seed in range(30):
        pixels = np.asarray(t.augment(marked(60, 80, 0, 0, 60, 80), generator(seed), augmentation=enlarging).image)
        assert pixels.max() == 255


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 50), (70, 1), (2, 3), (400, 7)])
@pytest.mark.parametrize("objects", [0, 1])
def test_awkward_images(size_wh, objects):
    extreme = replace(EVERYTHING, photometric=1.0, color_jitter=1.0, mosaic=0.7, mixup=0.7, min_visible=0.3)
    width, height = size_wh
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])[:objects]
    before = Example(noise(width, height), boxes, torch.zeros(objects, dtype=torch.int64))
    for seed in range(25):
        after = t.augment(before, generator(seed), lambda random: before, augmentation=extreme)
        target = t.to_target(after)
        assert min(after.image.size) >= 1
        assert (target.boxes[:, 2:] > 0).all()
        assert len(target.boxes) == len(target.labels)


def test_a_box_that_rounding_makes_empty_is_no_target():
    thin = torch.tensor([[1000.0, 3.0, 1000.00006, 9.0], [2.0, 3.0, 5.0, 9.0]])
    assert thin[0, 2] > thin[0, 0]
    target = t.to_target(Example(Image.new("RGB", (1333, 10)), thin, torch.tensor([1, 2])))
    assert (target.boxes[:, 2:] > 0).all()
    assert 2 in target.labels.tolist()


def test_target_is_relative_to_the_transformed_image():
    target = t.to_target(resize(example(), (100, 50)))
    expected = [
        [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
        for x1, y1, x2, y2 in BOXES
    ]
    torch.testing.assert_close(target.boxes, torch.tensor(expected))
    assert target.labels.tolist() == [4, 0, 7]


@pytest.mark.parametrize("size_wh", [(30_000, 1), (1, 30_000), (9000, 2)])
def test_a_picture_like_a_thread_stays_within_the_longest_side(size_wh):
    wild = replace(EVERYTHING, crop_probability=1.0, zoom_out=0.3, mosaic=0.3, iou_crop=0.3, scale_jitter=(0.5, 1.0))
    thread = Example(Image.new("RGB", size_wh), torch.tensor([[0.0, 0.0, *size_wh]]), torch.zeros(1, dtype=torch.int64))
    for seed in range(12):
        after = t.augment(thread, generator(seed), lambda random: thread, augmentation=wild)
        assert min(after.image.size) >= 1
        assert max(after.image.size) <= 1.05 * wild.max_side
