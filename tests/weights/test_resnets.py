import pytest
import torch
import torchvision

from deformable_detr.core.errors import CheckpointError
from deformable_detr.weights.resnets import ALL, BODY, MIDDLE, OF_BOTTLENECKS, resnet_of


def tensors_of(name):
    with torch.device("meta"):
        body = getattr(torchvision.models, name)(weights=None).state_dict()
    return {BODY + key: tensor for key, tensor in body.items()}


@pytest.mark.parametrize("name", ALL)
def test_torchvisions_networks_are_told_apart(name):
    tensors = tensors_of(name)
    assert MIDDLE in tensors
    assert resnet_of(tensors, ALL) == name
    assert (name in OF_BOTTLENECKS) == (tensors[f"{BODY}fc.weight"].shape[1] == 2048)


def test_what_a_code_does_not_take_is_refused():
    with pytest.raises(CheckpointError, match=r"has \(3, 4, 6, 3\) blocks, 64 channels wide; known are resnet50, resn"):
        resnet_of(tensors_of("resnet34"), OF_BOTTLENECKS)
    cut = {name: tensor for name, tensor in tensors_of("resnet50").items() if "layer3.5" not in name}
    with pytest.raises(CheckpointError, match=r"has \(3, 4, 5, 3\) blocks"):
        resnet_of(cut, ALL)
