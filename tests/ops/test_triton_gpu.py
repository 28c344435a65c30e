"""The GPU backend on a GPU, through the public functions, against the definition in float64."""

import math

import pytest
import torch

from deformable_detr.ops import (
    backends,
    multi_scale_deformable_attention,
    multi_scale_deformable_attention_from_projection,
)
from deformable_detr.ops import (
    registration as library,
)

HAS_GPU = torch.cuda.is_available()
MAPS = ((25, 42), (13, 21), (7, 11), (1, 3))
FORMS = ("sample", "points", "boxes")
# Few queries, many, and as many as there are positions (where a program takes a patch of a map).
QUERIES = {"decoder": 37, "many": 4099, "encoder": None}


def make(form, *, maps=MAPS, queries=37, dtype=torch.float32, head_dim=32, points=(4, 4, 4, 4), batch=2, heads=6):
    positions, samples = sum(height * width for height, width in maps), sum(points)
    queries = positions if queries is None else queries
    value = torch.randn(batch, positions, heads, head_dim, device="cuda").to(dtype)
    if form == "sample":
        second = torch.rand(batch, queries, heads, samples, 2, device="cuda") * 1.6 - 0.3
        third = torch.rand(batch, queries, heads, samples, device="cuda")
    else:
        second = torch.rand(batch, queries, len(maps), 2 if form == "points" else 4, device="cuda")
        third = torch.randn(batch, queries, heads * samples * 3, device="cuda") * 2
    grad = torch.randn(batch, queries, heads, head_dim, device="cuda").to(dtype)
    return (value, second, third), grad


def attention(form, tensors, maps=MAPS, points=(4, 4, 4, 4), backend="triton"):
    run = multi_scale_deformable_attention if form == "sample" else multi_scale_deformable_attention_from_projection
    return run(tensors[0], maps, *tensors[1:], num_points=points, backend=backend)


def result_and_gradients(form, tensors, grad, backend="triton", **maps):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = attention(form, leaves, backend=backend, **maps)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def assert_near(form, tensors, grad, tolerance=5e-6, **maps):
    found = result_and_gradients(form, tensors, grad, **maps)
    exact = result_and_gradients(form, [t.double() for t in tensors], grad.double(), backend="reference", **maps)
    for one, other in zip(found, exact, strict=True):
        # Of the largest entry, by the mean: a gradient of a location jumps where float32 rounds over a pixel's edge.
        assert (one.double() - other).abs().mean() <= tolerance * other.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("form", FORMS)
def test_result_and_gradients_equal_the_definition(form, queries):
    tensors, grad = make(form, queries=QUERIES[queries])
    asked = torch.zeros(*grad.shape[:3], 16, 2, device="cuda")
    assert backends(tensors[0], MAPS, asked, asked[..., 0], num_points=(4, 4, 4, 4))["triton"] is None
    assert_near(form, tensors, grad)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [1, 8, 30, 64, 71, 256])
@pytest.mark.parametrize("queries", [5, 4099])
def test_any_number_of_channels(head_dim, queries):
    tensors, grad = make("sample", head_dim=head_dim, queries=queries, batch=1, heads=3)
    assert_near("sample", tensors, grad)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("queries", [5, 4099])
def test_levels_of_other_points(form, queries):
    maps = {"maps": ((13, 21), (7, 5), (1, 1)), "points": (3, 6, 1)}
    tensors, grad = make(form, queries=queries, **maps)
    assert_near(form, tensors, grad, **maps)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("queries", [37, 4099])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_err_at_most_twice_what_the_definition_errs(form, queries, dtype):
    tensors, grad = make(form, queries=queries, dtype=dtype)
    found = result_and_gradients(form, tensors, grad)
    plain = result_and_gradients(form, tensors, grad, backend="reference")
    exact = result_and_gradients(form, [tensor.double() for tensor in tensors], grad.double(), backend="reference")
    for one, other, true in zip(found, plain, exact, strict=True):
        assert one.dtype == other.dtype
        allowed = 2 * (other.double() - true).abs().mean() + 5e-6 * true.abs().max()
        assert (one.double() - true).abs().mean() <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [37, 4099])
@pytest.mark.parametrize("nowhere", [math.nan, math.inf, -math.inf, 1e30, 5.0])
def test_a_point_that_is_nowhere_adds_nothing_and_gets_no_gradient(queries, nowhere):
    (value, locations, weights), grad = make("sample", queries=queries)
    silent = weights.clone()
    silent[1, 2, 0, 5] = 0
    expected = attention("sample", (value, locations, silent))
    locations[1, 2, 0, 5, 1] = nowhere
    result, *gradients = result_and_gradients("sample", (value, locations, weights), grad)
    torch.testing.assert_close(result, expected)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][1, 2, 0, 5].tolist() == [0, 0]
    assert gradients[2][1, 2, 0, 5] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_deterministic_gradients_are_bitwise_equal_and_near_the_definition(form):
    # A map of few pixels, so that very many programs add to each.
    maps = {"maps": ((5, 3), (1, 2)), "points": (4, 4)}
    tensors, grad = make(form, queries=4099, **maps)
    torch.use_deterministic_algorithms(True)
    try:
        first = result_and_gradients(form, tensors, grad, **maps)
        for _ in range(20):
            for one, other in zip(first, result_and_gradients(form, tensors, grad, **maps), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)
    exact = result_and_gradients(form, [t.double() for t in tensors], grad.double(), backend="reference", **maps)
    for one, other in zip(first, exact, strict=True):
        assert (one.double() - other).abs().mean() <= 5e-6 * other.abs().max()


@pytest.mark.gpu
def test_gradients_of_locations_and_weights_are_always_bitwise_equal():
    tensors, grad = make("sample", queries=4099)
    first = result_and_gradients("sample", tensors, grad)
    for _ in range(20):
        again = result_and_gradients("sample", tensors, grad)
        assert all(torch.equal(first[i], again[i]) for i in (0, 2, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_graph_captures_forward_and_backward(form, deterministic):
    tensors, grad = make(form)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    torch.use_deterministic_algorithms(deterministic)
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.autograd.grad(attention(form, leaves), leaves, grad)  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = attention(form, leaves)
            gradients = torch.autograd.grad(result, leaves, grad)
        with torch.no_grad():
            for leaf, fresh in zip(leaves, make(form)[0], strict=True):
                leaf.copy_(fresh)
        graph.replay()
        expected = result_and_gradients(form, leaves, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    for found, other in zip([result, *gradients], expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sample", "attend"])
def test_the_operator_compiles(name):
    form = "sample" if name == "sample" else "boxes"
    tensors, grad = make(form)
    sizes, points = [side for height_width in MAPS for side in height_width], [4, 4, 4, 4]

    @torch.compile(fullgraph=True)
    def run(value, second, third):
        return getattr(library, name)(value * 2, second, third, sizes, points) + 1

    leaves = [tensor.requires_grad_() for tensor in tensors]
    result = run(*leaves)
    expected = attention(form, (tensors[0] * 2, *tensors[1:])) + 1
    torch.testing.assert_close(result, expected)
    for one, other in zip(
        torch.autograd.grad(result, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.compile
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_the_public_functions_compile_without_a_graph_break(form):
    # Marked `compile` instead of `gpu`: the hook that checks shapes breaks the capture of annotated functions.
    tensors, _ = make(form)
    compiled = torch.compile(attention, fullgraph=True)
    torch.testing.assert_close(compiled(form, tensors, backend="auto"), attention(form, tensors))


@pytest.mark.gpu
def test_offsets_beyond_32_bits_between_images():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip("needs 24 GiB of free memory")
    maps, points = ((401, 403),), (1,)
    (value, locations, weights), _ = make(
        "sample", maps=maps, points=points, queries=3, batch=52, heads=8, head_dim=32, dtype=torch.float16
    )  # fmt: skip
    assert value.numel() > 2**31
    last = [tensor[-1:] for tensor in (value, locations, weights)]
    result = attention("sample", (value, locations, weights), maps=maps, points=points)
    torch.testing.assert_close(result[-1:], attention("sample", last, maps=maps, points=points))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_gpu_than_the_current_one():
    tensors, grad = make("points")
    moved = [tensor.to("cuda:1") for tensor in tensors]
    for one, other in zip(
        result_and_gradients("points", moved, grad.to("cuda:1")),
        result_and_gradients("points", tensors, grad),
        strict=True,
    ):
        assert one.device == torch.device("cuda:1")
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-4, atol=1e-4)
