"""Recipes of DINO: the published sizes and settings, and a small one that is as large as `small`."""

import pytest
import torch

from deformable_detr.models import MODELS
from deformable_detr.runs.dino_recipes import dino_r50_improved, dino_small
from deformable_detr.runs.recipes import RECIPES, small
from deformable_detr.training.optimizer import learning_rate, schedule_share


def parameters(config):
    with torch.device("meta"):
        model = MODELS.build(config.model, load_backbone_weights=False)
    every = [(one.numel(), one.requires_grad) for one in model.parameters()]
    return sum(count for count, learns in every if learns), sum(count for count, _ in every)


@pytest.mark.parametrize(
    ("name", "millions", "lr", "class_weight"),
    [
        ("dino_r50", (46.67, 46.89), 1e-4, "auto"),
        ("dino_r50_5scale", (47.0, 47.2), 1e-4, "auto"),
        ("dino_r50_improved", (47.67, 47.67), 2e-4, 2.0),
    ],
)
def test_the_published_recipes(name, millions, lr, class_weight):
    config = RECIPES[name]()
    assert [round(count / 1e6, 2) for count in parameters(config)] == pytest.approx(millions, abs=0.06)
    assert (config.schedule.epochs, config.run.batch_size, learning_rate(config.optimizer, 16)) == (12, 16, lr)
    assert (config.criterion.class_weight, config.criterion.l1_weight, config.criterion.giou_weight) == (
        class_weight,
        5,
        2,
    )
    assert (config.preprocessing.short_side, config.preprocessing.max_side) == (800, 1333)
    # The learning rate falls after 11 of 12 epochs of 7,500 steps.
    assert schedule_share(config.schedule, 11 * 7500 - 1, 12 * 7500) == 1
    assert schedule_share(config.schedule, 11 * 7500, 12 * 7500) == pytest.approx(0.1)


def test_the_improved_one_has_the_settings_of_deformable_detr():
    model = dino_r50_improved().model
    assert (model.position_temperature, model.position_offset, model.frozen_stages) == (10_000, -0.5, 0)
    assert (model.denoising_queries, model.heads) == (300, "separate")


def test_the_small_one_is_as_large_as_small():
    ours, other = dino_small().model, small().model
    same = ("backbone", "hidden_dim", "num_heads", "encoder_layers", "decoder_layers", "ffn_dim", "num_queries")
    assert all(getattr(ours, name) == getattr(other, name) for name in same)
    assert parameters(dino_small())[0] == pytest.approx(parameters(small())[0], rel=0.05)
