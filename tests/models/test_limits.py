"""Settings that several networks share: what is refused, for each of them in the same words."""

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import DeformableDETRConfig, DINOConfig
from deformable_detr.models.limits import LARGEST

BOTH = [DeformableDETRConfig, DINOConfig]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", LARGEST)
def test_counts_have_bounds(kind, name):
    with pytest.raises(ConfigError, match=f"{name} is {LARGEST[name] + 1}; it can be at most {LARGEST[name]}"):
        kind(**{name: LARGEST[name] + 1})
    with pytest.raises(ConfigError, match=f"{name} is -1; it must be at least"):
        kind(**{name: -1})


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in 0\.\.1, 1 excluded"),
        ({"hidden_dim": 96, "num_heads": 9}, "hidden_dim 96 cannot be split over num_heads 9"),
        ({"backbone": ""}, "backbone and backbone_weights cannot be empty"),
        ({"backbone_weights": "a" * 5000}, "cannot be the name of a file"),
        ({"backbone_weights": "none", "frozen_stages": 0}, "frozen_batch_norm is true, but backbone_weights is 'none'"),
    ],
)
def test_what_excludes_each_other(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)
