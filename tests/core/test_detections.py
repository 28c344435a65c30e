import json
import pickle
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from deformable_detr.core.detections import Detection, Detections
from deformable_detr.core.errors import ConfigError

CLASSES, CATEGORY_IDS = ("cat", "hedgehog", "dog"), (7, 3, 5)
BOXES = [
    [1.5, 2, 31, 22.25],
    [-3, 4, 10, 40],
    [0, 0, 5, 6],
    [7, 8, 9, 10],
    [100, 50, 300, 70],
    [2, 3, 4, 5],
    [6, 7, 8, 9],
]
SCORES = [0.9375, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625]
CLASS_IDS = [2, 0, 1, 1, 2, 0, 1]
QUERY_IDS = [4, 4, 0, 9, 2, 1, 7]


def found(count: int = 7) -> Detections:
    return Detections(
        torch.tensor(BOXES)[:count],
        torch.tensor(SCORES)[:count],
        torch.tensor(CLASS_IDS)[:count],
        torch.tensor(QUERY_IDS)[:count],
        classes=CLASSES,
        category_ids=CATEGORY_IDS,
    )


def rows(detections: Detections) -> list[Detection]:
    """The objects, after a look at whether all columns tell of them."""
    assert detections.boxes_xyxy.shape == (len(detections), 4)
    assert len(detections.scores) == len(detections.class_ids) == len(detections.query_ids) == len(detections)
    assert (detections.classes, detections.category_ids) == (CLASSES, CATEGORY_IDS)
    return list(detections)


def test_iteration_gives_objects_in_plain_numbers():
    objects = rows(found())
    assert len(objects) == len(found()) == 7
    assert objects[1] == Detection(
        box_xyxy=(-3.0, 4.0, 10.0, 40.0), score=0.75, class_id=0, class_name="cat", query_id=4
    )
    assert [one.class_name for one in objects] == found().class_names == [CLASSES[i] for i in CLASS_IDS]
    assert [list(one.box_xyxy) for one in objects] == BOXES
    assert [(one.score, one.class_id, one.query_id) for one in objects] == list(
        zip(SCORES, CLASS_IDS, QUERY_IDS, strict=True)
    )
    assert all(type(number) is float for one in objects for number in (*one.box_xyxy, one.score))
    assert all(type(number) is int for one in objects for number in (one.class_id, one.query_id))


@pytest.mark.parametrize("position", [0, 3, 6, -1, -7, np.int64(2)])
def test_a_position_gives_one_object(position):
    assert found()[position] == rows(found())[position]


@pytest.mark.parametrize("position", [7, -8, 100])
def test_a_position_beyond_the_end_names_both_numbers(position):
    with pytest.raises(IndexError, match=f"there is no detection {position}: there are 7"):
        found()[position]


@pytest.mark.parametrize(
    "key",
    [slice(2), slice(1, 6, 2), slice(None, None, -1), slice(-3, None), slice(5, 1, -2), slice(9, 12), slice(3, 3)],
    ids=str,
)
def test_slices_are_those_of_a_list(key):
    assert rows(found()[key]) == rows(found())[key]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, tuple])
def test_positions_and_masks_in_any_container(kind):
    objects = rows(found())
    assert rows(found()[kind([5, 0, -1, 5])]) == [objects[5], objects[0], objects[6], objects[5]]
    mask = [True, False, False, True, True, False, False]
    assert rows(found()[kind(mask)]) == [objects[0], objects[3], objects[4]]
    assert rows(found()[kind([False] * 7)]) == rows(found()[kind([])]) == []


def test_bytes_are_positions_and_no_mask():
    for kind in (torch.tensor([1, 0, 3], dtype=torch.uint8), np.array([1, 0, 3], dtype=np.uint8)):
        objects = rows(found())
        assert rows(found()[kind]) == [objects[1], objects[0], objects[3]]


def test_a_comparison_is_a_mask():
    assert [one.score for one in found()[found().scores >= 0.5]] == [0.9375, 0.75, 0.5]


def test_what_chooses_nothing_sensible_is_refused():
    with pytest.raises(IndexError, match="a mask of 3 truth values for 7 detections"):
        found()[[True, False, True]]
    with pytest.raises(IndexError, match="positions from 2 to 7 of 7 detections"):
        found()[[7, 2]]
    with pytest.raises(TypeError, match=r"not by \(2,\) in torch.float32"):
        found()[torch.tensor([0.5, 1.0])]
    for key in (torch.zeros(2, 3, dtype=torch.int64), torch.tensor(3)):
        with pytest.raises(TypeError, match="of one axis"):
            found()[key]


def test_names_come_with_the_classes():
    bare = Detections(torch.tensor(BOXES), torch.tensor(SCORES), torch.tensor(CLASS_IDS))
    assert bare.class_names[:3] == ["class 2", "class 0", "class 1"]
    assert bare[0].class_name == "class 2"
    assert bare.query_ids.tolist() == [-1] * 7
    with pytest.raises(ValueError, match="the category ids of 7 detections are not known"):
        bare.to_coco(1)
    named = bare.with_classes(list(CLASSES), list(CATEGORY_IDS))
    assert (named.class_names, named.category_ids) == (found().class_names, CATEGORY_IDS)
    assert found().with_classes(("a", "b", "c"), (1, 2, 3)).query_ids.tolist() == QUERY_IDS
    with pytest.raises(ValueError, match="class ids run from 0 to 2, but there are names for 2 classes"):
        bare.with_classes(("cat", "dog"), (1, 2))
    with pytest.raises(ValueError, match="3 class names but 2 category ids"):
        bare.with_classes(CLASSES, (1, 2))


def test_coco_results_are_exact_and_json():
    results = found().to_coco(42)
    assert results[0] == {"image_id": 42, "category_id": 5, "bbox": [1.5, 2.0, 29.5, 20.25], "score": 0.9375}
    assert [one["category_id"] for one in results] == [CATEGORY_IDS[i] for i in CLASS_IDS]
    assert [one["bbox"] for one in results] == [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in BOXES]
    assert json.loads(json.dumps(results)) == results
    assert found(0).to_coco(42) == Detections(torch.zeros(0, 4), torch.zeros(0), found(0).class_ids).to_coco(42) == []


def test_processes_can_exchange_it():
    again = pickle.loads(pickle.dumps(found()))
    assert rows(again) == rows(found())
    assert len(again) == 7
    # Names are not written again for every image.
    many = [Detections(torch.zeros(0, 4), torch.zeros(0), found(0).class_ids, classes=("name" * 500,)) for _ in "ab"]
    shared = [one.with_classes(found().classes, CATEGORY_IDS) for one in many]
    assert pickle.dumps(shared).count(b"hedgehog") == 1


def test_the_best_few_can_be_read():
    lines = repr(found()).splitlines()
    assert lines == [
        "7 detections",
        "  dog       0.94  (2, 2, 31, 22)",
        "  cat       0.75  (-3, 4, 10, 40)",
        "  hedgehog  0.50  (0, 0, 5, 6)",
        "  hedgehog  0.38  (7, 8, 9, 10)",
        "  dog       0.25  (100, 50, 300, 70)",
        "  and 2 more with lower scores",
    ]
    assert repr(found()[::-1]).splitlines() == lines  # whatever the order
    assert repr(found(1)) == "1 detection\n  dog  0.94  (2, 2, 31, 22)"
    assert repr(found(0)) == "no detections"
    assert str(found()[0]) == "dog  0.94  (2, 2, 31, 22)"


def test_moving_to_the_cpu_keeps_everything():
    assert rows(found().cpu()) == rows(found())


def test_supervision_gets_what_it_calls_them(monkeypatch):
    fake = ModuleType("supervision")
    fake.Detections = SimpleNamespace
    monkeypatch.setitem(sys.modules, "supervision", fake)
    given = found().to_supervision()
    assert given.xyxy.tolist() == BOXES
    assert given.confidence.tolist() == SCORES
    assert given.class_id.tolist() == CLASS_IDS
    assert given.data["class_name"].tolist() == found().class_names
    nothing = found(0).to_supervision()
    assert (nothing.xyxy.shape, nothing.data["class_name"].shape) == ((0, 4), (0,))
    assert nothing.data["class_name"].dtype.kind == "U"


def test_without_supervision_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="`pip install supervision` brings it"):
        found().to_supervision()


@pytest.mark.slow
def test_supervision_loads_when_it_is_asked_for():
    code = "import sys, deformable_detr.core.detections; print('supervision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
