from dataclasses import dataclass, replace

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import DeformableDETRConfig, DETRConfig, DINOConfig
from deformable_detr.models.settings import (
    LARGEST,
    SMALLEST,
    BackboneSettings,
    DenoisingSettings,
    check_attention,
    check_backbone,
    check_branches,
    check_counts,
    check_groups_of_norms,
    check_noise,
)


@dataclass(frozen=True)
class Settings(BackboneSettings):
    backbone: str = "resnet50"
    backbone_weights: str = "hub"
    frozen_stages: int = 2
    frozen_batch_norm: bool = True
    num_queries: int = 5
    denoising_queries: int = 3
    box_noise: float = 1.0
    label_noise: float = 0.5
    rows: int = 2


KINDS = [DeformableDETRConfig, DETRConfig, DINOConfig]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LARGEST)
def test_counts_have_a_least_and_a_most(kind, name):
    if name not in kind.__dataclass_fields__:
        assert kind is not DeformableDETRConfig  # which has all of them
        return
    with pytest.raises(ConfigError, match=f"{name} is {LARGEST[name] + 1}; it can be at most {LARGEST[name]}"):
        kind(**{name: LARGEST[name] + 1})
    least = SMALLEST.get(name, 1)
    with pytest.raises(ConfigError, match=f"{name} is {least - 1}; it must be at least {least}"):
        kind(**{name: least - 1})


def test_other_fields_are_no_counts():
    check_counts(Settings(num_queries=1, frozen_stages=0, rows=-5))
    with pytest.raises(ConfigError, match="num_queries is 0; it must be at least 1"):
        check_counts(Settings(num_queries=0))


@dataclass(frozen=True)
class MoreQueries:
    num_queries: int = 300
    hybrid_queries: int = 0
    hybrid_repeats: int = 6
    query_groups: int = 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hybrid_queries": 5, "query_groups": 2}, "hybrid_queries is 5 and query_groups 2: only one of them"),
        ({"num_queries": 401, "query_groups": 50}, "training has 20050 queries; it can have at most 20000"),
        ({"num_queries": 10_001, "hybrid_queries": 10_000}, "training has 20001 queries"),
        ({"hybrid_repeats": 3}, "hybrid_repeats=3 has no meaning without hybrid queries"),
    ],
)
def test_more_queries_in_training_that_cannot_be(settings, message):
    for fine in ({}, {"hybrid_queries": 1500, "hybrid_repeats": 2}, {"query_groups": 11}):
        check_branches(MoreQueries(**fine))
    with pytest.raises(ConfigError, match=message):
        check_branches(MoreQueries(**settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in 0\.\.1, 1 excluded"),
        ({"hidden_dim": 96, "num_heads": 9}, "hidden_dim 96 cannot be split over num_heads 9"),
        ({"backbone": ""}, "backbone and backbone_weights cannot be empty"),
        ({"backbone_weights": "none", "frozen_stages": 0}, "frozen_batch_norm is true, but backbone_weights is 'none'"),
    ],
)
def test_every_model_refuses_what_excludes_each_other(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_groups_of_norms_share_the_channels():
    check_groups_of_norms(96)
    with pytest.raises(ConfigError, match="hidden_dim is 100; it must be a multiple of 32"):
        check_groups_of_norms(100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"box_noise": 10.5}, r"box_noise is 10.5; it must be in 0\.\.10"),
        ({"label_noise": -0.1}, r"label_noise is -0.1; it must be in 0\.\.2"),
        ({"denoising_queries": 0, "box_noise": 0.5}, "box_noise=0.5 has no meaning without denoising"),
    ],
)
def test_noise_that_cannot_be(wrong, message):
    assert isinstance(Settings(), DenoisingSettings)
    check_noise(Settings())
    check_noise(Settings(denoising_queries=0))
    with pytest.raises(ConfigError, match=message):
        check_noise(Settings(**wrong))


def test_heads_share_the_channels():
    check_attention(12, 4, 0.0)
    with pytest.raises(ConfigError, match="hidden_dim 12 cannot be split over num_heads 5"):
        check_attention(12, 5, 0.0)
    for dropout in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="1 excluded"):
            check_attention(12, 4, dropout)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": ""}, "cannot be empty"),
        ({"backbone": "hf-hub:timm/resnet50"}, "a name that timm itself knows"),
        ({"backbone_weights": "a\tb"}, "cannot be the name of a file"),
        ({"backbone_weights": "none"}, "stages that start from nothing cannot stay frozen; set frozen_stages=0"),
        ({"backbone_weights": "none", "frozen_stages": 0}, "set frozen_batch_norm=false"),
    ],
)
def test_a_backbone_that_cannot_be(wrong, message):
    check_backbone(Settings())
    check_backbone(replace(Settings(), backbone_weights="none", frozen_stages=0, frozen_batch_norm=False))
    with pytest.raises(ConfigError, match=message):
        check_backbone(replace(Settings(), **wrong))


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_from_a_backbone(kind):
    config = kind(backbone_weights="/weights/b.pth", num_queries=7)
    assert config.with_classes(3) == kind(backbone_weights="/weights/b.pth", num_queries=7, num_classes=3)
    assert config.portable() == kind(backbone_weights="b.pth", num_queries=7)
    assert (config.pretrained_parts, config.downloads) == (("backbone",), "")
    assert kind(backbone="resnet34").downloads == "weights of resnet34"
    fresh = kind(backbone_weights="none", frozen_stages=0, frozen_batch_norm=False)
    assert (fresh.pretrained_parts, fresh.downloads) == ((), "")
