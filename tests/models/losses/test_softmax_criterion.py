"""DETR's loss: against the mean as it is defined, in parts as in one, and what is refused."""

import math

import pytest
import torch

from deformable_detr.core.types import DetectorOutput, Predictions, Target
from deformable_detr.models.interface import AveragingCriterion, CriterionLike
from deformable_detr.models.losses import Criterion, CriterionConfig, SoftmaxCriterion

CLASSES, QUERIES = 3, 5


def make_output(batch=2, layers=2, queries=QUERIES):
    def one():
        logits = torch.randn(batch, queries, CLASSES + 1)
        return Predictions(logits.requires_grad_(), (torch.rand(batch, queries, 4) * 0.5 + 0.1).requires_grad_())

    return DetectorOutput([one() for _ in range(layers)], None)


def make_targets(*counts):
    return [Target(torch.randint(CLASSES, (n,)), torch.rand(n, 4) * 0.5 + 0.1) for n in counts]


def make(queries=QUERIES, **settings):
    return SoftmaxCriterion(CriterionConfig(**settings), queries)


def iou_parts(one, other):
    (x, y, w, h), (a, b, c, d) = one, other
    left, right = max(x - w / 2, a - c / 2), min(x + w / 2, a + c / 2)
    top, bottom = max(y - h / 2, b - d / 2), min(y + h / 2, b + d / 2)
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    union = w * h + c * d - shared
    around = (max(x + w / 2, a + c / 2) - min(x - w / 2, a - c / 2)) * (
        max(y + h / 2, b + d / 2) - min(y - h / 2, b - d / 2)
    )
    return shared / union - (around - union) / around


@pytest.mark.parametrize(("counts", "no_object"), [((2, 1), 0.1), ((4, 0), 0.3), ((0, 0), 0.1), ((1, 5), 0.0)])
def test_equals_the_definition(counts, no_object):
    output, targets = make_output(), make_targets(*counts)
    losses = make(no_object_weight=no_object)(output, targets)
    for number, layer in enumerate(output.layers):
        pairs = losses.assignments[f"decoder.{number}"]
        surprise = weight = l1 = giou = 0.0
        for image, target in enumerate(targets):
            label = dict(zip(pairs[image].queries.tolist(), pairs[image].objects.tolist(), strict=True))
            assert sorted(label.values()) == list(range(len(target.labels)))
            for query in range(QUERIES):
                probabilities = layer.logits[image, query].softmax(-1).tolist()
                wanted = int(target.labels[label[query]]) if query in label else CLASSES
                own = 1.0 if query in label else no_object
                surprise, weight = surprise - own * math.log(probabilities[wanted]), weight + own
                if query in label:
                    box, other = layer.boxes[image, query].tolist(), target.boxes[label[query]].tolist()
                    l1 += sum(abs(a - b) for a, b in zip(box, other, strict=True))
                    giou += 1 - iou_parts(box, other)
        boxes = max(sum(counts), 1)
        assert float(losses.terms[f"decoder.{number}/class"]) == pytest.approx(surprise / weight, rel=1e-5)
        assert float(losses.terms[f"decoder.{number}/l1"]) == pytest.approx(l1 / boxes, rel=1e-5)
        assert float(losses.terms[f"decoder.{number}/giou"]) == pytest.approx(giou / boxes, rel=1e-4)
    expected = sum({"class": 1, "l1": 5, "giou": 2}[name.split("/")[1]] * term for name, term in losses.terms.items())
    torch.testing.assert_close(losses.total.detach(), expected)


def test_the_cheapest_pairs_are_matched():
    """Of all ways to give three objects to five queries: those of the least sum of the published costs."""
    from itertools import permutations

    output, (target,) = make_output(batch=1, layers=1), make_targets(3)
    logits, boxes = output.final.logits[0].softmax(-1).tolist(), output.final.boxes[0].tolist()

    def cost(query, number):
        other = target.boxes[number].tolist()
        l1 = sum(abs(a - b) for a, b in zip(boxes[query], other, strict=True))
        return 5 * l1 - logits[query][int(target.labels[number])] - 2 * iou_parts(boxes[query], other)

    best = min(permutations(range(QUERIES), 3), key=lambda way: sum(cost(query, i) for i, query in enumerate(way)))
    (found,) = make()(output, [target]).assignments["decoder.0"]
    assert dict(zip(found.objects.tolist(), found.queries.tolist(), strict=True)) == dict(enumerate(best))


@pytest.mark.parametrize("counts", [(2, 1, 0), (0, 0, 0), (7, 0, 1)])
def test_parts_of_a_step_add_up_to_the_step(counts):
    output, targets = make_output(batch=3), make_targets(*counts)
    criterion = make()
    whole = criterion(output, targets)
    whole.total.backward()
    gradients = [(layer.logits.grad, layer.boxes.grad) for layer in output.layers]
    num_boxes, weight = float(sum(counts)), criterion.total_weight(targets)
    assert weight == pytest.approx(sum(criterion.total_weight([one]) for one in targets))
    sums = 0.0
    for image in range(3):
        layers = [
            Predictions(logits[image : image + 1].detach().requires_grad_(), boxes[image : image + 1].detach())
            for logits, boxes in output.layers
        ]
        part = criterion(DetectorOutput(layers, None), [targets[image]], num_boxes=num_boxes, total_weight=weight)
        part.total.backward()
        sums += part.total.item()
        for layer, (gradient, _) in zip(layers, gradients, strict=True):
            torch.testing.assert_close(layer.logits.grad[0], gradient[image], rtol=1e-5, atol=1e-7)
    assert sums == pytest.approx(whole.total.item(), rel=1e-5)


def test_more_objects_than_queries():
    criterion = make()
    losses = criterion(make_output(batch=1), make_targets(7))
    assert len(losses.assignments["decoder.1"][0].queries) == QUERIES
    assert criterion.total_weight(make_targets(7)) == QUERIES
    assert losses.total.isfinite()


def test_nothing_weighs_nothing():
    output = make_output()
    losses = make(no_object_weight=0.0)(output, make_targets(0, 0))
    assert losses.total == 0
    losses.total.backward()
    assert output.final.logits.grad.abs().max() == 0


def test_class_error_counts_no_object_as_wrong():
    logits = torch.zeros(1, QUERIES, CLASSES + 1)
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]])
    place = torch.cat([boxes, torch.full((3, 4), 0.5)])[None]
    logits[0, 0, 2] = 4.0
    logits[0, 1, CLASSES] = 4.0
    target = Target(torch.tensor([2, 1]), boxes)
    losses = make()(DetectorOutput([Predictions(logits, place)], None), [target])
    assert float(losses.class_error) == 50.0


def test_auto_is_what_each_model_was_published_with():
    assert make().weights == {"class": 1.0, "l1": 5.0, "giou": 2.0}
    assert make().costs[:3] == (1.0, 5.0, 2.0)
    assert make(class_weight=3.0, class_cost=4.0).weights["class"] == 3
    assert make(class_weight=3.0, class_cost=4.0).costs.class_ == 4
    ours = Criterion(CriterionConfig())
    assert (ours.weights["class"], ours.costs.class_) == (2.0, 2.0)


def test_what_it_is_asked_for():
    assert isinstance(make(), AveragingCriterion)
    assert isinstance(make(), CriterionLike)
    assert not isinstance(Criterion(CriterionConfig()), AveragingCriterion)


@pytest.mark.parametrize(
    ("targets", "queries", "message"),
    [
        ([2], QUERIES, "1 targets for 2 images"),
        ([2, 1], 9, "there are 5 predictions for each image, the loss is for 9"),
    ],
)
def test_what_does_not_belong_together_is_refused(targets, queries, message):
    with pytest.raises(ValueError, match=message):
        make(queries)(make_output(), make_targets(*targets))


def test_no_object_is_no_label():
    targets = [Target(torch.tensor([CLASSES]), torch.rand(1, 4)), *make_targets(1)]
    with pytest.raises(ValueError, match=r"image 0 has labels 3\.\.3, the class heads have 0\.\.2"):
        make()(make_output(), targets)
