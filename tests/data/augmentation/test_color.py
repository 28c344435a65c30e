import numpy as np

from deformable_detr.data.augmentation import color as p
from tests.data.drawn import example, generator


def test_colour_jitter_moves_colours_and_nothing_else():
    before = example()
    after = p.color_jitter(before, 0.7, generator(3))
    assert after.image.mode == "RGB"
    assert after.image.size == before.image.size
    assert after.boxes_xyxy is before.boxes_xyxy
    assert not np.array_equal(np.asarray(after.image), np.asarray(before.image))
    gentle = p.color_jitter(before, 1e-6, generator(3))
    difference = np.abs(np.asarray(gentle.image, dtype=int) - np.asarray(before.image, dtype=int))
    assert difference.mean() < 3  # the way through 8-bit HSV rounds


def test_distortion_moves_colours_and_nothing_else():
    before = example()
    pictures = set()
    for seed in range(30):
        after = p.distort(before, 0.5, generator(seed))
        assert after.boxes_xyxy is before.boxes_xyxy
        assert after.labels is before.labels
        assert (after.image.mode, after.image.size) == ("RGB", before.image.size)
        pictures.add(after.image.tobytes())
    assert len(pictures) > 20
    assert before.image.tobytes() == example().image.tobytes()


def test_distortion_of_probability_0_and_1():
    before = example()
    assert p.distort(before, 0.0, generator(1)).image is before.image
    mean = np.asarray(before.image).mean()
    means = [np.asarray(p.distort(before, 1.0, generator(seed)).image).mean() for seed in range(40)]
    assert min(means) < 0.97 * mean < 1.03 * mean < max(means)
    assert 0.8 * mean < min(means) < max(means) < 1.2 * mean
