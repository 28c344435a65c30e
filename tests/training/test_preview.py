from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.data.open import open_dataset
from deformable_detr.runs.recipes import with_augmentation
from deformable_detr.training.preview import save_preview, training_pictures


@pytest.fixture
def dataset(scenes):
    return open_dataset(scenes, split="train")


def test_the_pictures_are_those_of_the_first_epochs(dataset, tiny_config):
    done = []
    pictures = training_pictures(dataset, tiny_config, 11, on_progress=lambda *counts: done.append(counts))
    assert len(pictures) == 11
    assert done == [(number, 11) for number in range(1, 12)]
    assert max(pictures[0].size) == 400
    again = training_pictures(dataset, tiny_config, 3)
    assert [one.tobytes() for one in again] == [one.tobytes() for one in pictures[:3]]
    other = training_pictures(dataset, tiny_config.with_settings(seed=1), 3)
    assert [one.tobytes() for one in other] != [one.tobytes() for one in again]


def test_the_augmentation_shows(dataset, tiny_config):
    plain = replace(tiny_config, augmentation=replace(tiny_config.augmentation, hflip=0.0))
    mosaics = replace(tiny_config, augmentation=replace(plain.augmentation, mosaic=1.0))
    assert training_pictures(dataset, plain, 1)[0].tobytes() != training_pictures(dataset, mosaics, 1)[0].tobytes()


def test_boxes_and_colours_are_those_of_the_image(dataset, tiny_config):
    plain = replace(tiny_config.augmentation, hflip=0.0, short_sides=(48,))
    empty = dataset.subset([0])
    sample = replace(
        empty.samples[0],
        boxes_xyxy=np.zeros((0, 4)),
        class_ids=np.zeros(0, int),
        is_crowd=np.zeros(0, bool),
        areas=np.zeros(0),
    )
    picture = training_pictures(replace(empty, samples=[sample]), replace(tiny_config, augmentation=plain), 1)[0]
    with Image.open(sample.path) as image:
        expected = np.asarray(image.convert("RGB").resize(picture.size), dtype=float)
    assert np.abs(np.asarray(picture, dtype=float) - expected).mean() < 8
    drawn = training_pictures(empty, replace(tiny_config, augmentation=plain), 1)[0]
    changed = (np.asarray(drawn) != np.asarray(picture)).any(axis=2)
    boxes = empty.samples[0].boxes_xyxy * (picture.width / sample.size_wh[0])
    for left, top, right, bottom in boxes.round().astype(int).clip(0, 399):
        x, y = (left + right) // 2, (top + bottom) // 2
        assert changed[y, left - 2 : left + 3].any()
        assert changed[y, right - 3 : right + 2].any()
        assert changed[top - 2 : top + 3, x].any()
        assert changed[bottom - 3 : bottom + 2, x].any()


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_one_sheet(scenes, tiny_config, tmp_path, name):
    save_preview(tmp_path / name, scenes, with_augmentation(tiny_config, "strong"), 5)
    with Image.open(tmp_path / name) as sheet:
        assert sheet.format == {"png": "PNG", "jpg": "JPEG"}[name[-3:]]
        assert sheet.width > 4 * 400
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_cannot_be(scenes, tiny_config, tmp_path, dataset):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/sheet\.png: it is no folder: .*file$"):
        save_preview(tmp_path / "file" / "sheet.png", scenes, tiny_config, 1)
    gone = replace(dataset.samples[0], path=tmp_path / "gone.png")
    some = replace(dataset, samples=[gone, dataset.samples[1]])
    with pytest.raises(DataError, match=r"gone\.png"):
        training_pictures(some, tiny_config, 4)
    skipping = tiny_config.with_settings(skip_bad_images=True)
    assert len(training_pictures(some, skipping, 3)) == 3
    with pytest.raises(DataError, match="none of the 1 training images"):
        training_pictures(replace(dataset, samples=[gone]), skipping, 1)
    with pytest.raises(DataError, match="no images"):
        training_pictures(replace(dataset, samples=[]), tiny_config, 1)
