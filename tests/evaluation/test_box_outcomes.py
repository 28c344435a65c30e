"""Held against a matching written in plain words: best score first, the best free object of its class."""

import numpy as np
import pytest

from deformable_detr.evaluation.box_outcomes import OVERLAP, fault, iou_with, match
from deformable_detr.evaluation.coco_metrics import coco_ground_truth, evaluated, to_coco_results
from tests.report.cases import random_case, sample


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inside = width * height
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def slow_match(found, one):
    """Outcome of every detection, "hit", "false" or "crowd", and the score each object was found with."""
    outcomes, found_at = {}, [-1.0] * len(one.class_ids)
    for row in sorted(range(len(found.scores)), key=lambda row: -found.scores[row].item()):
        box, class_id = found.boxes_xyxy[row].tolist(), found.class_ids[row].item()
        best, best_overlap = None, OVERLAP
        for place, truth in enumerate(one.boxes_xyxy.tolist()):
            free = one.class_ids[place] == class_id and not one.is_crowd[place] and found_at[place] < 0
            if free and overlap(box, truth) >= best_overlap:
                best, best_overlap = place, overlap(box, truth)
        if best is not None:
            outcomes[row], found_at[best] = "hit", found.scores[row].item()
            continue
        crowds = [t for t, c, k in zip(one.boxes_xyxy, one.class_ids, one.is_crowd, strict=True) if k and c == class_id]
        own = (box[2] - box[0]) * (box[3] - box[1])

        def inside(t, box=box, own=own):
            sides = min(box[2], t[2]) - max(box[0], t[0]), min(box[3], t[3]) - max(box[1], t[1])
            return max(0, sides[0]) * max(0, sides[1]) / own

        outcomes[row] = "crowd" if any(inside(t) >= OVERLAP for t in crowds) else "false"
    return outcomes, found_at


def rows(*columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_slow_matching(seed):
    found, dataset = random_case(seed)
    evaluation = evaluated(coco_ground_truth(dataset), to_coco_results(found, dataset))
    boxes, truth = match(evaluation, found, dataset)
    expected_boxes, expected_truth = [], []
    for image, (one, own) in enumerate(zip(found, dataset.samples, strict=True)):
        outcomes, found_at = slow_match(one, own)
        for row in range(len(one.scores)):
            if outcomes[row] != "crowd":
                expected_boxes.append((image, row, one.class_ids[row].item(), outcomes[row] == "hit"))
        for row in range(len(own.class_ids)):
            if not own.is_crowd[row]:
                expected_truth.append((image, row, own.class_ids[row], pytest.approx(found_at[row])))
    assert rows(boxes.image, boxes.row, boxes.class_ids, boxes.is_hit) == expected_boxes
    assert rows(truth.image, truth.row, truth.class_ids, truth.found_at) == expected_truth
    assert len(boxes.scores) == len(boxes.row)
    assert len(truth.areas) == len(truth.row)


def test_the_cases_have_everything_in_them():
    """Else the test above would say little."""
    seen = set()
    for seed in range(12):
        for one, own in zip(*(lambda case: (case[0], case[1].samples))(random_case(seed)), strict=True):
            outcomes, found_at = slow_match(one, own)
            seen |= set(outcomes.values()) | {"missed" if score < 0 else "found" for score in found_at}
            seen |= {"empty"} if not len(own.class_ids) else set()
    assert seen == {"hit", "false", "crowd", "missed", "found", "empty"}


def test_each_fault_has_its_name():
    # Two objects: class 0 at the left, class 1 at the right; a crowd of class 2 below.
    one = sample([[0, 0, 20, 10], [50, 0, 70, 10], [0, 50, 90, 90]], [0, 1, 2], is_crowd=[0, 0, 1])
    cases = {
        (0, 0, 20, 10): ("duplicate", 0, 1.0),
        (0, 0, 20, 4): ("poor box", 0, 0.4),
        (50, 0, 70, 8): ("wrong class", 1, 0.8),
        (50, 0, 70, 2): ("wrong class, poor box", 1, 0.2),
        (200, 0, 230, 30): ("background", None, 0.0),
        (0, 50, 90, 90): ("background", None, 0.0),
    }
    for box, (kind, place, share) in cases.items():
        assert fault(np.array(box, dtype=np.float64), 0, one) == (kind, place, pytest.approx(share)), box
    empty = sample([], [])
    assert fault(np.array([0.0, 0, 5, 5]), 0, empty) == ("background", None, 0.0)


def test_boxes_without_extent_overlap_nothing():
    boxes = np.array([[1.0, 1, 1, 1], [0, 0, 4, 2]])
    np.testing.assert_allclose(iou_with(np.array([1.0, 1, 1, 1]), boxes), [0, 0])
    np.testing.assert_allclose(iou_with(np.array([0.0, 0, 2, 2]), boxes), [0, 0.5])
