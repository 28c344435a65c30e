import pytest
import torch
from torch import nn

from deformable_detr.core.errors import BackendError
from deformable_detr.training.precision import Precision

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


def test_a_processor_has_no_float16():
    with pytest.raises(BackendError, match="float16 is for GPUs; on a processor there are float32 and bfloat16"):
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
def test_a_processor_without_instructions_for_bfloat16_is_known(monkeypatch, has, slow):
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
