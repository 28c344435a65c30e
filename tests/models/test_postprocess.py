import math

import pytest
import torch

from deformable_detr.core.types import Predictions
from deformable_detr.models.postprocess import scores_of, to_detections

BATCH, QUERIES, CLASSES = 3, 7, 5
SIZES_WH = [(640, 480), (33, 90), (7, 1000)]


def predictions(dtype: torch.dtype = torch.float32) -> Predictions:
    generator = torch.Generator().manual_seed(1)
    return Predictions(
        torch.randn(BATCH, QUERIES, CLASSES, generator=generator).to(dtype),
        torch.rand(BATCH, QUERIES, 4, generator=generator).to(dtype),
    )


def slowly(given: Predictions, image: int, size_wh: tuple[int, int], limit: int) -> list[tuple]:
    """(score, class, query, box) one pair at a time."""
    width, height = size_wh
    pairs = []
    for query in range(given.logits.shape[1]):
        cx, cy, w, h = given.boxes[image, query].tolist()
        box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        for class_id in range(given.logits.shape[2]):
            score = 1 / (1 + math.exp(-given.logits[image, query, class_id].item()))
            pairs.append((score, class_id, query, box))
    return sorted(pairs, reverse=True)[:limit]


@pytest.mark.parametrize("limit", [1, 4, 34, 35, 100])
def test_equals_the_slow_way(limit):
    given = predictions()
    found = to_detections(given, SIZES_WH, max_detections=limit)
    assert len(found) == BATCH
    for image, size_wh in enumerate(SIZES_WH):
        expected = slowly(given, image, size_wh, limit)
        assert len(found[image].scores) == min(limit, QUERIES * CLASSES)
        torch.testing.assert_close(found[image].scores, torch.tensor([score for score, *_ in expected]))
        assert found[image].class_ids.tolist() == [class_id for _, class_id, *_ in expected]
        assert found[image].query_ids.tolist() == [query for *_, query, _ in expected]
        torch.testing.assert_close(found[image].boxes_xyxy, torch.tensor([box for *_, box in expected]))


def test_one_query_may_appear_with_several_classes():
    logits = torch.full((1, 2, 3), -5.0)
    logits[0, 1] = torch.tensor([2.0, -1.0, 3.0])
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.25]]])
    (found,) = to_detections(Predictions(logits, boxes), [(200, 80)], max_detections=3)
    assert found.class_ids.tolist() == [2, 0, 1]
    assert found.query_ids.tolist() == [1, 1, 1]
    assert found.boxes_xyxy.tolist() == [[0, 30, 100, 50]] * 3


def test_threshold_keeps_what_reaches_it():
    logits = torch.tensor([[[0.0, -1.0], [3.0, -0.01]]])
    given = Predictions(logits, torch.rand(1, 2, 4))
    (found,) = to_detections(given, [(9, 5)], threshold=0.5)
    assert found.class_ids.tolist() == [0, 0]
    assert found.query_ids.tolist() == [1, 0]
    (none,) = to_detections(given, [(9, 5)], threshold=0.99)
    assert none.boxes_xyxy.shape == (0, 4)
    assert none.scores.shape == none.class_ids.shape == none.query_ids.shape == (0,)


def test_boxes_may_leave_the_image():
    given = Predictions(torch.zeros(1, 1, 1), torch.tensor([[[0.0, 1.0, 0.5, 0.5]]]))
    (found,) = to_detections(given, [(100, 60)])
    assert found.boxes_xyxy.tolist() == [[-25, 45, 25, 75]]


def test_half_precision_is_answered_in_single():
    found = to_detections(predictions(torch.bfloat16), SIZES_WH)
    assert all(image.scores.dtype == image.boxes_xyxy.dtype == torch.float32 for image in found)


def test_no_queries():
    given = Predictions(torch.zeros(1, 0, 4), torch.zeros(1, 0, 4))
    assert len(to_detections(given, [(9, 5)])[0].scores) == 0


def test_sizes_must_match():
    with pytest.raises(ValueError, match="3 images but 1 sizes"):
        to_detections(predictions(), [(9, 5)])
    with pytest.raises(ValueError, match="max_detections is 0"):
        to_detections(predictions(), SIZES_WH, max_detections=0)


@pytest.mark.parametrize("limit", [3, 7, 100])
def test_with_a_softmax_each_query_is_one_thing(limit):
    """The last row is no object: neither a class, nor left out of the softmax."""
    given = predictions()
    found = to_detections(given, SIZES_WH, max_detections=limit, class_scores="softmax")
    for image in range(BATCH):
        expected = []
        for query in range(QUERIES):
            row = [math.exp(logit) for logit in given.logits[image, query].tolist()]
            scores = [one / sum(row) for one in row[:-1]]
            expected.append((max(scores), scores.index(max(scores)), query))
        expected = sorted(expected, reverse=True)[:limit]
        assert found[image].query_ids.tolist() == [query for _, _, query in expected]
        assert found[image].class_ids.tolist() == [class_id for _, class_id, _ in expected]
        assert found[image].scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)


@pytest.mark.parametrize("class_scores", ["sigmoid", "softmax"])
def test_of_equal_scores_the_first_are_kept_whatever_their_number(class_scores):
    """Logits of a few values: the best 100 end amid equal ones, and are still the first 100 of the best 300."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randint(-2, 3, (2, 331, 7), generator=generator).float()
    logits[1, :, 2:] = -200.0  # scores that underflow to 0 are equal, too
    given = Predictions(logits, torch.rand(2, 331, 4, generator=generator))
    scores = scores_of(logits, class_scores)
    sizes_wh = [(64, 48), (33, 90)]
    for most in (11, 100, 300, 331):
        found = to_detections(given, sizes_wh, max_detections=most, class_scores=class_scores)
        for image, detections in enumerate(found):
            pairs = [
                (-score, query, class_id)
                for query, row in enumerate(scores[image].tolist())
                for class_id, score in enumerate(row)
            ]
            if class_scores == "softmax":
                first = {}
                for pair in sorted(pairs):
                    first.setdefault(pair[1], pair)
                pairs = list(first.values())
            expected = sorted(pairs)[:most]
            assert detections.query_ids.tolist() == [query for _, query, _ in expected]
            assert detections.class_ids.tolist() == [class_id for *_, class_id in expected]
            assert detections.scores.tolist() == [-score for score, *_ in expected]


def test_scores_are_in_float32():
    logits = predictions(torch.bfloat16).logits
    assert scores_of(logits, "sigmoid").shape == (BATCH, QUERIES, CLASSES)
    assert scores_of(logits, "softmax").shape == (BATCH, QUERIES, CLASSES - 1)
    assert scores_of(logits, "softmax").dtype == torch.float32
    assert (scores_of(logits, "softmax").sum(-1) < 1).all()
