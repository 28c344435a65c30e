from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from deformable_detr.core.errors import BackendError, ConfigError
from deformable_detr.models import build
from deformable_detr.training.acceleration import (
    Precision,
    bound_primitive_cache,
    checkpoint_activations,
    checkpointed_parts,
    compile_layers,
)
from deformable_detr.training.freezing import freeze
from tests import processes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_network_computes_in_what_was_asked_for(name, expected):
    layer, inputs = nn.Linear(8, 3), torch.randn(5, 8)
    precision = Precision(name, CPU)
    with precision.applied():
        assert layer(inputs).dtype == expected
    assert layer(inputs).dtype == layer.weight.dtype == torch.float32


def test_a_cpu_has_no_float16():
    with pytest.raises(BackendError, match="float16 is for GPUs; on a CPU there are float32 and bfloat16"):
        Precision("float16", CPU)


@pytest.mark.parametrize(
    ("has", "slow"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, True),
        ({"avx512_bf16": True}, False),
        ({"amx_bf16": True}, False),
        ({"architecture": "arm64", "bf16": True}, False),
        ({}, True),
    ],
)
def test_a_cpu_without_instructions_for_bfloat16_is_known(monkeypatch, has, slow):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: has, raising=False)
    assert Precision("bfloat16", CPU).is_slow is slow
    assert not Precision("auto", CPU).is_slow
    monkeypatch.delattr("torch.cpu.get_capabilities")
    assert not Precision("bfloat16", CPU).is_slow


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_gets_half_precision_by_what_it_has(monkeypatch, capability, expected):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "An old card")
    monkeypatch.setattr("torch.amp.GradScaler", lambda device, enabled: enabled)
    precision = Precision("auto", torch.device("cuda"))
    assert precision.name == expected
    if expected == "float16":
        with pytest.raises(BackendError, match="An old card has no bfloat16; use --precision float16"):
            Precision("bfloat16", torch.device("cuda"))


def test_a_step_in_float32_is_the_optimizers_own():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 2), nn.Linear(4, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    inputs = torch.randn(3, 4)
    optimizers = [torch.optim.AdamW(layer.parameters(), lr=0.1) for layer in layers]
    precision = Precision("float32", CPU)
    precision.backward(layers[0](inputs).square().sum())
    precision.unscale(optimizers[0])
    precision.step(optimizers[0])
    layers[1](inputs).square().sum().backward()
    optimizers[1].step()
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not precision.may_overflow
    precision.restore(precision.state())


def test_without_a_compiler(tiny_config, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    model = build(tiny_config.model, load_backbone_weights=False)
    with pytest.raises(ConfigError, match=r"compile is true.*no c\+\+ or g\+\+"):
        compile_layers(model)
    monkeypatch.setenv("CXX", "mycc")
    with pytest.raises(ConfigError, match="there is no mycc"):
        compile_layers(model)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it, where warnings are no errors
def test_compiled_layers_learn_the_same_also_when_computed_twice(tiny_config):
    plain = build(replace(tiny_config.model, variant="refine", dropout=0.0), load_backbone_weights=False).train()
    model = deepcopy(plain)
    checkpoint_activations(model)
    compile_layers(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    for height, width in ((66, 97), (80, 71), (64, 110)):
        images = torch.randn(2, 3, height, width, generator=generator)
        padding_mask = torch.zeros(2, height, width, dtype=torch.bool)
        padding_mask[1, 50:] = True
        for one in (plain, model):
            one.zero_grad()
            output = one(images, padding_mask)
            sum(layer.boxes.sum() + layer.logits.square().mean() for layer in output.layers).backward()
        for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                assert (ours.grad - theirs.grad).norm() <= 1e-3 * theirs.grad.norm() + 1e-6, name


@pytest.fixture
def batch():
    """Two images, height is not width, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    padding_mask = torch.zeros(2, 66, 97, dtype=torch.bool)
    padding_mask[1, 50:] = padding_mask[1, :, 70:] = True
    return torch.randn(2, 3, 66, 97, generator=generator) * ~padding_mask[:, None], padding_mask


def gradients(model, batch):
    torch.manual_seed(3)
    output = model.train()(*batch)
    sum((one.boxes.sum() + one.logits.square().mean()) for one in output.layers).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_same_gradients_to_the_last_bit(tiny_config, batch, variant, frozen):
    config = replace(tiny_config.model, dropout=0.2, variant=variant, frozen_batch_norm=False)
    plain = build(config, load_backbone_weights=False)
    if frozen:
        plain = build(replace(config, frozen_batch_norm=True, backbone_weights="here"), load_backbone_weights=False)
    model = deepcopy(plain)
    checkpoint_activations(model)
    assert checkpointed_parts(model) == ["backbone"] * frozen + ["encoder", "decoder"]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for ours, theirs in zip(gradients(model, batch), gradients(plain, batch), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_less_is_remembered(tiny_config, batch):
    model = build(replace(tiny_config.model, encoder_layers=3, ffn_dim=512), load_backbone_weights=False)
    freeze(model, ("backbone",))
    remembered = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_activations(model)
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.train()(*batch)
        remembered.append(sum(tensor.numel() for tensor in kept.values()))
        del output
    assert remembered[1] < 0.5 * remembered[0]


def test_copies_are_their_own(tiny_config):
    model = build(tiny_config.model, load_backbone_weights=False)
    assert checkpointed_parts(model) == []
    checkpoint_activations(model)
    copy = deepcopy(model)
    assert copy.encoder.layers[0].forward.args[0].__self__ is copy.encoder.layers[0]


def convolve_sizes_and_the_first_again():
    bound_primitive_cache()
    conv = torch.nn.Conv2d(16, 16, 3)
    for side in [*range(40, 80), 40]:
        conv(torch.zeros(1, 16, side, side))


@pytest.mark.parametrize("own", [None, "1000"])
def test_convolutions_of_sizes_long_gone_are_forgotten(tmp_path, monkeypatch, own):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    environment = {"ONEDNN_VERBOSE": "2"}
    if own is not None:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = own
    said = tmp_path / "said.txt"
    with processes.start(convolve_sizes_and_the_first_again, said=said, environment=environment) as process:
        assert process.wait() == 0, process.said
    prepared = [line for line in process.printed.splitlines() if "create:cache_miss,cpu,convolution" in line]
    if not prepared:
        pytest.skip("convolutions are not oneDNN's here")
    assert len(prepared) == (41 if own is None else 40)
