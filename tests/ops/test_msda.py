"""Every backend equals a loop over single samples in float64, forward and backward, over awkward shapes."""

import math

import pytest
import torch

from deformable_detr.errors import BackendError
from deformable_detr.ops import backends, multi_scale_deformable_attention
from deformable_detr.ops.msda import BACKENDS
from deformable_detr.ops.msda import _check as check

SHAPES = ((7, 5), (4, 3), (1, 2))
BATCH, QUERIES, HEADS, HEAD_DIM, POINTS = 2, 5, 3, 6, 4


def make_inputs(seed=0, dtype=torch.float64, spatial_shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    positions = sum(height * width for height, width in spatial_shapes)
    value = torch.randn(BATCH, positions, HEADS, HEAD_DIM, generator=generator, dtype=torch.float64)
    locations = torch.rand(
        BATCH, QUERIES, HEADS, len(spatial_shapes), POINTS, 2, generator=generator, dtype=torch.float64
    )
    locations = locations * 1.6 - 0.3  # some outside, on every side
    weights = torch.rand(BATCH, QUERIES, HEADS, len(spatial_shapes), POINTS, generator=generator, dtype=torch.float64)
    return value.to(dtype), locations.to(dtype), weights.to(dtype)


def sample_by_hand(value, spatial_shapes, locations, weights):
    """One query, head, level, point and pixel at a time."""
    result = torch.zeros(value.shape[0], locations.shape[1], *value.shape[2:], dtype=value.dtype)
    for b, q, m in torch.cartesian_prod(*(torch.arange(n) for n in result.shape[:3])).tolist():
        start = 0
        for level, (height, width) in enumerate(spatial_shapes):
            for point in range(locations.shape[4]):
                x = float(locations[b, q, m, level, point, 0]) * width - 0.5
                y = float(locations[b, q, m, level, point, 1]) * height - 0.5
                for row in range(height):
                    for column in range(width):
                        share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                        pixel = value[b, start + row * width + column, m]
                        result[b, q, m] += float(weights[b, q, m, level, point]) * share * pixel
            start += height * width
    return result


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_definition(backend):
    value, locations, weights = make_inputs()
    result = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(result, sample_by_hand(value, SHAPES, locations, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    value, locations, weights = (tensor.requires_grad_() for tensor in make_inputs(seed=3))

    def run(value, locations, weights):
        return multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)

    torch.autograd.gradcheck(run, (value, locations, weights), fast_mode=True)


def test_backends_agree_on_gradients_in_float32():
    gradients = []
    for backend in BACKENDS:
        inputs = [tensor.requires_grad_() for tensor in make_inputs(seed=5, dtype=torch.float32)]
        result = multi_scale_deformable_attention(inputs[0], SHAPES, *inputs[1:], backend=backend)
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, 1e30])
def test_a_location_that_is_nowhere_contributes_nothing(backend, nonsense):
    value, locations, weights = make_inputs(dtype=torch.float32)
    silent = weights.clone()
    silent[1, 2, 0, 1, 3] = 0
    expected = multi_scale_deformable_attention(value, SHAPES, locations, silent, backend=backend)
    locations[1, 2, 0, 1, 3, 0] = nonsense
    result = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_values_are_summed_in_float32(backend):
    value, locations, weights = make_inputs(dtype=torch.float32)
    result = multi_scale_deformable_attention(value.bfloat16(), SHAPES, locations, weights, backend=backend)
    exact = multi_scale_deformable_attention(
        value.bfloat16().double(), SHAPES, locations.double(), weights.double(), backend="reference"
    )
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, exact.bfloat16(), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_are_read_right(backend):
    value, locations, weights = make_inputs()
    expected = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3)
    result = multi_scale_deformable_attention(strided, SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(result, expected)


def test_no_queries_fall_to_a_backend_that_can():
    value, locations, weights = make_inputs()
    empty = (value, SHAPES, locations[:, :0], weights[:, :0])
    assert backends(*empty) == {"grid_sample": "grid_sample refuses empty tensors", "reference": None}
    assert multi_scale_deformable_attention(*empty).shape == (BATCH, 0, HEADS, HEAD_DIM)
    with pytest.raises(BackendError, match="backend 'grid_sample' cannot run: grid_sample refuses"):
        multi_scale_deformable_attention(*empty, backend="grid_sample")


def test_disagreeing_tensors_are_named_with_both_numbers():
    # The checks alone: with the shape hook of the test run, annotations would speak first.
    value, locations, weights = make_inputs()
    with pytest.raises(ValueError, match=r"value has 48 positions but spatial_shapes .* need 49"):
        check(value[:, 1:], SHAPES, locations, weights)
    with pytest.raises(ValueError, match=r"sampling_locations have shape \(2, 5, 3, 2, 4, 2\)"):
        check(value, SHAPES, locations[:, :, :, :2], weights)
    with pytest.raises(ValueError, match=r"attention_weights have shape \(2, 4, 3, 3, 4\)"):
        check(value, SHAPES, locations, weights[:, :4])
    with pytest.raises(ValueError, match="value needs axes"):
        check(value[0], SHAPES, locations, weights)
    with pytest.raises(ValueError, match="sampling_locations need axes"):
        check(value, SHAPES, locations[..., 0], weights)


@pytest.mark.compile
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend):
    value, locations, weights = make_inputs(dtype=torch.float32)
    compiled = torch.compile(multi_scale_deformable_attention, fullgraph=True, backend="aot_eager")
    expected = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(compiled(value, SHAPES, locations, weights, backend=backend), expected)
