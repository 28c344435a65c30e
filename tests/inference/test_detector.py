from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import deformable_detr
from deformable_detr.core.errors import CheckpointError, DataError
from deformable_detr.inference.detector import Detector
from deformable_detr.weights.checkpoint import Checkpoint, save


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(one, other):
    # Scores of an untrained model are close together: match boxes by score order and compare all of it.
    return all(torch.allclose(a.float(), b.float(), atol=1e-4) for a, b in zip(one, other, strict=True))


def test_detections_are_in_pixels_of_each_image_best_first(detector):
    found = detector.predict([picture(71, 40, 0), picture(40, 90, 1)], threshold=0.0)
    assert [len(one.scores) for one in found] == [33, 33]  # 11 queries of 3 classes
    for one, (width, height) in zip(found, [(71, 40), (40, 90)], strict=True):
        assert (one.scores.diff() <= 0).all()
        centres = (one.boxes_xyxy[:, :2] + one.boxes_xyxy[:, 2:]) / 2
        assert ((centres >= 0) & (centres <= torch.tensor([width, height]))).all()
        assert set(one.class_ids.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_no_result_depends_on_the_neighbours(detector, batch_size):
    pictures = [picture(*size, seed) for seed, size in enumerate([(50, 40), (50, 40), (90, 45), (50, 40), (50, 40)])]
    alone = [detector.predict([one], threshold=0.0)[0] for one in pictures]
    together = detector.predict(pictures, threshold=0.0, batch_size=batch_size)
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_files_pictures_and_arrays_are_the_same(detector, tmp_path):
    image = picture(53, 31, 2)
    image.save(tmp_path / "a.png")
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)]
    found = detector.predict(given, threshold=0.0)
    assert all(same(found[0], other) for other in found[1:])
    gray = np.asarray(image.convert("L"))
    assert same(*detector.predict([gray, Image.fromarray(gray)], threshold=0.0))


def test_thresholds_and_limits_only_leave_out(detector):
    image = picture(53, 31, 2)
    (everything,) = detector.predict([image], threshold=0.0)
    (few,) = detector.predict([image], threshold=0.0, max_detections=4)
    assert same(few, [part[:4] for part in everything])
    threshold = float(everything.scores[10])
    (good,) = detector.predict([image], threshold=threshold)
    assert len(good.scores) == int((everything.scores >= threshold).sum())
    assert detector.predict([]) == []


def test_predict_each_reads_as_it_goes(detector):
    read = []

    def pictures():
        for number in range(4):
            read.append(number)
            yield picture(40, 30, number)

    results = detector.predict_each(pictures(), threshold=0.0)
    next(results)
    assert len(read) == 2
    assert len(list(results)) == 3


@pytest.mark.parametrize(
    "array", [np.zeros((4, 5, 4), np.uint8), np.zeros((3, 4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.float32)]
)
def test_arrays_that_are_no_images_are_refused(detector, array):
    with pytest.raises(ValueError, match=r"an array must be \(height, width, 3\)"):
        detector.predict([array])


def test_an_image_that_is_not_there_is_named(detector, tmp_path):
    with pytest.raises(DataError, match=r"nope\.jpg"):
        detector.predict([tmp_path / "nope.jpg"])


def test_loading_needs_the_file_alone(detector, tiny_config, tmp_path):
    path = tmp_path / "c.safetensors"
    save(
        Checkpoint(
            weights=detector.model.state_dict(),
            model=replace(tiny_config.model, num_classes=3),
            classes=detector.classes,
            category_ids=detector.category_ids,
            preprocessing=detector.preprocessing,
        ),
        path,
    )
    loaded = deformable_detr.load(path, device="cpu")
    assert isinstance(loaded, Detector)
    assert (loaded.classes, loaded.category_ids) == (detector.classes, detector.category_ids)
    image = picture(53, 31, 2)
    assert same(*(one.predict([image], threshold=0.0)[0] for one in (loaded, detector)))
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        deformable_detr.load(tmp_path / "nope")
