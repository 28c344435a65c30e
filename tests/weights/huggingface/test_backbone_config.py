import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.weights.huggingface.backbone_config import (
    backbone_from,
    backbone_settings,
    body_of,
    check_norms,
    maps_of,
    maps_there,
)


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet"])
@pytest.mark.parametrize("dilation", [False, True])
@pytest.mark.parametrize("num_maps", [1, 2])
def test_there_and_back(backbone, dilation, num_maps):
    settings = backbone_settings(backbone, dilation, num_maps, [1, 2, 3, 4])
    assert backbone_from(settings) == {"backbone": backbone, "dilation": dilation}
    body = body_of(backbone, dilation, num_maps)
    last = maps_of(body)[-1]
    assert maps_there(settings, [1, 2, 3, 4], last + 1)[-num_maps:] == maps_of(body)
    check_norms(body, backbone, settings)
    # Where it is only named, both versions of transformers know it; a norm with an activation must be named as frozen.
    assert ("use_timm_backbone" in settings) == (backbone == "resnet18")


def test_maps_are_counted_from_the_finest():
    assert maps_there({"backbone_config": {"out_indices": [2, -1]}}, [4], 5) == [2, 4]
    assert maps_there({"backbone_config": {"out_features": ["stage2", "stage4"]}}, [4], 5) == [2, 4]
    assert maps_there({}, [1, 4], 5) == [1, 4]
    assert maps_there({"use_timm_backbone": False}, [1, 4], 5) == [4]


def test_a_norm_that_they_would_replace():
    with pytest.raises(CheckpointError, match="backbone test_efficientnet: transformers puts its own batch norm"):
        check_norms(body_of("test_efficientnet", False, 1), "test_efficientnet", {})
