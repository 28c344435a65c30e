"""Every backend equals a loop over single samples in float64, forward and backward, over awkward shapes."""

import math

import pytest
import torch

from deformable_detr.core.errors import BackendError
from deformable_detr.ops import (
    backends,
    cpu,
    multi_scale_deformable_attention,
    multi_scale_deformable_attention_from_projection,
)
from deformable_detr.ops.msda import choose
from deformable_detr.ops.reference import locations_and_weights

# Every backend that can run on the CPU; where there was no compiler, the kernel cannot.
BACKENDS = ("grid_sample", "reference") if cpu.missing() else ("cpu", "grid_sample", "reference")
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
    for others in gradients[:-1]:
        for one, other in zip(others, gradients[-1], strict=True):  # the reference is the last
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
    reasons = backends(*empty)
    assert reasons["grid_sample"] == "grid_sample refuses empty tensors"
    assert reasons["reference"] is None
    assert reasons["triton"] == "it needs a CUDA tensor, value is on cpu"
    assert multi_scale_deformable_attention(*empty).shape == (BATCH, 0, HEADS, HEAD_DIM)
    with pytest.raises(BackendError, match="backend 'grid_sample' cannot run: grid_sample refuses"):
        multi_scale_deformable_attention(*empty, backend="grid_sample")


def test_the_first_backend_that_can_run_is_chosen():
    value, locations, weights = make_inputs(dtype=torch.float32)
    able = [name for name, reason in backends(value, SHAPES, locations, weights).items() if reason is None]
    assert able == list(BACKENDS)
    chosen = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert torch.equal(chosen, multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=BACKENDS[0]))


def test_an_unknown_backend_is_named():
    # Past the shape hook of the test run, which knows the names, too.
    value, locations, _ = make_inputs()
    with pytest.raises(BackendError, match=r"unknown backend 'cuda'; there are cpu, triton, grid_sample, reference"):
        choose("cuda", value, SHAPES, (POINTS,) * 3, locations.shape[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_a_pixels_centre_the_slope_is_that_towards_the_right_and_the_bottom(backend):
    """Where every query of an encoder looks before it has learnt to look elsewhere."""
    height, width = 3, 4
    value = torch.randn(1, 12, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    column, row = 2, 1
    centre = torch.tensor([(column + 0.5) / width, (row + 0.5) / height], dtype=torch.float64)
    locations = centre.view(1, 1, 1, 1, 1, 2).clone().requires_grad_()
    weights = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    multi_scale_deformable_attention(value, ((height, width),), locations, weights, backend=backend).sum().backward()
    pixels = value.view(height, width)
    along_x = (pixels[row, column + 1] - pixels[row, column]) * width
    along_y = (pixels[row + 1, column] - pixels[row, column]) * height
    torch.testing.assert_close(locations.grad.flatten(), torch.stack([along_x, along_y]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_levels_may_differ_in_their_points(backend):
    value, locations, weights = make_inputs()
    few = (3, 1, 2)
    picked = [slice(4 * level, 4 * level + count) for level, count in enumerate(few)]
    some_locations = torch.cat([locations.flatten(3, 4)[:, :, :, part] for part in picked], dim=3)
    some_weights = torch.cat([weights.flatten(3, 4)[..., part] for part in picked], dim=-1)
    silent = torch.zeros_like(weights).flatten(3, 4)
    for part in picked:
        silent[..., part] = weights.flatten(3, 4)[..., part]
    result = multi_scale_deformable_attention(
        value, SHAPES, some_locations, some_weights, num_points=few, backend=backend
    )
    expected = sample_by_hand(value, SHAPES, locations, silent.view_as(weights))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert backends(value, SHAPES, some_locations, some_weights, num_points=few)[backend] is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("num_points", [4, (3, 1, 2), (3, 0, 2)])
def test_a_projection_gives_the_same_as_its_locations_and_weights(backend, coordinates, num_points):
    value, _, _ = make_inputs()
    of_level = (num_points,) * 3 if isinstance(num_points, int) else num_points
    generator = torch.Generator().manual_seed(8)
    reference = torch.rand(BATCH, QUERIES, 3, coordinates, generator=generator, dtype=torch.float64)
    projection = torch.randn(BATCH, QUERIES, HEADS * sum(of_level) * 3, generator=generator, dtype=torch.float64)
    shapes = [size for pair in SHAPES for size in pair]
    locations, weights = locations_and_weights(value, reference, projection, shapes, of_level)
    expected = multi_scale_deformable_attention(
        value, SHAPES, locations, weights, num_points=of_level, backend="reference"
    )

    if backend == "grid_sample" and 0 in of_level:
        pytest.skip("grid_sample refuses empty tensors")

    def run(value, reference, projection):
        return multi_scale_deformable_attention_from_projection(
            value, SHAPES, reference, projection, num_points=num_points, backend=backend
        )

    torch.testing.assert_close(run(value, reference, projection), expected, rtol=0, atol=1e-12)
    inputs = tuple(tensor.requires_grad_() for tensor in (value, reference, projection))
    torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_offsets_around_a_point_count_pixels_of_the_level():
    value, reference, projection, shapes, offsets = make_projection(coordinates=2)
    locations, _ = locations_and_weights(value, reference, projection, shapes, (POINTS,) * 3)
    for level, (height, width) in enumerate(SHAPES):
        x = reference[1, 2, level, 0] + offsets[1, 2, 0, level, 3, 0] / width
        y = reference[1, 2, level, 1] + offsets[1, 2, 0, level, 3, 1] / height
        torch.testing.assert_close(locations[1, 2, 0, level * POINTS + 3], torch.stack([x, y]))


def test_offsets_around_a_box_count_its_half_sides_over_the_points():
    value, reference, projection, shapes, offsets = make_projection(coordinates=4)
    locations, _ = locations_and_weights(value, reference, projection, shapes, (POINTS,) * 3)
    cx, cy, w, h = reference[0, 4, 1]
    dx, dy = offsets[0, 4, 2, 1, 0]
    expected = torch.stack([cx + dx / POINTS * w / 2, cy + dy / POINTS * h / 2])
    torch.testing.assert_close(locations[0, 4, 2, POINTS], expected)


def test_weights_are_a_softmax_over_levels_and_points_of_a_head():
    value, reference, projection, shapes, _ = make_projection(coordinates=2)
    _, weights = locations_and_weights(value, reference, projection, shapes, (POINTS,) * 3)
    logits = projection[..., HEADS * 3 * POINTS * 2 :].view(BATCH, QUERIES, HEADS, 3 * POINTS)
    torch.testing.assert_close(weights[1, 3, 2], logits[1, 3, 2].exp() / logits[1, 3, 2].exp().sum())


def make_projection(coordinates):
    value, _, _ = make_inputs()
    generator = torch.Generator().manual_seed(2)
    reference = torch.rand(BATCH, QUERIES, 3, coordinates, generator=generator, dtype=torch.float64)
    projection = torch.randn(BATCH, QUERIES, HEADS * 3 * POINTS * 3, generator=generator, dtype=torch.float64)
    offsets = projection[..., : HEADS * 3 * POINTS * 2].view(BATCH, QUERIES, HEADS, 3, POINTS, 2)
    return value, reference, projection, [size for pair in SHAPES for size in pair], offsets


@pytest.mark.compile
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend):
    value, locations, weights = make_inputs(dtype=torch.float32)
    compiled = torch.compile(multi_scale_deformable_attention, fullgraph=True, backend="aot_eager")
    expected = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(compiled(value, SHAPES, locations, weights, backend=backend), expected)
