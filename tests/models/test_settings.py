from dataclasses import dataclass, replace

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.models.settings import BackboneSettings, check_attention, check_backbone, check_counts_of


@dataclass(frozen=True)
class Settings:
    backbone: str = "resnet50"
    backbone_weights: str = "hub"
    frozen_stages: int = 2
    frozen_batch_norm: bool = True
    num_queries: int = 5


def test_counts_have_a_least_and_a_most():
    largest = {"num_queries": 9, "frozen_stages": 4}
    check_counts_of(Settings(), largest, ("frozen_stages",))
    check_counts_of(Settings(num_queries=1, frozen_stages=0), largest, ("frozen_stages",))
    for wrong, message in (
        ({"num_queries": 0}, "num_queries is 0; it must be at least 1"),
        ({"frozen_stages": -1}, "frozen_stages is -1; it must be at least 0"),
        ({"num_queries": 10}, "num_queries is 10; it can be at most 9"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_counts_of(Settings(**wrong), largest, ("frozen_stages",))


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
    assert isinstance(Settings(), BackboneSettings)
    check_backbone(Settings())
    check_backbone(replace(Settings(), backbone_weights="none", frozen_stages=0, frozen_batch_norm=False))
    with pytest.raises(ConfigError, match=message):
        check_backbone(replace(Settings(), **wrong))
