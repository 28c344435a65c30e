"""Matching against trying every permutation."""

import itertools
import math

import pytest
import torch

from deformable_detr.core.boxes import cxcywh_to_xyxy, generalized_iou
from deformable_detr.core.errors import TrainingError
from deformable_detr.core.types import Predictions, Target
from deformable_detr.models.losses import matching
from deformable_detr.models.losses.losses import class_cost
from deformable_detr.models.losses.matching import Costs, match

COSTS = Costs(2.0, 5.0, 2.0, 0.25, 2.0)


def make_predictions(batch=3, queries=4, classes=5):
    return Predictions(torch.randn(batch, queries, classes), torch.rand(batch, queries, 4) * 0.5 + 0.1)


def make_targets(*counts, classes=5):
    return [Target(torch.randint(classes, (n,)), torch.rand(n, 4) * 0.5 + 0.1) for n in counts]


def cost_of(predictions, image, query, target, index):
    by_class = class_cost(predictions.logits[image, query], alpha=0.25, gamma=2.0)[target.labels[index]]
    by_distance = (predictions.boxes[image, query] - target.boxes[index]).abs().sum()
    a, b = (cxcywh_to_xyxy(box[None]) for box in (predictions.boxes[image, query], target.boxes[index]))
    return float(2 * by_class + 5 * by_distance - 2 * generalized_iou(a, b)[0])


def test_no_permutation_is_cheaper():
    predictions, targets = make_predictions(), make_targets(3, 0, 2)
    assignments = match({"decoder.0": (predictions, targets)}, COSTS)["decoder.0"]
    assert [len(one.queries) for one in assignments] == [3, 0, 2]
    for image, (assignment, target) in enumerate(zip(assignments, targets, strict=True)):
        count = len(target.labels)
        found = sum(cost_of(predictions, image, q, target, o) for q, o in zip(*assignment, strict=True))
        cheapest = min(
            sum(cost_of(predictions, image, q, target, o) for o, q in enumerate(order))
            for order in itertools.permutations(range(4), count)
        )
        assert found == pytest.approx(cheapest, abs=1e-4)
        assert sorted(assignment.objects) == list(range(count))


def test_more_objects_than_queries():
    predictions, targets = make_predictions(batch=1, queries=2), make_targets(6)
    (assignment,) = match({"a": (predictions, targets)}, COSTS)["a"]
    assert sorted(assignment.queries) == [0, 1]
    assert len(set(assignment.objects)) == 2


def test_stages_do_not_know_each_other():
    first, second, targets = make_predictions(), make_predictions(queries=7), make_targets(3, 1, 2)
    together = match({"a": (first, targets), "b": (second, targets)}, COSTS)
    for name, predictions in (("a", first), ("b", second)):
        alone = match({name: (predictions, targets)}, COSTS)[name]
        for one, other in zip(together[name], alone, strict=True):
            assert (one.queries == other.queries).all()
            assert (one.objects == other.objects).all()


def test_a_prediction_that_is_not_finite_is_an_error_with_its_place():
    predictions, targets = make_predictions(), make_targets(1, 2, 1)
    predictions.boxes[1, 3, 2] = float("nan")
    with pytest.raises(TrainingError, match=r"decoder.2 for image 1 .* not finite"):
        match({"decoder.2": (predictions, targets)}, COSTS)


@pytest.mark.parametrize(
    ("part", "expected"), [("class_", (0.25 - 0.75) * 0.25 * math.log(2)), ("l1", 0.6), ("giou", -0.25)]
)
def test_each_part_of_the_cost_has_its_own_weight(part, expected):
    """A score of 1/2, and a box of which the object is a quarter: GIoU is its share, 0.25."""
    weights = {"class_": 0.0, "l1": 0.0, "giou": 0.0} | {part: 3.0}
    logits, boxes = torch.zeros(1, 2), torch.tensor([[0.5, 0.5, 0.6, 0.6]])
    target = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.3, 0.3]]))
    cost = matching._cost(logits, boxes, target, Costs(**weights, alpha=0.25, gamma=2.0))
    assert cost.item() == pytest.approx(3 * expected, rel=1e-4)


def test_with_position_the_class_cost_takes_the_score_times_the_overlap():
    """Of two boxes the first fits (GIoU 1) and the second is a quarter of the object (GIoU 0.25, 0.625 of the best)."""
    logits = torch.full((2, 3), math.log(4), dtype=torch.float32)
    boxes = torch.tensor([[0.5, 0.5, 0.6, 0.4], [0.5, 0.5, 0.3, 0.2]])
    target = Target(torch.tensor([1]), boxes[:1])
    costs = Costs(1.0, 0.0, 0.0, 0.25, 2.0, by_position=True)
    found = matching._cost(logits, boxes, target, costs)[:, 0].tolist()
    for cost, p in zip(found, (0.8, 0.8 * math.sqrt(0.625)), strict=True):
        assert cost == pytest.approx(-0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p), rel=1e-4)


def test_position_is_that_of_the_own_object_among_several_of_one_class():
    boxes = torch.tensor([[0.2, 0.3, 0.2, 0.1], [0.7, 0.6, 0.2, 0.3]])
    target = Target(torch.tensor([1, 1]), boxes)
    logits = torch.zeros(1, 2, 4)
    costs = Costs(1.0, 0.0, 0.0, 0.25, 2.0, by_position=True)
    (assignment,) = match({"a": (Predictions(logits, boxes[None]), [target])}, costs)["a"]
    assert assignment.objects.tolist() == [0, 1]
    (assignment,) = match({"a": (Predictions(logits, boxes[None].flip(1)), [target])}, costs)["a"]
    assert assignment.objects.tolist() == [1, 0]


def test_position_without_objects_is_fine():
    costs = COSTS._replace(by_position=True)
    (assignment,) = match({"a": (make_predictions(batch=1), make_targets(0))}, costs)["a"]
    assert len(assignment.queries) == 0
