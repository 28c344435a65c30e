import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.core.detections import Detections
from deformable_detr.evaluation.analysis import analyse
from deformable_detr.report.looks import looks_of
from tests.evaluation.test_analysis import evaluation
from tests.inference.test_explain import NoAttention, detector_of, picture
from tests.report.cases import dataset, sample

NAMES = ("ant", "bee", "cat", "dog", "emu")


@pytest.fixture
def photo(tmp_path):
    picture(300, 200).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def case(detector, path, *, missed=True):
    """The detector's own detections; the best is right, the second is not, and one object is missed."""
    found = detector.predict(str(path), threshold=0.0)[:2]
    found = Detections(found.boxes_xyxy, torch.tensor([0.9, 0.9]), found.class_ids, found.query_ids)
    boxes, classes = [found.boxes_xyxy[0].tolist()], [int(found.class_ids[0])]
    if missed:
        boxes.append([280.0, 4.0, 296.0, 16.0])
        classes.append((int(found.class_ids[1]) + 1) % 5)
    data = dataset(sample(boxes, classes, path=path), classes=NAMES, category_ids=(1, 2, 3, 4, 5))
    return analyse(evaluation([found], data)), [found], data


@pytest.mark.parametrize("name", ["two_stage", "detr"])
def test_a_hit_a_mistake_and_a_miss(photo, name):
    detector = detector_of(name)
    analysis, found, data = case(detector, photo)
    # All that the network says in this image is explained, whatever the scores that the case has given it.
    found[0].scores.copy_(torch.tensor([0.01, 0.01]))
    looks = looks_of(detector, analysis, found, data)
    assert looks.note == ""
    classes = [NAMES[class_id] for class_id in found[0].class_ids.tolist()]
    missed = NAMES[(int(found[0].class_ids[1]) + 1) % 5]
    assert [one.title for one in looks.shown] == [
        f"Best hit: {classes[0]}",
        f"Worst false positive: {classes[1]}",
        f"Missed: {missed}",
    ]
    for one in looks.shown:
        assert one.image_name == "image.png"
        assert "weight" in one.words
        kind, text = one.picture.split(",")
        assert kind == "data:image/jpeg;base64"
        assert len(text) < 250_000
        drawn = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (drawn.size, max(drawn.size)) == (one.size_wh, 360)
    assert looks.shown[2].words.startswith("No detection at 288,10: ")


def test_nothing_found_and_nothing_missed(photo):
    data = dataset(sample([], [], path=photo), classes=NAMES, category_ids=(1, 2, 3, 4, 5))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    looks = looks_of(detector_of("base"), analyse(evaluation([nothing], data)), [nothing], data)
    assert (looks.shown, looks.note) == ([], "")


def test_what_cannot_be_explained_is_said(photo):
    detector = detector_of("base")
    analysis, found, data = case(detector, photo)
    looks = looks_of(detector.around(NoAttention()), analysis, found, data)
    assert looks.shown == []
    assert looks.note.startswith("Not shown: a NoAttention cannot be explained: it has no decoder layer")
    photo.unlink()
    looks = looks_of(detector, analysis, found, data)
    assert looks.shown == []
    assert "image.png" in looks.note


def test_a_detection_that_is_not_there_alone_is_said(photo):
    detector = detector_of("refine")
    analysis, found, data = case(detector, photo, missed=False)
    found[0].boxes_xyxy.add_(1000.0)
    looks = looks_of(detector, analysis, found, data)
    assert looks.shown == []
    assert looks.note == "Not shown: a detection that this image has in a batch, and not alone."


def test_the_colours_of_effects_are_kept(photo):
    """Dots are the smallest things of the picture, and its only colours here."""
    Image.linear_gradient("L").resize((300, 200)).save(photo)
    detector = detector_of("two_stage")
    analysis, found, data = case(detector, photo)
    found[0].scores.copy_(torch.tensor([0.01, 0.01]))
    first = looks_of(detector, analysis, found, data).shown[0]
    drawn = Image.open(io.BytesIO(base64.b64decode(first.picture.split(",")[1]))).convert("RGB")
    red, _, blue = np.moveaxis(np.asarray(drawn).astype(int), 2, 0)
    assert (abs(red - blue) > 60).sum() > 20
