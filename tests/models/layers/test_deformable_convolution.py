"""Deformable convolutions: by plain loops, as the plain ones they start as, and within a backbone and a model."""

import copy
import math
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.inference.folding import folded
from deformable_detr.inference.onednn import EVERYTHING
from deformable_detr.inference.prepare import PreparedDeformableDETR, prepare
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.layers.deformable_convolution import DeformableConvolution
from deformable_detr.runs.config import TrainConfig, idle_settings
from deformable_detr.training.optimizer import make_optimizer
from deformable_detr.weights import checkpoint


def moved(module, size=0.3):
    """The same network, whose deformable convolutions do move: that is what would be learnt."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "offsets_and_mask" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * size)
    return module


def bilinear(plane, y, x):
    """Value between pixels; beyond the border everything is 0."""
    height, width = plane.shape
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                total += share_y * share_x * plane[row, column].item()
    return total


def by_loops(layer, features):
    """Every output as the sum over channels and cells of weight, mask and the value at the moved place."""
    plain = layer.offsets_and_mask(features)
    batch, _, height, width = plain.shape
    outputs, per_group, _, kernel = layer.weight.shape
    groups = features.shape[1] // per_group
    result = torch.zeros(batch, outputs, height, width, dtype=features.dtype)
    for image, out, row, column in torch.cartesian_prod(*map(torch.arange, (batch, outputs, height, width))).tolist():
        total = 0.0 if layer.bias is None else layer.bias[out].item()
        for cell in range(kernel * kernel):
            down, right = divmod(cell, kernel)
            y = row * layer.stride[0] - layer.padding[0] + down * layer.dilation[0]
            x = column * layer.stride[1] - layer.padding[1] + right * layer.dilation[1]
            y += plain[image, 2 * cell, row, column].item()
            x += plain[image, 2 * cell + 1, row, column].item()
            mask = 2 / (1 + math.exp(-plain[image, 18 + cell, row, column].item()))
            for channel in range(per_group):
                source = features[image, out // (outputs // groups) * per_group + channel]
                total += layer.weight[out, channel, down, right].item() * mask * bilinear(source, y, x)
        result[image, out, row, column] = total
    return result


PLAIN = [
    {"stride": 1, "padding": 1, "bias": True},
    {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
]


@pytest.mark.parametrize("settings", PLAIN)
def test_it_is_the_sum_over_moved_cells(settings):
    layer = moved(DeformableConvolution(nn.Conv2d(4, 6, 3, **settings)).double(), 0.2)
    features = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(features), by_loops(layer, features), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", PLAIN)
def test_it_starts_as_the_plain_convolution(settings):
    plain = nn.Conv2d(4, 6, 3, **settings)
    layer = DeformableConvolution(copy.deepcopy(plain))
    assert set(layer.state_dict()) - {"offsets_and_mask.weight", "offsets_and_mask.bias"} == set(plain.state_dict())
    features = torch.randn(2, 4, 9, 13)
    torch.testing.assert_close(layer(features), plain(features), rtol=0, atol=1e-5)


def test_gradients_reach_offsets_and_masks():
    layer = DeformableConvolution(nn.Conv2d(4, 6, 3, padding=1))
    layer(torch.randn(2, 4, 9, 13)).square().sum().backward()
    gradient = layer.offsets_and_mask.weight.grad.flatten(1).abs().sum(1)
    assert (gradient > 0).all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_coordinates_in_float32(dtype):
    layer = moved(DeformableConvolution(nn.Conv2d(4, 6, 3, padding=1)))
    features = torch.randn(2, 4, 9, 13).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(features)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, layer(features.float()).to(dtype))


def make_backbone(name="test_resnet", **changes):
    settings = {"num_maps": 3, "dilation": False, "frozen_stages": 2, "frozen_batch_norm": True}
    return Backbone(name, **settings | {"deformable_stages": 2} | changes)


def deformable(module):
    return [name for name, one in module.named_modules() if isinstance(one, DeformableConvolution)]


@pytest.mark.parametrize(
    ("name", "first", "count", "frozen_batch_norm", "dilation"),
    [
        ("test_resnet", "layer3.0.conv2", 3, True, False),
        ("test_resnet", "layer3.0.conv2", 3, False, True),
        ("resnet18", "layer3.0.conv1", 8, True, False),
        ("resnet26d", "layer3.0.conv2", 4, False, False),
        ("resnext50_32x4d", "layer3.0.conv2", 9, True, True),
    ],
)
def test_a_backbone_starts_as_the_plain_one(tmp_path, name, first, count, dilation, frozen_batch_norm):
    torch.manual_seed(0)
    save_file(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "w.safetensors")
    settings = {"dilation": dilation, "frozen_batch_norm": frozen_batch_norm}
    plain, changed = make_backbone(name, deformable_stages=0, **settings), make_backbone(name, **settings)
    for backbone in (plain, changed):
        backbone.load_weights(str(tmp_path / "w.safetensors"))
        backbone.eval()
    assert deformable(changed.body)[0] == first
    assert len(deformable(changed.body)) == count
    assert {key for key in changed.state_dict() if "offsets_and_mask" not in key} == set(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(changed(images), plain(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_frozen_stages_stay_plain_and_frozen():
    backbone = make_backbone(deformable_stages=3)
    trained = {name for name, parameter in backbone.body.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"layer2", "layer3", "layer4"}
    assert {name.split(".")[0] for name in deformable(backbone.body)} == {"layer2", "layer3", "layer4"}
    with pytest.raises(ConfigError, match=r"deformable_stages is 4 and frozen_stages 2, .*=3 or frozen_stages=1"):
        make_backbone(deformable_stages=4)


@pytest.mark.parametrize(
    ("name", "stages", "message"),
    [
        ("mobilenetv2_100", 1, "backbone mobilenetv2_100 is no ResNet or ResNeXt of timm; choose one, such as resnext"),
        ("res2net50_26w_4s", 1, "is no ResNet or ResNeXt"),
        ("test_resnet", 5, "deformable_stages is 5, but backbone test_resnet has 4 stages behind its stem"),
    ],
)
def test_backbones_that_cannot_have_them_are_refused(name, stages, message):
    with pytest.raises(ConfigError, match=message):
        make_backbone(name, deformable_stages=stages, frozen_stages=0)
    with pytest.raises(ConfigError, match="deformable_stages is -1; it must be at least 0"):
        DeformableDETRConfig(deformable_stages=-1)


def test_a_folded_backbone_computes_the_same():
    for name in ("test_resnet", "resnet18"):
        backbone = make_backbone(name, frozen_stages=0).eval()
        with torch.no_grad():
            for buffer_name, buffer in backbone.named_buffers():
                if buffer_name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        moved(backbone, 0.05)
        result = folded(backbone.body, EVERYTHING)
        assert result is not None
        assert len(deformable(result)) == len(deformable(backbone))
        images = torch.randn(1, 3, 96, 160).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            for one, other in zip(result(images), backbone(images), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_prepared_model_predicts_the_same(tiny_config, precision):
    torch.manual_seed(4)
    model = moved(build(replace(tiny_config.model, num_classes=3, variant="refine", deformable_stages=2)).eval(), 0.1)
    prepared = prepare(model, precision=precision, choice=EVERYTHING)
    assert isinstance(prepared, PreparedDeformableDETR)
    assert deformable(prepared.body)
    images, mask = torch.randn(2, 3, 65, 97), torch.zeros(2, 65, 97, dtype=torch.bool)
    with torch.no_grad():
        expected, found = model(images, mask).final, prepared(images, mask).final
    close = {"float32": 1e-4, "bfloat16": 0.05}[precision]
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=close)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=close * 10)


def test_it_is_saved_and_loaded(tiny_config, tmp_path):
    config = replace(tiny_config.model, num_classes=2, deformable_stages=3)
    model = moved(build(config))
    saved = checkpoint.Checkpoint(
        weights=model.state_dict(),
        model=config,
        classes=("a", "b"),
        category_ids=(1, 2),
        preprocessing=tiny_config.preprocessing,
    )
    checkpoint.save(saved, tmp_path / "it.safetensors")
    loaded = checkpoint.load(tmp_path / "it.safetensors")
    assert loaded.model == config
    assert "3 deformable stages" in loaded.model.describe()
    again = checkpoint.build_model(loaded, tmp_path / "it.safetensors")
    assert deformable(again) == deformable(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_offsets_learn_at_the_rate_of_the_backbone(tiny_config):
    model = build(replace(tiny_config.model, deformable_stages=2))
    optimizer = make_optimizer(model, TrainConfig().optimizer, 1e-3)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    found = [rates[id(one)] for name, one in model.named_parameters() if "offsets_and_mask" in name]
    assert found == pytest.approx([1e-4] * len(found))
    assert len(found) >= 4


def test_with_a_frozen_backbone_they_have_no_effect():
    with pytest.raises(ConfigError, match=r"model\.deformable_stages has no effect: run\.freeze holds the backbone"):
        TrainConfig().with_settings(freeze=("backbone",), deformable_stages=3)
    assert idle_settings(TrainConfig().with_settings(deformable_stages=3)).keys() == idle_settings(TrainConfig()).keys()
