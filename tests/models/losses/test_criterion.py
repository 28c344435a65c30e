"""The whole loss: which stages count, what they are divided by, and what is refused."""

import pytest
import torch

from deformable_detr.core.boxes import cxcywh_to_xyxy, generalized_iou
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Denoised, DetectorOutput, Predictions, Target
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.models.losses.losses import focal_loss

CLASSES = 3


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
