"""The GPU kernels in Triton's interpreter, on CPU tensors, against the definition in float64."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from deformable_detr.ops import reference as definition

triton = pytest.importorskip("triton")
tl = triton.language
from triton.runtime import interpreter  # noqa: E402

OPS = Path(definition.__file__).parent
SHAPES, POINTS = (5, 7, 3, 2, 1, 1), (2, 2, 2)
BATCH, QUERIES, HEADS, HEAD_DIM = 2, 5, 3, 8


def load(name, file):
    spec = importlib.util.spec_from_file_location(name, OPS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def private():
    """A copy of the backend for the interpreter, which is chosen when kernels are decorated; the real one stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in ("triton_sampling", "triton_kernels"):
            patch.setitem(sys.modules, f"deformable_detr.ops.{name}", load(f"interpreted_{name}", f"{name}.py"))
        return load("interpreted_triton", "triton.py")


@pytest.fixture
def ops(private, monkeypatch):
    """The copy, able to run: Triton's own reductions were decorated for a GPU when something else imported it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(tl, "sum", lambda tensor, axis: tl.reduce(tensor, axis, tl.standard._sum_combine))
    monkeypatch.setattr(tl, "max", lambda tensor, axis: tl.reduce(tensor, axis, tl.standard._elementwise_max))
    monkeypatch.setattr(tl, "cdiv", lambda whole, part: (whole + part - 1) // part)
    # Functions inside a kernel would patch the language anew at every call, which is most of the time.
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", lambda self, *args: self.rewrite()(*args))
    monkeypatch.setattr(private, "_capability", lambda device: (9, 0))
    return private


def make(
    form, *, dtype=torch.float32, shapes=SHAPES, points=POINTS, batch=BATCH, queries=QUERIES, heads=HEADS,
    head_dim=HEAD_DIM,
):  # fmt: skip
    """Value, the two other tensors, and a gradient of the result. A third of the points lies outside its map."""
    positions = sum(height * width for height, width in zip(shapes[::2], shapes[1::2], strict=True))
    samples = sum(points)
    value = torch.randn(batch, positions, heads, head_dim).to(dtype)
    if form == "sample":
        second = torch.rand(batch, queries, heads, samples, 2) * 1.6 - 0.3
        third = torch.rand(batch, queries, heads, samples)
    else:
        second = torch.rand(batch, queries, len(points), 2 if form == "points" else 4)
        third = torch.randn(batch, queries, heads * samples * 3) * 2
    return value, second, third, torch.randn(batch, queries, heads, head_dim).to(dtype)


def forward(ops, form, value, second, third, shapes=SHAPES, points=POINTS):
    return (ops.sample if form == "sample" else ops.attend)(value, second, third, list(shapes), list(points))


def backward(ops, form, grad, value, second, third, shapes=SHAPES, points=POINTS, wanted=(True, True, True)):
    run = ops.sample_backward if form == "sample" else ops.attend_backward
    return run(grad, value, second, third, list(shapes), list(points), list(wanted))


def exact(form, value, second, third, grad, shapes=SHAPES, points=POINTS, dtype=torch.float64):
    """Result and gradients by the definition, in float64 unless said otherwise."""
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (value, second, third)]
    result = forward(definition, form, *leaves, shapes, points)
    return result.detach(), torch.autograd.grad(result, leaves, grad.to(dtype))


def assert_near(found, expected, tolerance=2e-6):
    """Relative to the largest entry: single ones may be sums of large ones that cancel."""
    assert found.shape == expected.shape
    error = (found.double() - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item())


FORMS = ("sample", "points", "boxes")
VARIANTS = {"over samples": 4096, "over queries": 0}
LARGE = {"queries": 2, "batch": 1, "heads": 2}
CASES = {
    "three levels": ("sample", {}),
    "30 channels": ("sample", {"head_dim": 30, **LARGE}),
    "64 channels": ("points", {"head_dim": 64, **LARGE}),
    "32 channels, one level": ("boxes", {"head_dim": 32, "shapes": (6, 5), "points": (3,), **LARGE}),
    "levels of other points": ("sample", {"points": (3, 6, 1), "heads": 2, "batch": 1}),
    "points around points": ("points", {"points": (1, 4, 2), "heads": 2, "queries": 3}),
    "points around boxes": ("boxes", {"points": (1, 2, 4), "heads": 3, "queries": 2}),
    "one pixel, one channel": ("points", {"shapes": (1, 1), "points": (1,), "head_dim": 1, **LARGE}),
}


@pytest.mark.parametrize("case", CASES)
def test_result_and_gradients_equal_the_definition(ops, monkeypatch, case):
    form, sizes = CASES[case]
    value, second, third, grad = make(form, **sizes)
    maps = {"shapes": sizes.get("shapes", SHAPES), "points": sizes.get("points", POINTS)}
    result, gradients = exact(form, value, second, third, grad, **maps)
    for least in VARIANTS.values():
        monkeypatch.setattr(ops, "_MANY_QUERIES", least)
        assert_near(forward(ops, form, value, second, third, **maps), result)
    for found, expected in zip(backward(ops, form, grad, value, second, third, **maps), gradients, strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("form", ["sample", "boxes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_err_at_most_twice_what_the_definition_errs(ops, monkeypatch, form, dtype):
    value, second, third, grad = make(form, dtype=dtype, queries=3, heads=2)
    result, gradients = exact(form, value, second, third, grad)
    # The definition sums in float32 as well, so its error is that of rounding the result. The interpreter cuts bfloat16
    # off where a GPU rounds, which is a unit in the last place instead of half of one.
    allowed = 2 * (forward(definition, form, value, second, third).double() - result).abs().max()
    if dtype == torch.bfloat16:
        allowed = allowed.maximum(2**-7 * result.abs())
    for least in VARIANTS.values():
        monkeypatch.setattr(ops, "_MANY_QUERIES", least)
        found = forward(ops, form, value, second, third)
        assert found.dtype == dtype
        assert ((found.double() - result).abs() <= allowed).all()
    leaves = [tensor.clone().requires_grad_() for tensor in (value, second, third)]
    plain = torch.autograd.grad(forward(definition, form, *leaves), leaves, grad)
    for found, other, expected in zip(
        backward(ops, form, grad, value, second, third), plain, gradients, strict=True
    ):  # fmt: skip
        assert found.dtype == other.dtype
        allowed = 2 * (other.double() - expected).abs().max() + 1e-6 * expected.abs().max()
        assert (found.double() - expected).abs().max() <= allowed


def test_half_locations_and_weights_are_read_and_their_gradients_written_as_halves(ops):
    for form in ("sample", "points"):
        value, second, third, grad = make(form, queries=2)
        second, third = second.bfloat16(), third.bfloat16()
        result, gradients = exact(form, value, second, third, grad)
        assert_near(forward(ops, form, value, second, third), result)
        found = backward(ops, form, grad, value, second, third)
        assert [gradient.dtype for gradient in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
        for gradient, expected in zip(found, gradients, strict=True):
            assert_near(gradient, expected, tolerance=2**-8)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of infinity minus infinity
@pytest.mark.parametrize("nowhere", [math.nan, math.inf, -math.inf, 1e30, 7.0])
@pytest.mark.parametrize("form", ["sample", "boxes"])
def test_a_point_that_is_nowhere_adds_nothing_and_gets_no_gradient(ops, monkeypatch, form, nowhere):
    value, second, third, grad = make(form, queries=1, batch=1, heads=2)
    samples = sum(POINTS)
    if form == "sample":
        silent = third.clone()
        silent[0, 0, 1, 3] = 0
        expected = forward(definition, form, value.double(), second.double(), silent.double())
        second[0, 0, 1, 3, 1] = nowhere
    else:
        far = third.clone()
        far[0, 0, (samples + 3) * 2 + 1] = -1e6
        expected = forward(definition, form, value.double(), second.double(), far.double())
        third[0, 0, (samples + 3) * 2 + 1] = nowhere * 1e3
    for least in VARIANTS.values():
        monkeypatch.setattr(ops, "_MANY_QUERIES", least)
        assert_near(forward(ops, form, value, second, third), expected)
    gradients = backward(ops, form, grad, value, second, third)
    assert all(gradient.isfinite().all() for gradient in gradients)
    if form == "sample":
        assert gradients[1][0, 0, 1, 3].tolist() == [0, 0]
        assert gradients[2][0, 0, 1, 3] == 0
    else:
        assert gradients[2][0, 0, (samples + 3) * 2 : (samples + 3) * 2 + 2].tolist() == [0, 0]


@pytest.mark.parametrize("form", ["sample", "points"])
def test_patches_of_the_maps_give_what_strips_give(ops, monkeypatch, form):
    # As many queries as positions, sides that are no multiple of a patch, levels smaller than one.
    shapes, points, head_dim = (11, 13, 5, 3, 1, 2), (1, 2, 1), 64
    value, second, third, _ = make(
        form, shapes=shapes, points=points, head_dim=head_dim, queries=160, heads=1, batch=1
    )  # fmt: skip
    monkeypatch.setattr(ops, "_MANY_QUERIES", 0)
    block_q, patch_w, _ = ops._queries_tile(shapes, 160, 160, head_dim)
    assert (block_q, patch_w) == (16, 4)
    expected = forward(definition, form, value.double(), second.double(), third.double(), shapes, points)
    assert_near(forward(ops, form, value, second, third, shapes, points), expected)


def test_no_patches_where_there_are_too_many_to_count_in_float32(ops):
    side = 2**13
    assert ops._queries_tile((side, side), side * side, side * side, 32)[1] == 0
    assert ops._queries_tile((side, side // 8), side * side // 8, side * side // 8, 32)[1] == 8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_what_is_not_wanted_is_empty_and_the_rest_as_ever(ops, form, wanted):
    value, second, third, grad = make(form, queries=1, batch=1, heads=2)
    _, gradients = exact(form, value, second, third, grad)
    found = backward(ops, form, grad, value, second, third, wanted=wanted)
    for gradient, expected, want in zip(found, gradients, wanted, strict=True):
        if want:
            assert_near(gradient, expected)
        else:
            assert gradient.shape == (0,)


def test_strided_tensors_are_read_right(ops):
    value, second, third, grad = make("sample", queries=2)
    result, gradients = exact("sample", value, second, third, grad)
    value, second, third, grad = (
        tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in (value, second, third, grad)
    )
    assert not grad.is_contiguous()
    assert_near(forward(ops, "sample", value, second, third), result)
    expanded = torch.ones(()).expand(grad.shape)  # what sum().backward() hands over
    _, of_sum = exact("sample", value, second, third, expanded)
    for gradient, expected in zip(backward(ops, "sample", grad, value, second, third), gradients, strict=True):
        assert_near(gradient, expected)
    for gradient, expected in zip(backward(ops, "sample", expanded, value, second, third), of_sum, strict=True):
        assert_near(gradient, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("empty", ["batch", "queries", "points", "head_dim"])
def test_empty_tensors_give_zeros(ops, form, empty):
    value, second, third, grad = make(form, **{empty: 0 if empty != "points" else (0, 0, 0)})
    points = (0, 0, 0) if empty == "points" else POINTS
    result = forward(ops, form, value, second, third, points=points)
    assert result.shape == grad.shape
    assert not result.any()
    for gradient, tensor in zip(
        backward(ops, form, grad, value, second, third, points=points), (value, second, third), strict=True
    ):  # fmt: skip
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)  # also poisons fresh memory with NaN, which must be written over
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("form", ["sample", "boxes"])
@pytest.mark.parametrize("magnitude", [1.0, 1e-30, 1e30])
def test_deterministic_gradients_are_near_the_definition(ops, deterministic, form, magnitude):
    value, second, third, grad = make(form, queries=2, batch=1)
    grad = grad * magnitude
    _, gradients = exact(form, value, second, third, grad)
    for found, expected in zip(backward(ops, form, grad, value, second, third), gradients, strict=True):
        assert (found.double() - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_deterministic_gradients_do_not_depend_on_the_order_of_queries(ops, deterministic):
    # All queries look at one pixel, with gradients whose float32 sum depends on the order.
    queries = 12
    value, _, _, _ = make("sample", shapes=(1, 1), points=(1,), batch=1, heads=1)
    locations, weights = torch.full((1, queries, 1, 1, 2), 0.5), torch.rand(1, queries, 1, 1)
    grad = torch.randn(1, queries, 1, HEAD_DIM) * 10.0 ** torch.randint(-4, 4, (1, queries, 1, 1))
    order = torch.randperm(queries)

    def grad_value(order):
        tensors = grad[:, order], value, locations, weights[:, order]
        return backward(ops, "sample", *tensors, (1, 1), (1,), (True, False, False))[0]

    one, other = grad_value(torch.arange(queries)), grad_value(order)
    assert torch.equal(one, other)
    torch.use_deterministic_algorithms(False)
    assert not torch.equal(grad_value(torch.arange(queries)), grad_value(order))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_deterministic_gradients_of_gradients_that_are_not_finite_are_nan(ops, deterministic):
    value, second, third, grad = make("sample", queries=1, batch=1, heads=1)
    grad[0, 0, 0, 2] = math.inf
    assert backward(ops, "sample", grad, value, second, third)[0].isnan().all()
    grad[0, 0, 0, 2] = 0
    assert not backward(ops, "sample", grad * 0, value, second, third)[0].any()


def test_fixed_point_cannot_overflow(ops):
    # Everything the bound allows on one pixel, and the steps that one gradient of the largest size has.
    grad, weights = torch.full((1, 300, 1, 1), 3.7), torch.full((1, 300, 1, 16), 2.3)
    steps = ops._steps_per_one(grad, weights, 300, 16, 0).double().item()
    assert 2**58 < steps * 3.7 * 2.3 * 300 * 16 < 2**62
    assert math.frexp(steps)[0] == 0.5
    steps = ops._steps_per_one(grad, weights, 300, 16, 2).double().item()
    assert 2**58 < steps * 3.7 * 300 < 2**62


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_both_backward_tiles_give_the_same(ops, monkeypatch, capability):
    monkeypatch.setattr(ops, "_capability", lambda device: capability)
    assert ops._backward_tile(torch.empty(0), True, False) == (128 if capability < (9, 0) else 512)
    value, second, third, grad = make("points", queries=2, head_dim=32, heads=1)
    _, gradients = exact("points", value, second, third, grad)
    for found, expected in zip(backward(ops, "points", grad, value, second, third), gradients, strict=True):
        assert_near(found, expected)


def test_why_not_names_the_reason(ops, monkeypatch):
    value = torch.empty(2, 42, 3, 8)
    maps = ((5, 7), (3, 2), (1, 1))
    assert ops.why_not(value, maps, POINTS, 5) is None
    assert "computes in float32, value is torch.float64" in ops.why_not(value.double(), maps, POINTS, 5)
    assert "between 1 and 16777215" in ops.why_not(value, ((5, 0), (3, 2)), POINTS, 5)
    assert "32-bit" in ops.why_not(value[..., :1].expand(-1, -1, -1, 2**30), maps, POINTS, 5)
    assert "32-bit" in ops.why_not(value, maps, POINTS, 2**27)
    assert "exceed 65535" in ops.why_not(value[:1].expand(65536, -1, -1, -1), maps, POINTS, 5)
    monkeypatch.setattr(ops, "_capability", lambda device: (7, 5))
    assert ops.why_not(value, maps, POINTS, 5) == "it needs a GPU of compute capability 8.0, this one has 7.5"
    monkeypatch.setattr(ops, "_MISSING", "No module named 'triton'")
    assert ops.why_not(value, maps, POINTS, 5) == "Triton cannot be imported: No module named 'triton'"


@pytest.mark.parametrize("points", [(4, 4, 4, 4), (3, 6, 3), (1, 2), (8, 4), (0, 2)])
def test_samples_in_flight_divide_the_points_of_every_level(ops, points):
    count = ops._unroll(points)
    assert count == max(c for c in (1, 2, 3, 4) if all(number % c == 0 for number in points))
