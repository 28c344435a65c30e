import base64
import io

import numpy as np
import pytest
from PIL import Image

from deformable_detr.evaluation.analysis import analyse
from deformable_detr.report.mistakes import _cut, worst_examples
from tests.evaluation.test_analysis import evaluation
from tests.report.cases import dataset, detections, random_case, sample


@pytest.fixture
def photos(tmp_path):
    """Two photos: one mistake of each kind on the first, none on the second."""
    samples, found = [], []
    for number in range(2):
        path = tmp_path / f"photo {number}.png"
        Image.new("RGB", (300, 200), (90, 120, 40)).save(path)
        samples.append(
            sample(
                [[20, 20, 80, 80], [150, 20, 240, 120]], [0, 1], image_id=number + 1, path=path, first_id=1 + 2 * number
            )
        )
        found.append(detections([[20, 20, 80, 80], [150, 20, 240, 120]], [0.9, 0.8], [0, 1]))
    found[0] = detections([[20, 20, 80, 80], [100, 150, 140, 190], [150, 20, 240, 120]], [0.9, 0.85, 0.3], [0, 0, 1])
    return found, dataset(*samples)


def opened(example):
    return Image.open(io.BytesIO(base64.b64decode(example.picture.removeprefix("data:image/jpeg;base64,"))))


def test_the_worst_are_shown_and_explained(photos):
    found, data = photos
    analysis = analyse(evaluation(found, data))._replace(threshold=0.5)
    calls = []
    examples = worst_examples(analysis, found, data, on_progress=lambda *call: calls.append(call))
    (false,), (missed,) = examples.false_positives, examples.misses
    assert (false.title, false.explanation, false.image_name) == ("cat 0.85", "nothing is there", "photo 0.png")
    assert (missed.title, missed.explanation) == ("dog, 90 x 100 px", "found with a score of 0.30 only")
    assert calls == [(1, 2), (2, 2)]
    assert opened(false).size == false.size_wh
    assert max(false.size_wh) == 300
    # There is more to see than the ground: boxes are drawn.
    assert len(np.unique(np.asarray(opened(missed)).reshape(-1, 3), axis=0)) > 30


def test_a_photo_that_is_gone_is_named(photos):
    found, data = photos
    data.samples[0].path.unlink()
    examples = worst_examples(analyse(evaluation(found, data))._replace(threshold=0.5), found, data)
    assert (examples.false_positives, examples.misses) == ([], [])
    (why,) = examples.unreadable
    assert "photo 0.png" in why


def test_a_photo_is_shown_twice_at_most(tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    boxes = [[20 * i, 10, 20 * i + 15, 25] for i in range(9)]
    data = dataset(sample(boxes, [0] * 9, path=tmp_path / "a.png"))
    found = [detections([[250, 150, 280, 180]] * 5, [0.9] * 5, [1] * 5)]
    examples = worst_examples(analyse(evaluation(found, data)), found, data)
    assert (len(examples.false_positives), len(examples.misses)) == (2, 2)
    assert examples.misses[0].explanation == "found at no score"


@pytest.mark.parametrize("size_wh", [(300, 200), (40, 500), (7, 5)])
def test_the_window_holds_the_box_and_stays_in_the_image(size_wh):
    rng = np.random.default_rng(0)
    for _ in range(200):
        first, second = rng.uniform(0, size_wh, 2), rng.uniform(0, size_wh, 2)
        box = np.concatenate([np.minimum(first, second), np.maximum(first, second)])
        left, top, right, bottom = _cut(box, size_wh)
        assert 0 <= left < right <= size_wh[0]
        assert 0 <= top < bottom <= size_wh[1]
        assert left <= box[0] + 1
        assert top <= box[1] + 1
        assert right >= box[2] - 1
        assert bottom >= box[3] - 1


def test_mistakes_by_chance_can_all_be_shown(tmp_path):
    found, data = random_case(3)
    for number, one in enumerate(data.samples):
        object.__setattr__(one, "path", tmp_path / f"{number}.png")
        Image.new("RGB", one.size_wh, (number, 99, 9)).save(one.path)
    examples = worst_examples(analyse(evaluation(found, data)), found, data)
    assert examples.unreadable == []
    assert examples.false_positives
    assert examples.misses
