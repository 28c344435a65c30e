import pytest
import torch
import torch.nn.functional as F

from deformable_detr.inference import onednn
from deformable_detr.inference.onednn import (
    EVERYTHING,
    NOTHING,
    Convolution,
    Linear,
    PackedProducts,
    measured_choice,
    why_unpacked,
)

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
GEOMETRIES = [(1, 1, 0, 1, 1), (1, 2, 0, 1, 1), (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (3, 1, 2, 2, 1), (3, 2, 1, 1, 12),
              (5, 1, 2, 1, 12), (3, 1, 1, 1, 4)]  # fmt: skip


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def packed(request):
    if request.param and why_unpacked() is not None:
        pytest.skip(why_unpacked())
    return request.param


def test_the_supported_versions_have_the_operators():
    """Fails with the first PyTorch that drops them: then this package needs another way, and `doctor` says so."""
    assert why_unpacked() is None


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(packed, activation, has_bias):
    inputs, weight = torch.randn(2, 7, 24), torch.randn(40, 24)
    bias = torch.randn(40) if has_bias else None
    layer = Linear(weight, bias, activation=activation, packed=packed)
    product = F.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    expected = ACTIVATIONS[activation](product)
    torch.testing.assert_close(layer(inputs).double(), expected, rtol=1e-5, atol=1e-5)
    if activation == "none":
        residual = torch.randn(2, 7, 40)
        kept = residual.clone()
        torch.testing.assert_close(layer(inputs, residual).double(), expected + residual, rtol=1e-5, atol=1e-5)
        assert torch.equal(residual, kept)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("has_residual", [False, True])
def test_convolution(packed, activation, geometry, has_residual):
    kernel, stride, padding, dilation, groups = geometry
    image = torch.randn(2, 12, 9, 13).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(24, 12 // groups, kernel, kernel), torch.randn(24)
    layer = Convolution(
        weight,
        bias,
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        groups=groups,
        activation=activation,
        packed=packed,
    )
    expected = F.conv2d(image.double(), weight.double(), bias.double(), stride, padding, dilation, groups)
    residual = torch.randn_like(expected, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    kept, given = residual.clone(), image.clone()
    if has_residual:
        expected = expected + residual
    found = layer(image, residual) if has_residual else layer(image)
    torch.testing.assert_close(found.double(), ACTIVATIONS[activation](expected), rtol=1e-5, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(residual, kept)
    assert torch.equal(image, given)


def test_bfloat16(packed):
    inputs, weight = torch.randn(50, 24), torch.randn(40, 24)
    found = Linear(weight.bfloat16(), None, packed=packed)(inputs.bfloat16())
    assert found.dtype == torch.bfloat16
    assert float((found - inputs @ weight.T).abs().max()) < 0.02 * float((inputs @ weight.T).abs().max())


def test_the_choice_is_measured_once_and_leaves_the_random_numbers_alone(monkeypatch):
    onednn._measured.cache_clear()
    state = torch.get_rng_state()
    choice = measured_choice()
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(onednn, "_is_faster", lambda *_: pytest.fail("measured again"))
    assert measured_choice() is choice


@pytest.mark.parametrize("faster", [False, True])
def test_what_pays_is_chosen(monkeypatch, faster):
    onednn._measured.cache_clear()
    monkeypatch.setattr(onednn, "_is_faster", lambda product, *_: faster and product is Linear)
    assert measured_choice() == PackedProducts(linear=faster, pointwise=False, convolution=False, depthwise=False)
    onednn._measured.cache_clear()


def test_without_the_operators_nothing_is_chosen(monkeypatch):
    onednn._measured.cache_clear()
    monkeypatch.setattr(onednn, "_NAMES", ("_a_name_that_is_gone",))
    assert "no longer has torch.ops.mkldnn._a_name_that_is_gone" in why_unpacked()
    assert measured_choice() == NOTHING != EVERYTHING
    onednn._measured.cache_clear()
