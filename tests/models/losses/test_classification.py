"""The family of classification losses against formulas in plain Python, finite differences, and the focal loss."""

import math
from typing import get_args

import pytest
import torch

from deformable_detr.models.losses.classification import ClassLossName, class_loss, relative_quality
from deformable_detr.models.losses.losses import focal_loss, one_hot

CLASS_LOSSES = get_args(ClassLossName)
ALPHA, GAMMA = 0.3, 2.0
ASSIGNED = torch.tensor([[0, 0, 1], [3, 1, 4]])
LABELS = torch.tensor([2, 0, 1])
OVERLAPS = torch.tensor([0.6, 0.9, 0.25], dtype=torch.float64)
SHAPE = (2, 5, 3)


def loss_of(name, logits, assigned=ASSIGNED, labels=LABELS, overlaps=OVERLAPS):
    return class_loss(name, logits, assigned, labels, overlaps, alpha=ALPHA, gamma=GAMMA)


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def row(name, logit, overlap, best):
    """Target and weight of one matched score, and the weight that it would have as background."""
    p = sigmoid(logit)
    return {
        "focal": (1.0, ALPHA * (1 - p) ** GAMMA, (1 - ALPHA) * p**GAMMA),
        "ia_bce": (max(p**0.25 * overlap**0.75, 0.01), 1.0, p**2),
        "varifocal": (overlap, overlap, 0.75 * p**2),
        "mal": (overlap**1.5, 1.0, p**1.5),
        "position": (
            overlap**2 / best**2,
            ALPHA * (overlap**2 / best**2 - p) ** GAMMA,
            (1 - ALPHA) * p**GAMMA,
        ),
    }[name]


def entropy(logit, target):
    p = sigmoid(logit)
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


# The weights without gradient; targets have none in any loss.
CONSTANT = {"varifocal", "mal"}


def by_hand(name, logit, matched, start=None):
    """Loss of one score; constants are those of the logit `start`."""
    start = logit if start is None else start
    moving = start if name in CONSTANT else logit
    if matched is None:
        return row(name, moving, 0.5, 0.9)[2] * entropy(logit, 0.0)
    overlap, best = matched
    target = row(name, start, overlap, best)[0]
    p = sigmoid(moving)
    weight = ALPHA * abs(target - p) ** GAMMA if name == "position" else row(name, moving, overlap, best)[1]
    return weight * entropy(logit, target)


MATCHED = {(0, 3, 2): (0.6, 0.9), (0, 1, 0): (0.9, 0.9), (1, 4, 1): (0.25, 0.25)}


def each(logits):
    return (
        (index, logits[index].item(), MATCHED.get(index)) for index in map(tuple, (logits == logits).nonzero().tolist())
    )


@pytest.fixture
def logits():
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 2


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_every_loss_is_its_formula(name, logits):
    found = loss_of(name, logits)
    for index, logit, matched in each(logits):
        assert found[index].item() == pytest.approx(by_hand(name, logit, matched), rel=1e-9, abs=1e-15)


def test_the_rows_with_numbers_worked_out_by_hand():
    """One matched score of probability 0.8 on a box of IoU 0.64, the best being 0.8; beside it one of 0.2."""
    logits = torch.tensor([[[math.log(4), -math.log(4)], [0.0, 0.0]]], dtype=torch.float64)
    pairs, labels = torch.tensor([[0, 0], [0, 1]]), torch.tensor([0, 1])
    overlaps = torch.tensor([0.64, 0.8], dtype=torch.float64)
    yes, no = -math.log(0.8), -math.log(0.2)
    expected = {
        "focal": (0.3 * 0.04 * yes, 0.7 * 0.04 * yes),
        "ia_bce": (0.8**0.25 * 0.64**0.75 * yes + (1 - 0.8**0.25 * 0.64**0.75) * no, 0.04 * yes),
        "varifocal": (0.64 * (0.64 * yes + 0.36 * no), 0.75 * 0.04 * yes),
        "mal": (0.512 * yes + 0.488 * no, 0.2**1.5 * yes),
        "position": (0.3 * 0.16**2 * (0.64 * yes + 0.36 * no), 0.7 * 0.04 * yes),
    }
    for name, values in expected.items():
        found = loss_of(name, logits, pairs, labels, overlaps)[0, 0]
        assert found.tolist() == pytest.approx(values, rel=1e-9), name


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_gradients_are_those_of_finite_differences(name, logits):
    logits.requires_grad_()
    loss_of(name, logits).sum().backward()
    step = 1e-5
    for index, logit, matched in each(logits.detach()):
        above, below = (by_hand(name, logit + side, matched, start=logit) for side in (step, -step))
        assert logits.grad[index].item() == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-9)


def test_focal_is_the_focal_loss_to_the_last_bit():
    logits = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain = logits.detach().clone().requires_grad_()
    found = loss_of("focal", logits, overlaps=OVERLAPS.float())
    expected = focal_loss(plain, one_hot(LABELS, ASSIGNED, plain.shape), alpha=ALPHA, gamma=GAMMA)
    assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert torch.equal(logits.grad, plain.grad)


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores_have_finite_losses_and_gradients(name, dtype):
    steps = torch.tensor([-6e4, -300.0, -20.0, 0.0, 20.0, 300.0, 6e4]).to(dtype)
    logits = steps[None, :, None].repeat(2, 1, 3).requires_grad_()
    # Every score once matched, with boxes that do not overlap, do a little, and are equal.
    assigned = torch.stack([torch.arange(2).repeat_interleave(7), torch.arange(7).repeat(2)])
    labels = torch.arange(14) % 3
    for overlap in (0.0, 1e-6, 0.5, 1.0):
        loss = loss_of(name, logits, assigned, labels, torch.full((14,), overlap))
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert (loss >= 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_small_exponents_have_finite_gradients_far_out(gamma):
    logits = torch.tensor([[[-300.0, 300.0], [300.0, -300.0]]], requires_grad=True)
    pairs, labels = torch.tensor([[0, 0], [0, 1]]), torch.tensor([0, 0])
    loss = class_loss("position", logits, pairs, labels, torch.tensor([0.7, 0.7]), alpha=0.25, gamma=gamma)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_without_objects_all_is_background(name, logits):
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    found = loss_of(name, logits, nothing, nothing[0], OVERLAPS[:0])
    for index, logit, _ in each(logits):
        assert found[index].item() == pytest.approx(by_hand(name, logit, None), rel=1e-9)


@pytest.mark.parametrize("name", [one for one in CLASS_LOSSES if one != "focal"])
def test_a_better_box_gets_a_better_score(name):
    """The score at which a matched prediction's loss is least rises with the overlap of its box."""
    scores = torch.linspace(-6, 6, 241, dtype=torch.float64)
    best = []
    for overlap in (0.3, 0.6, 0.9):
        overlaps = torch.tensor([overlap, 0.95], dtype=torch.float64)
        pairs, labels = torch.tensor([[0, 0], [0, 1]]), torch.tensor([0, 0])
        at = [
            loss_of(name, torch.tensor([[[one], [0.0]]], dtype=torch.float64), pairs, labels, overlaps)[0, 0, 0]
            for one in scores
        ]
        best.append(scores[torch.stack(at).argmin()].item())
    assert best == sorted(best)
    assert best[0] < best[2]


def test_the_best_pair_of_each_image_has_quality_one():
    overlaps = torch.tensor([0.5, 0.25, 0.4, 0.0])
    found = relative_quality(overlaps, torch.tensor([0, 0, 2, 3]), 4)
    assert found.tolist() == pytest.approx([1.0, 0.25, 1.0, 0.0])
