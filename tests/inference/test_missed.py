import pytest
import torch

from deformable_detr.core.detections import Detections
from deformable_detr.inference.missed import nearest_query, smallest_at


def detections(*rows):
    """Rows (left, top, right, bottom, score)."""
    values = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    return Detections(values[:, :4], values[:, 4], torch.zeros(len(rows), dtype=torch.long), torch.arange(len(rows)))


def test_the_smallest_box_that_holds_a_place():
    found = detections((0, 0, 100, 80, 0.9), (10, 10, 40, 60, 0.8), (200, 0, 220, 30, 0.7))
    assert smallest_at(found, (20.0, 20.0)).query_ids.tolist() == [1]
    assert smallest_at(found, (90.0, 70.0)).query_ids.tolist() == [0]
    assert smallest_at(found, (210.0, 30.0)).query_ids.tolist() == [2]
    assert len(smallest_at(found, (150.0, 10.0))) == 0
    assert len(smallest_at(detections(), (1.0, 1.0))) == 0


def test_a_box_that_holds_the_place_comes_before_a_nearer_centre():
    every = detections((0, 0, 50, 40, 0.2), (0, 0, 30, 30, 0.3), (60, 0, 70, 10, 0.9))
    one, missed = nearest_query(every, detections(), (20.0, 25.0), 0.5)
    assert one.query_ids.tolist() == [1]
    assert (missed.distance_px, missed.score, missed.overlapped) == (0.0, pytest.approx(0.3), None)
    assert missed.reason() == "the score 0.30 of its best class is below the threshold 0.50"


def test_no_box_holds_the_place():
    every = detections((0, 0, 10, 10, 0.9), (100, 100, 120, 110, 0.1))
    one, missed = nearest_query(every, detections((0, 0, 10, 10, 0.9)), (13.0, 14.0), 0.5)
    assert one.query_ids.tolist() == [0]
    assert missed.distance_px == pytest.approx(5.0)
    assert missed.reason() == (
        "no query's box holds 13,14: the nearest ends 5 pixels away; detection 1 has nearly the same box (IoU 1.00), "
        "and only one query of an object is meant to have a high score"
    )
    record = missed.record()
    assert (record["at"], record["distance_px"], record["iou_with_detection"]) == ([13.0, 14.0], 5.0, 1.0)


def test_a_query_beside_a_detection():
    every = detections((0, 0, 20, 20, 0.3), (0, 0, 21, 15, 0.8))
    _, missed = nearest_query(every, detections((0, 0, 21, 15, 0.8)), (2.0, 18.0), 0.5)
    assert missed.overlapped == 0
    assert 0.5 < missed.overlap < 1
    assert "detection 1 has nearly the same box" in missed.reason()
