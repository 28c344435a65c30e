"""Feature maps of timm's networks: which, how frozen, and where their weights come from."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.models.layers.backbone import Backbone


def make_backbone(name="resnet10t", **changes):
    settings = {"num_maps": 3, "dilation": False, "frozen_stages": 2, "frozen_batch_norm": True} | changes
    return Backbone(name, **settings)


@pytest.mark.parametrize(("name", "channels"), [("resnet50", [512, 1024, 2048]), ("mobilenetv2_100", [32, 96, 320])])
def test_maps_of_strides_8_16_32(name, channels):
    backbone = make_backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 70, 100))
    assert [one.shape[1:] for one in maps] == [
        (channels[0], 9, 13),
        (channels[1], 5, 7),
        (channels[2], 3, 4),
    ]
    assert (backbone.num_channels, backbone.strides) == (channels, [8, 16, 32])


def test_dilation_keeps_the_last_stage_at_stride_16():
    backbone = make_backbone("resnet50", num_maps=1, dilation=True)
    assert (backbone.num_channels, backbone.strides) == ([2048], [16])


@pytest.mark.parametrize(
    ("name", "first_trained"), [("resnet50", "layer2.0.conv1.weight"), ("mobilenetv2_100", "blocks.2.0.conv_pw.weight")]
)
def test_stem_and_first_stage_are_frozen(name, first_trained):
    trained = [key for key, parameter in make_backbone(name).body.named_parameters() if parameter.requires_grad]
    assert trained[0] == first_trained


def test_frozen_batch_norm_is_not_touched_by_training():
    backbone = make_backbone(frozen_stages=0).train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items() if "running" in key}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    backbone(torch.randn(2, 3, 64, 96))
    for key, tensor in before.items():
        assert torch.equal(tensor, backbone.state_dict()[key])


def test_without_freezing_everything_learns():
    backbone = make_backbone(frozen_stages=0, frozen_batch_norm=False)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_of_the_whole_classifier(tmp_path, suffix):
    whole = timm.create_model("resnet10t", pretrained=False)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(whole.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in whole.state_dict().items()}}, path)
    backbone = make_backbone()
    backbone.load_weights(str(path))
    own = backbone.body.state_dict()
    expected = whole.state_dict()
    assert own
    for key, tensor in own.items():
        assert torch.equal(tensor, expected[key]), key


def test_another_networks_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("mobilenetv2_035", pretrained=False).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"does not hold weights of resnet10t: \d+ parameters missing"):
        make_backbone().load_weights(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.pth", None, "no such file"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
        ("cut.pth", b"PK\x03\x04 and then nothing", "is not a whole file of PyTorch weights"),
        ("text.pth", b"hello", "is a text, not weights"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        make_backbone().load_weights(str(path))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensor: tensor * float("nan"),
            r"w\.safetensors: the weights are not finite, conv1\.0\.weight is the first",
        ),
        (lambda tensor: tensor.to(torch.int64), r"conv1\.0\.weight is int64 there and float32 here"),
        (lambda tensor: tensor.to(torch.complex64), r"conv1\.0\.weight is complex64 there and float32 here"),
        (
            lambda tensor: tensor.to(torch.float8_e4m3fn),
            r"conv1\.0\.weight holds numbers of type float8_e4m3fn; weights are",
        ),
    ],
)
def test_weights_that_cannot_compute_are_refused(tmp_path, change, message):
    backbone = make_backbone()
    state = backbone.body.state_dict()
    save_file(state | {"conv1.0.weight": change(state["conv1.0.weight"])}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        backbone.load_weights(str(tmp_path / "w.safetensors"))


def test_a_file_without_a_table_of_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no table of named tensors"):
        make_backbone().load_weights(str(tmp_path / "list.pth"))


def test_the_hub_out_of_reach_offers_a_way_out(monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError("no route to host")

    backbone = make_backbone()
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(CheckpointError, match=r"no route to host.*--backbone-weights PATH"):
        backbone.load_weights("hub")


def test_impossible_backbones_are_refused():
    with pytest.raises(ConfigError, match="timm knows no backbone 'resnet51'; did you mean one of"):
        make_backbone("resnet51")
    with pytest.raises(
        ConfigError, match=r"timm knows resnet10t, but no weights 'resnet10t.in22k' for it; there are resn"
    ):
        make_backbone("resnet10t.in22k")
    with pytest.raises(ConfigError, match="has 5 feature maps, num_levels asks for 6"):
        make_backbone(num_maps=6)
    with pytest.raises(ConfigError, match="frozen_stages is 9, but backbone resnet10t has 5 stages"):
        make_backbone(frozen_stages=9)


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet10t", "hf_hub:x", "local-dir:.", "./resnet10t", "timm/resnet10t", ""]
)
def test_names_that_lead_elsewhere_are_never_given_to_timm(monkeypatch, name):
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(ConfigError, match="timm knows no backbone"):
        make_backbone(name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_that_take_one_size_only_are_refused(name):
    with pytest.raises(ConfigError, match=f"backbone {name} .*; choose a convolutional network"):
        make_backbone(name, num_maps=2, frozen_stages=0)


def test_trying_a_network_out_changes_nothing_in_it():
    backbone = make_backbone(frozen_stages=0, frozen_batch_norm=False)
    assert backbone.training
    assert all(module.training for module in backbone.modules())
    counters = [one for name, one in backbone.named_buffers() if name.endswith("num_batches_tracked")]
    assert counters
    assert not any(counters)


def test_the_dilated_resnet_is_torchvisions():
    """Which is the one that the official weights were trained with."""
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, False, True]).eval()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_()
    ours = make_backbone("resnet50.tv_in1k", num_maps=1, dilation=True).eval()
    ours.body.load_state_dict(state, strict=False)
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        [found] = ours(images)
        expected = images
        for name, part in theirs.named_children():
            if name in ("avgpool", "fc"):
                break
            expected = part(expected)
    assert found.shape == (1, 2048, 6, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_stages_are_parts_that_are_called_once():
    backbone = Backbone("resnet10t", num_maps=1, dilation=False, frozen_stages=0, frozen_batch_norm=True)
    called = []
    for stage in backbone.stages():
        stage.register_forward_hook(lambda module, *_: called.append(module))
    backbone(torch.randn(2, 3, 64, 80))
    assert called == backbone.stages() != []
