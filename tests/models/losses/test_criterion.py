"""The whole loss: which stages count, what they are divided by, and what is refused."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from deformable_detr.core.boxes import cxcywh_to_xyxy, generalized_iou
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import (
    Denoised,
    DetectorOutput,
    GroupPredictions,
    OneToManyPredictions,
    Predictions,
    Target,
)
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.models.losses.classification import ClassLossName
from deformable_detr.models.losses.losses import focal_loss

CLASSES = 3
CLASS_LOSSES = get_args(ClassLossName)


def make_predictions(batch, predictions):
    logits = torch.randn(batch, predictions, CLASSES)
    return Predictions(logits.requires_grad_(), (torch.rand(batch, predictions, 4) * 0.5 + 0.1).requires_grad_())


def make_output(batch=2, queries=5, positions=7):
    layers = [make_predictions(batch, queries) for _ in range(2)]
    return DetectorOutput(layers, make_predictions(batch, positions))


def make_targets(*counts):
    return [Target(torch.randint(CLASSES, (n,)), torch.rand(n, 4) * 0.5 + 0.1) for n in counts]


def test_every_stage_is_supervised_by_every_term():
    output = make_output()
    losses = Criterion(CriterionConfig())(output, make_targets(2, 1))
    stages = ("decoder.0", "decoder.1", "proposals")
    assert set(losses.terms) == {f"{stage}/{term}" for stage in stages for term in ("class", "l1", "giou")}
    losses.total.backward()
    for predictions in (*output.layers, output.proposals):
        assert predictions.logits.grad.abs().sum() > 0
        assert predictions.boxes.grad.abs().sum() > 0


def test_the_total_is_the_weighted_sum_of_the_terms():
    config = CriterionConfig(class_weight=0.5, l1_weight=3.0, giou_weight=7.0)
    losses = Criterion(config)(make_output(), make_targets(2, 1))
    weights = {"class": 0.5, "l1": 3.0, "giou": 7.0}
    expected = sum(weights[name.split("/")[1]] * float(term) for name, term in losses.terms.items())
    assert losses.total.detach().item() == pytest.approx(expected, rel=1e-5)


def test_images_without_objects_are_background_everywhere():
    output = make_output()
    losses = Criterion(CriterionConfig())(output, make_targets(0, 0))
    zeros = torch.zeros_like(output.final.logits)
    expected = focal_loss(output.final.logits, zeros, alpha=0.25, gamma=2.0).sum()
    torch.testing.assert_close(losses.terms["decoder.1/class"], expected.detach())
    assert losses.terms["decoder.1/giou"] == 0
    assert losses.class_error == 0
    losses.total.backward()
    assert output.final.boxes.grad.abs().sum() == 0


def test_the_sums_are_divided_by_the_number_of_boxes():
    output, targets = make_output(), make_targets(2, 1)
    criterion = Criterion(CriterionConfig())
    once, twice = criterion(output, targets), criterion(output, targets, num_boxes=6.0)
    torch.testing.assert_close(once.total, twice.total * 2)


def test_the_order_of_queries_and_objects_changes_nothing():
    output, targets = make_output(), make_targets(3, 2)
    shuffled = [Predictions(one.logits[:, [3, 1, 4, 0, 2]], one.boxes[:, [3, 1, 4, 0, 2]]) for one in output.layers]
    reversed_targets = [Target(one.labels.flip(0), one.boxes.flip(0)) for one in targets]
    criterion = Criterion(CriterionConfig())
    expected = criterion(output._replace(proposals=None), targets).total
    torch.testing.assert_close(criterion(DetectorOutput(shuffled, None), reversed_targets).total, expected)


def test_proposals_only_ask_whether_there_is_an_object():
    output, targets = make_output(), make_targets(2, 2)
    losses = Criterion(CriterionConfig())(output, targets)
    relabelled = [Target((one.labels + 1) % CLASSES, one.boxes) for one in targets]
    again = Criterion(CriterionConfig())(output, relabelled)
    torch.testing.assert_close(losses.terms["proposals/class"], again.terms["proposals/class"])
    assert losses.terms["decoder.1/class"] != again.terms["decoder.1/class"]


def test_class_error_is_the_share_of_wrong_best_classes():
    boxes = torch.tensor([[[0.2, 0.3, 0.1, 0.1], [0.7, 0.6, 0.2, 0.3]]])
    logits = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]]])
    target = Target(torch.tensor([0, 1]), boxes[0])
    losses = Criterion(CriterionConfig())(DetectorOutput([Predictions(logits, boxes)], None), [target])
    assert losses.class_error == 50


def test_a_term_without_a_weight_is_an_error():
    with pytest.raises(ValueError, match=r"no weight for the loss terms \['mask'\]"):
        Criterion(CriterionConfig()).weighted_sum({"decoder.0/mask": torch.tensor(1.0)})


def test_targets_that_do_not_fit_are_refused():
    criterion = Criterion(CriterionConfig())
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        criterion(make_output(), make_targets(1))
    wrong = [Target(torch.tensor([3]), torch.rand(1, 4)), *make_targets(1)]
    with pytest.raises(ValueError, match=r"image 0 has labels 3\.\.3, the class heads have 0\.\.2"):
        criterion(make_output(), wrong)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_every_class_loss_reaches_scores_and_boxes_of_every_stage(name):
    output, targets = make_output(), make_targets(2, 0)
    losses = Criterion(CriterionConfig(class_loss=name))(output, targets)
    losses.total.backward()
    for predictions in (*output.layers, output.proposals):
        assert predictions.logits.grad.abs().sum() > 0
        assert predictions.boxes.grad[0].abs().sum() > 0
        assert predictions.boxes.grad[1].abs().sum() == 0


def test_class_losses_see_the_overlap_of_the_matched_boxes():
    """One prediction of score 1/2, whose box is a quarter of its object: u = 0.25, so that MAL's target is 0.125."""
    predictions = Predictions(torch.zeros(1, 1, 2), torch.tensor([[[0.5, 0.5, 0.3, 0.2]]]))
    target = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.6, 0.4]]))
    output = DetectorOutput([predictions], None)
    for name, matched in (("mal", 1.0), ("varifocal", 0.25), ("focal", 0.25 * 0.25)):
        other = {"mal": 0.5**1.5, "varifocal": 0.75 * 0.25, "focal": 0.75 * 0.25}[name]
        losses = Criterion(CriterionConfig(class_loss=name))(output, [target])
        assert losses.terms["decoder.0/class"].item() == pytest.approx((matched + other) * math.log(2), rel=1e-5)


def test_position_changes_the_matching():
    """Of two predictions for one object the first has the better score, the second the better box."""
    boxes = torch.tensor([[[0.3, 0.4, 0.2, 0.1], [0.5, 0.5, 0.4, 0.3]]])
    output = DetectorOutput([Predictions(torch.tensor([[[0.6], [0.2]]]), boxes)], None)
    target = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.4, 0.3]]))
    queries = {}
    for name in ("focal", "position"):
        criterion = Criterion(CriterionConfig(class_loss=name, l1_cost=0.0, giou_cost=0.0))
        queries[name] = criterion(output, [target]).assignments["decoder.0"][0].queries.tolist()
    assert queries == {"focal": [0], "position": [1]}


def test_groups_of_queries_are_averaged_and_each_matched_for_itself():
    outputs, targets = [make_output() for _ in range(3)], make_targets(2, 3)
    criterion = Criterion(CriterionConfig())
    alone = [criterion(one, targets) for one in outputs]
    groups = tuple(GroupPredictions(one.layers, one.proposals) for one in outputs[1:])
    together = criterion(outputs[0]._replace(groups=groups), targets)
    assert set(together.terms) == set(alone[0].terms)
    for name, term in together.terms.items():
        torch.testing.assert_close(term, sum(one.terms[name] for one in alone) / 3)
    torch.testing.assert_close(together.total, sum(one.total for one in alone) / 3)
    assert together.class_error == alone[0].class_error
    for number, one in enumerate(alone):
        suffix = f"/group {number}" if number else ""
        for found, own in zip(together.assignments[f"decoder.1{suffix}"], one.assignments["decoder.1"], strict=True):
            assert found.queries.tolist() == own.queries.tolist()
            assert found.objects.tolist() == own.objects.tolist()


def test_one_to_many_queries_are_matched_several_times_and_count_once():
    """As a network whose every object is there three times, divided by three; summed over its layers."""
    output, extra, targets = make_output(), [make_predictions(2, 12) for _ in range(2)], make_targets(2, 3)
    criterion = Criterion(CriterionConfig())
    repeated = [Target(one.labels.repeat(3), one.boxes.repeat(3, 1)) for one in targets]
    alone, many = criterion(output, targets), criterion(DetectorOutput(extra, None), repeated)
    both = criterion(output._replace(one_to_many=OneToManyPredictions(extra, 3)), targets)
    torch.testing.assert_close(both.total, alone.total + many.total)
    assert {name: term for name, term in both.terms.items() if not name.startswith("one_to_many")} == alone.terms
    for term in ("class", "l1", "giou"):
        expected = many.terms[f"decoder.0/{term}"] + many.terms[f"decoder.1/{term}"]
        torch.testing.assert_close(both.terms[f"one_to_many/{term}"], expected)
    for assignment, target in zip(both.assignments["one_to_many/1"], targets, strict=True):
        times = np.bincount(assignment.objects % len(target.labels))
        assert times.tolist() == [3] * len(target.labels)
        assert len(set(assignment.queries.tolist())) == 3 * len(target.labels)


def test_one_to_many_queries_may_be_too_few_or_none():
    for queries in (0, 4):
        extra = OneToManyPredictions([make_predictions(2, queries)], 5)
        losses = Criterion(CriterionConfig())(make_output()._replace(one_to_many=extra), make_targets(2, 0))
        losses.total.backward()
        assert [len(one.queries) for one in losses.assignments["one_to_many/0"]] == [queries, 0]
        assert losses.total.isfinite()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"class_weight": -1.0}, "class_weight is -1.0"),
        ({"focal_alpha": 1.5}, "focal_alpha is 1.5"),
        ({"class_cost": 0.0, "l1_cost": 0.0, "giou_cost": 0.0}, "matching needs at least one"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        CriterionConfig(**setting)


def test_proposals_learn_classes_if_they_are_told():
    output, targets = make_output(), make_targets(2, 1)
    targets = [target._replace(labels=torch.full_like(target.labels, 2)) for target in targets]
    objects = Criterion(CriterionConfig())(output, targets)
    classes = Criterion(CriterionConfig(), proposals="class")(output, targets)
    assert objects.terms["proposals/class"] != classes.terms["proposals/class"]
    assert objects.terms["decoder.1/class"] == classes.terms["decoder.1/class"]
    as_object = [target._replace(labels=torch.zeros_like(target.labels)) for target in targets]
    same = Criterion(CriterionConfig(), proposals="class")(output, as_object)
    assert same.terms["proposals/class"] == objects.terms["proposals/class"]


def test_noisy_copies_have_the_same_losses_without_matching():
    """Two groups of two slots each for a positive copy; image 0 has two objects, image 1 one, and an empty slot."""
    objects = torch.tensor([[0, 1, -1, -1, 0, 1, -1, -1], [0, -1, -1, -1, 0, -1, -1, -1]])
    noisy = [make_predictions(2, 8) for _ in range(2)]
    output = make_output()._replace(denoising=Denoised(noisy, objects, num_groups=2))
    targets = make_targets(2, 1)
    losses = Criterion(CriterionConfig())(output, targets)
    layer = Predictions(*(part.detach() for part in noisy[1]))
    wanted, l1, giou = torch.zeros(2, 8, CLASSES), 0.0, 0.0
    for image, slot in (objects >= 0).nonzero().tolist():
        label, box = (part[objects[image, slot]] for part in targets[image][:2])
        wanted[image, slot, label] = 1
        l1 += float((layer.boxes[image, slot] - box).abs().sum())
        giou += 1 - float(generalized_iou(cxcywh_to_xyxy(layer.boxes[image, slot]), cxcywh_to_xyxy(box)))
    focal = float(focal_loss(layer.logits, wanted, alpha=0.25, gamma=2.0).sum())
    for term, value in (("class", focal), ("l1", l1), ("giou", giou)):
        assert float(losses.terms[f"denoising.1/{term}"]) == pytest.approx(value / (3 * 2), rel=1e-5)
    of_the_step = Criterion(CriterionConfig())(output, targets, num_boxes=12.0)
    for name, value in losses.terms.items():
        assert float(of_the_step.terms[name]) == pytest.approx(float(value) * 3 / 12, rel=1e-5)
    assert not any(stage.startswith("denoising") for stage in losses.assignments)
    losses.total.backward()
    assert all(layer.boxes.grad.abs().sum() > 0 for layer in noisy)


def test_without_slots_the_terms_are_zero_and_there():
    noisy = [make_predictions(2, 0)]
    output = make_output()._replace(denoising=Denoised(noisy, torch.zeros(2, 0, dtype=torch.int64), num_groups=1))
    losses = Criterion(CriterionConfig())(output, make_targets(0, 0))
    assert [float(losses.terms[f"denoising.0/{term}"]) for term in ("class", "l1", "giou")] == [0, 0, 0]
    losses.total.backward()


@pytest.mark.parametrize("name", ["ia_bce", "varifocal", "mal", "position"])
def test_copies_have_the_focal_loss_whatever_the_others_have(name):
    noisy = [Predictions(torch.randn(2, 4, CLASSES), torch.rand(2, 4, 4) * 0.3 + 0.2) for _ in range(2)]
    output = make_output()._replace(denoising=Denoised(noisy, torch.tensor([[0, -1, 1, -1], [0, -1, -1, -1]]), 1))
    targets = make_targets(2, 1)
    plain, other = (Criterion(CriterionConfig(class_loss=one))(output, targets).terms for one in ("focal", name))
    assert all(torch.equal(plain[key], other[key]) for key in plain if key.startswith("denoising"))
    assert not torch.equal(plain["decoder.0/class"], other["decoder.0/class"])


def test_auto_is_the_weight_that_a_model_was_published_with():
    assert Criterion(CriterionConfig()).weights["class"] == 2
    of_dino = Criterion(CriterionConfig(), proposals="class", class_weight=1.0)
    assert (of_dino.weights["class"], of_dino.costs.class_) == (1, 2)
    assert Criterion(CriterionConfig(class_weight=3.0), class_weight=1.0).weights["class"] == 3
