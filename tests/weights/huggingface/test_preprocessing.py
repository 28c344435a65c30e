"""Pixels are those of transformers' PIL processor; where its sizes are not the paper's, ours are."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.core.errors import CheckpointError
from deformable_detr.data.augmentation.pipeline import resized_wh
from deformable_detr.data.preprocessing import Preprocessing, to_model_input
from deformable_detr.weights.huggingface.preprocessing import preprocessing_from, processor_settings

SMALL = Preprocessing(short_side=80, max_side=133)


@pytest.fixture(scope="module")
def processor_class():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own affairs
        pytest.importorskip("transformers")
        from transformers.models.deformable_detr import image_processing_pil_deformable_detr as pil
    return pil.DeformableDetrImageProcessorPil


def picture(size_wh):
    width, height = size_wh
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def theirs_of(processor_class, preprocessing, image):
    settings = {
        name: value
        for name, value in processor_settings(preprocessing, "DeformableDetrImageProcessor").items()
        if not name.endswith("_type")
    }
    return processor_class(**settings)(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize(
    "size_wh", [(64, 48), (48, 64), (100, 266), (266, 100), (37, 47), (50, 50), (80, 101), (101, 80), (7, 5)]
)
def test_the_same_pixels(processor_class, size_wh):
    image = picture(size_wh)
    ours = to_model_input(image, SMALL)
    torch.testing.assert_close(theirs_of(processor_class, SMALL, image), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size_wh", "expected"), [((640, 480), (1066, 800)), ((400, 1000), (533, 1332))])
def test_the_papers_own_size(processor_class, size_wh, expected):
    image = picture(size_wh)
    ours = to_model_input(image, Preprocessing())
    assert tuple(ours.shape[:0:-1]) == expected
    theirs = theirs_of(processor_class, Preprocessing(), image)
    if theirs.shape == ours.shape:
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    else:  # the long side by the exact ratio, where the published code takes that of the rounded short side
        assert tuple(theirs.shape[:0:-1]) == (533, 1333)


def official_wh(width, height, size, max_size):
    """The published rule (datasets/transforms.py at 11169a60), in its own floating-point steps."""
    short, long = float(min(width, height)), float(max(width, height))
    if long / short * size > max_size:
        size = round(max_size * short / long)
    if min(width, height) == size:
        return width, height
    return (size, int(size * height / width)) if width < height else (int(size * width / height), size)


def test_sizes_are_the_published_ones_and_theirs_are_not_always(processor_class):
    from transformers.image_transforms import get_size_with_aspect_ratio

    unlike = 0
    sizes = [(width, height) for width in range(20, 1500, 29) for height in range(20, 1500, 31)]
    for width, height in sizes:
        ours = resized_wh((width, height), 800, 1333)
        assert ours == official_wh(width, height, 800, 1333)
        theirs = get_size_with_aspect_ratio((height, width), 800, 1333)[::-1]
        if theirs != ours:
            unlike += 1
            assert max(ours) / min(ours) > 1333 / 800 - 0.01  # only where the long side's limit bites
            assert min(theirs) == min(ours)
    assert 0 < unlike < len(sizes) / 2


def test_there_and_back():
    ours = Preprocessing(short_side=481, max_side=733, mean=(0.1, 0.25, 0.3), std=(1.0, 0.7, 1 / 3))
    assert preprocessing_from(processor_settings(ours, "DeformableDetrImageProcessor")) == (ours, [])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Preprocessing()),
        # What the first published files held.
        (
            {
                "feature_extractor_type": "DeformableDetrFeatureExtractor",
                "do_normalize": True,
                "do_resize": True,
                "format": "coco_detection",
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
                "max_size": 1333,
                "size": 800,
            },
            Preprocessing(),
        ),
        ({"size": 600}, Preprocessing(short_side=600)),
        ({"size": {"shortest_edge": 48, "longest_edge": 60}, "max_size": 9}, Preprocessing(short_side=48, max_side=60)),
        ({"size": {"shortest_edge": 800, "longest_edge": 640}}, Preprocessing(short_side=640, max_side=640)),
        ({"do_normalize": False}, Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))),
        ({"rescale_factor": 0.00392156862745098, "resample": 2, "do_pad": False, "pad_size": None}, Preprocessing()),
    ],
)  # fmt: skip
def test_settings_that_can_be_had(settings, expected):
    assert preprocessing_from(settings) == (expected, [])


def test_a_limit_below_the_short_side_decides_alone(processor_class):
    settings = {"size": {"shortest_edge": 80, "longest_edge": 64}}
    preprocessing, _ = preprocessing_from(settings)
    for size_wh in ((48, 48), (64, 48), (48, 96)):
        image = picture(size_wh)
        theirs = processor_class(**settings)(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(to_model_input(image, preprocessing), theirs, rtol=0, atol=1e-6)


def test_without_normalising(processor_class):
    settings = {"size": {"shortest_edge": 80, "longest_edge": 133}, "do_normalize": False}
    preprocessing, _ = preprocessing_from(settings)
    image = picture((70, 50))
    theirs = processor_class(**settings)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(to_model_input(image, preprocessing), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor is not one of DETR's"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"rescale_factor": 1.0}, r"rescale_factor is 1\.0; pixels are divided by 255"),
        ({"resample": 3}, "resample is 3; .*bilinear"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"pad_size": {"height": 9, "width": 9}}, "pad_size is "),
        ({"size": {"height": 640, "width": 640}}, "size is {'height': 640.*no image is stretched"),
        ({"size": {"shortest_edge": 640}}, "must be given as shortest_edge and longest_edge"),
        ({"size": "big"}, "size is 'big'"),
        ({"image_std": [1.0, 0.0, 1.0]}, "std"),
        ({"image_mean": [0.5]}, "mean"),
    ],
)
def test_what_cannot_be_had_is_named(settings, message):
    with pytest.raises(CheckpointError, match=message):
        preprocessing_from(settings)


def test_unknown_settings_are_listed():
    assert preprocessing_from({"sharpen": 1, "blur": 2, "format": "coco_detection"})[1] == ["blur", "sharpen"]
