import pytest
import timm
import torch
from torch import nn

from deformable_detr.inference.folding import folded
from deformable_detr.inference.onednn import EVERYTHING, NOTHING, PackedProducts


class Network(nn.Module):
    """Layers one after another, whose last output is the only map."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return [self.layers(images)]


class Branches(nn.Module):
    """A convolution used twice, sums of every order, and a norm that is no neighbour of a convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.after = nn.BatchNorm2d(8)

    def forward(self, images):
        first = self.first(images)
        normed = self.norm(first)
        one = self.second(normed).relu() + first
        two = torch.relu(normed + self.third(one))
        two += self.second(two)
        return [self.after(two), one]


def with_statistics(network):
    """Network in evaluation mode whose norms have seen images, so that they are not the identity."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    return network.eval()


@torch.no_grad()
def compare(network, choice, dtype=torch.float32, tolerance=1e-4):
    result = folded(network, choice, dtype)
    assert result is not None
    images = torch.randn(1, 3, 96, 160).contiguous(memory_format=torch.channels_last)
    for one, two in zip(network(images), result(images.to(dtype)), strict=True):
        assert float((one - two).abs().max()) <= tolerance * (1 + float(one.abs().max()))
    return result


@pytest.mark.parametrize("choice", [NOTHING, EVERYTHING], ids=["plain", "packed"])
@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_100", "test_efficientnet"])
def test_networks_of_timm(name, choice):
    network = with_statistics(timm.create_model(name, features_only=True, pretrained=False))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    result = compare(network, choice)
    assert not any("BatchNorm" in type(module).__name__ for module in result.modules())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet50", "resnet50d", "convnext_small", "regnety_002", "densenet121", "dla34", "hrnet_w18_small", "vgg11_bn"],
)
def test_more_networks_of_timm(name):
    compare(with_statistics(timm.create_model(name, features_only=True, pretrained=False)), EVERYTHING)


def test_frozen_norms_with_an_activation_within():
    from timm.layers.norm_act import freeze_batch_norm_2d

    network = freeze_batch_norm_2d(timm.create_model("mobilenetv2_100", features_only=True, pretrained=False))
    result = compare(with_statistics(network), EVERYTHING)
    assert {type(module).__name__ for module in result.children()} == {"Convolution"}


def test_sums_and_what_is_used_twice():
    compare(with_statistics(Branches()), EVERYTHING)
    compare(
        with_statistics(Branches()), PackedProducts(linear=False, pointwise=True, convolution=False, depthwise=False)
    )


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)),
        (nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU()),
        (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Mish()),
        (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Identity(), nn.Dropout(0.5), nn.SiLU()),
        (nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(0, 2)), nn.Hardswish()),
    ],
)
def test_layers_of_every_kind(layers):
    compare(with_statistics(Network(*layers)), EVERYTHING)


def test_an_activation_that_is_not_known_stays():
    from timm.layers.norm_act import BatchNormAct2d

    compare(with_statistics(Network(nn.Conv2d(3, 8, 3), BatchNormAct2d(8, act_layer=nn.Mish))), EVERYTHING)


def test_bfloat16():
    network = with_statistics(timm.create_model("test_resnet", features_only=True, pretrained=False))
    result = compare(network, EVERYTHING, torch.bfloat16, tolerance=0.05)
    assert {map_.dtype for map_ in result(torch.zeros(1, 3, 64, 96, dtype=torch.bfloat16))} == {torch.bfloat16}
    assert next(network.parameters()).dtype == torch.float32


def test_code_that_depends_on_the_numbers_is_left_alone():
    class Fickle(Network):
        def forward(self, images):
            return super().forward(images) if float(images.mean()) > 0 else super().forward(-images)

    assert folded(Fickle(nn.Conv2d(3, 4, 1)).eval(), EVERYTHING) is None


def test_a_network_that_folding_would_change_is_left_alone():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, images):
            return [self.first(images) + self.second(images).mean((2, 3), keepdim=True) * torch.rand(1)]

    assert folded(Broadcast().eval(), EVERYTHING) is None
