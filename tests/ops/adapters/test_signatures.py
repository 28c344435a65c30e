"""The calls of the official code and of mmcv give what the definition gives, for every batch and head size they try."""

import gc

import pytest
import torch

from deformable_detr.ops.adapters import (
    MSDeformAttnFunction,
    MultiScaleDeformableAttnFunction,
    ms_deform_attn_core_pytorch,
    multi_scale_deformable_attn_pytorch,
    signatures,
)

SHAPES = ((6, 4), (3, 2))
STARTS = (0, 24)
QUERIES, HEADS, POINTS = 5, 3, 4


def make_inputs(batch=2, head_dim=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(batch, 30, HEADS, head_dim, generator=generator, dtype=torch.float64)
    axes = (batch, QUERIES, HEADS, len(SHAPES), POINTS)
    locations = torch.rand(*axes, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(axes, generator=generator, dtype=torch.float64) + 1e-5
    weights /= weights.sum((-1, -2), keepdim=True)
    return value.to(dtype), locations.to(dtype), weights.to(dtype)


def define(value, locations, weights):
    """Every pixel of every map, weighted with the tent of every sample: the definition without an index."""
    result, start = 0, 0
    for level, (height, width) in enumerate(SHAPES):
        maps = value[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        x, y = (locations[:, :, :, level, :, axis, None] * size - 0.5 for axis, size in ((0, width), (1, height)))
        across = (1 - (x - torch.arange(width, dtype=x.dtype)).abs()).clamp(min=0)
        down = (1 - (y - torch.arange(height, dtype=y.dtype)).abs()).clamp(min=0)
        result = result + torch.einsum("bqmp,bqmpy,bqmpx,byxmd->bqmd", weights[:, :, :, level], down, across, maps)
    return result.flatten(2)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 65, 154])
def test_any_batch_whatever_the_step(batch):
    value, locations, weights = make_inputs(batch)
    shapes, starts = torch.tensor(SHAPES), torch.tensor(STARTS)
    expected = define(value, locations, weights)
    for step in (1, 2, 64, 128):
        result = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, step)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert result.shape == (batch, QUERIES, HEADS * 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shorter_types(dtype):
    """mmcv hands over everything in the type of the values."""
    value, locations, weights = make_inputs(dtype=dtype)
    expected = define(value.double(), locations.double(), weights.double())
    for function in (ms_deform_attn_core_pytorch, multi_scale_deformable_attn_pytorch):
        result = function(value, torch.tensor(SHAPES), locations, weights)
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("channels", [30, 32, 64, 71])
def test_gradients_for_odd_numbers_of_channels(channels):
    value, locations, weights = (tensor.requires_grad_() for tensor in make_inputs(1, channels))
    shapes, starts = torch.tensor(SHAPES), torch.tensor(STARTS)

    def run(value, locations, weights):
        return MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 2)

    torch.autograd.gradcheck(run, (value, locations, weights), fast_mode=True)


def test_both_neighbours_are_served_by_the_same():
    assert MultiScaleDeformableAttnFunction is MSDeformAttnFunction
    assert multi_scale_deformable_attn_pytorch is ms_deform_attn_core_pytorch


@pytest.mark.parametrize("integer", [torch.int64, torch.int32])
def test_shapes_may_be_tensors_or_numbers(integer):
    value, locations, weights = make_inputs()
    expected = define(value, locations, weights)
    for shapes in (torch.tensor(SHAPES, dtype=integer), SHAPES, [list(size) for size in SHAPES]):
        for starts in (torch.tensor(STARTS, dtype=integer), STARTS, list(STARTS)):
            result = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64)
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
        result = ms_deform_attn_core_pytorch(value, shapes, locations, weights)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_shapes_and_starts_are_checked():
    value, locations, weights = make_inputs()
    shapes = torch.tensor(SHAPES)
    with pytest.raises(ValueError, match=r"value_level_start_index is \[0, 23\], but levels .* start at \[0, 24\]"):
        MSDeformAttnFunction.apply(value, shapes, torch.tensor([0, 23]), locations, weights, 64)
    with pytest.raises(ValueError, match=r"one integer \(height, width\) for each level, not .* shape \(4,\)"):
        MSDeformAttnFunction.apply(value, shapes.flatten(), torch.tensor(STARTS), locations, weights, 64)
    with pytest.raises(ValueError, match=r"type torch\.float32"):
        ms_deform_attn_core_pytorch(value, shapes.float(), locations, weights)
    with pytest.raises(ValueError, match="value has 30 positions"):
        ms_deform_attn_core_pytorch(value, shapes + 1, locations, weights)


def test_a_remembered_shape_is_forgotten_when_it_is_written_to():
    key = signatures._Unchanged
    shapes, starts = torch.tensor(SHAPES), torch.tensor(STARTS)
    before = key(shapes, starts)
    assert before == key(shapes, starts)
    assert hash(before) == hash(key(shapes, starts))
    assert before != key(shapes.clone(), starts)
    assert before != key(shapes, starts.clone())
    assert before != key(shapes, None)
    assert signatures._remembered(before) == SHAPES
    shapes[0] = torch.tensor([4, 6])
    assert before != key(shapes, starts)
    assert signatures._remembered(key(shapes, starts)) == ((4, 6), (3, 2))
    before = key(shapes, starts)
    shapes.detach().copy_(torch.tensor(SHAPES))
    assert before != key(shapes, starts)  # written through another view
    before = key(shapes, starts)
    del shapes
    gc.collect()
    assert before != before


@pytest.mark.gpu
def test_shapes_on_a_gpu_are_fetched_once_and_again_when_they_change():
    value, locations, weights = (tensor.cuda() for tensor in make_inputs())
    shapes, starts = torch.tensor(SHAPES).cuda(), torch.tensor(STARTS).cuda()
    signatures._remembered.cache_clear()
    for _ in range(3):
        result = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    torch.testing.assert_close(
        result.cpu(), define(*(t.cpu() for t in (value, locations, weights))), rtol=0, atol=1e-12
    )
    assert signatures._remembered.cache_info()[:2] == (2, 1)
    shapes[0] = torch.tensor([4, 6])
    other = MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    assert signatures._remembered.cache_info()[:2] == (2, 2)
    assert not torch.allclose(other, result)
    with torch.inference_mode():
        fresh = torch.tensor(SHAPES).cuda()
        MSDeformAttnFunction.apply(value, fresh, starts, locations, weights, 64)
    assert signatures._remembered.cache_info()[:2] == (2, 2)


@pytest.mark.compile
def test_numbers_compile_without_a_graph_break():
    value, locations, weights = make_inputs(dtype=torch.float32)
    expected = define(value, locations, weights)

    def run(value, locations, weights):
        return MSDeformAttnFunction.apply(value, SHAPES, STARTS, locations, weights, 64)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(value, locations, weights), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.compile
def test_tensors_of_shapes_compile_too():
    value, locations, weights = make_inputs(dtype=torch.float32)
    compiled = torch.compile(MSDeformAttnFunction.apply, backend="aot_eager")
    result = compiled(value, torch.tensor(SHAPES), torch.tensor(STARTS), locations, weights, 64)
    torch.testing.assert_close(result, define(value, locations, weights), rtol=1e-4, atol=1e-5)
