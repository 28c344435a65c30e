import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation import pipeline as t
from deformable_detr.data.preprocessing import Preprocessing, normalise, to_model_input, to_picture
from tests.data.drawn import (
    BOXES,
    HEIGHT,
    WIDTH,
    example,
    generator,
    noise,
)


def test_normalised_images_become_pictures_again():
    preprocessing = Preprocessing()
    assert to_picture(normalise(noise(31, 17), preprocessing), preprocessing).tobytes() == noise(31, 17).tobytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side": 0}, "at least 1"),
        ({"short_side": 1600}, "raise max_side.*2666"),
        ({"short_side": 800, "max_side": 100_000}, "a side is 100000 pixels; 20000 are the most"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"mean": (0.2, float("inf"), 0.2)}, "finite"),
        ({"mean": (0.2, float("nan"), 0.2)}, "finite"),
        ({"mean": (0.2, -1e30, 0.2)}, "at most 1000 from 0"),
        ({"std": (0.2, 1e-30, 0.2)}, r"above 0, in 0\.0001\.\.1000"),
        ({"std": (float("nan"), 0.2, 0.2)}, "above 0"),
        ({"max_side": 20_001}, "a side is 20001 pixels; 20000 are the most"),
    ],
)
def test_impossible_preprocessing(settings, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**settings)


@pytest.mark.parametrize(("size_wh", "expected"), [((100_000, 1), (3, 1, 40)), ((1, 100_000), (3, 40, 1))])
def test_model_input_of_a_picture_like_a_thread_is_no_larger_than_others(size_wh, expected):
    assert to_model_input(Image.new("RGB", size_wh), Preprocessing(short_side=19, max_side=40)).shape == expected


def test_model_input_is_resized_and_normalised():
    preprocessing = Preprocessing(short_side=19, max_side=40, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    image = noise(WIDTH, HEIGHT)
    tensor = to_model_input(image, preprocessing)
    assert tensor.shape == (3, 19, 28)
    pixels = np.asarray(image.resize((28, 19), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = (pixels - [0.1, 0.2, 0.3]) / [1, 2, 4]
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
    assert np.array_equal(np.asarray(image), np.asarray(noise(WIDTH, HEIGHT)))


def test_evaluation_transform_and_model_input_see_the_same_image():
    preprocessing = Preprocessing(short_side=23, max_side=31)
    after = t.evaluation_transform(preprocessing)(example(), generator(0))
    assert torch.equal(normalise(after.image, preprocessing), to_model_input(example().image, preprocessing))
    torch.testing.assert_close(
        after.boxes_xyxy, torch.tensor(BOXES) * torch.tensor([31 / 57, 21 / 38, 31 / 57, 21 / 38])
    )
