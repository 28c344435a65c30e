"""Every compiled copy of the kernel equals the definition in float64, for any shape, type and number of threads."""

import concurrent.futures
import multiprocessing
import warnings
import zlib
from pathlib import Path

import pytest
import torch

from deformable_detr.ops import backends, compile_flags, cpu, multi_scale_deformable_attention, reference

SHAPES = ((7, 5), (4, 3), (1, 2))
FLAT = [size for pair in SHAPES for size in pair]
BATCH, QUERIES, HEADS = 2, 37, 3
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

needs_kernel = pytest.mark.skipif(cpu.missing() is not None, reason="no compiler was found at installation")


def copies():
    """The compiled copies that this processor can run."""
    able = []
    if cpu.missing() is None:
        for name in compile_flags.INSTRUCTIONS:
            try:
                able.append(cpu.load_kernel(cpu.kernel().path, name).instructions)
            except OSError:
                continue
    return able


@pytest.fixture
def use(monkeypatch):
    """Chooses a copy for the rest of the test."""

    def choose(name):
        kernel = cpu.load_kernel(Path(cpu.__file__).with_name(compile_flags.LIBRARY), name)
        monkeypatch.setattr(cpu, "_find", lambda: (kernel, None))

    return choose


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def exact_type(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_value(dtype, head_dim, seed=0, spatial_shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    positions = sum(height * width for height, width in spatial_shapes)
    return torch.randn(BATCH, positions, HEADS, head_dim, generator=generator, dtype=torch.float64).to(dtype)


def make_samples(dtype, points, seed=1, queries=QUERIES):
    """Inside and outside the maps, and some nowhere."""
    generator = torch.Generator().manual_seed(seed)
    locations = torch.rand(BATCH, queries, HEADS, sum(points), 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(BATCH, queries, HEADS, sum(points), generator=generator, dtype=torch.float64)
    locations[0, 3, 1, 0, 0] = float("nan")
    locations[1, 2, 0, 1, 1] = float("inf")
    locations[1, 1, 2, 0] = 1e30
    locations[0, 0, 0] = -float("inf")
    return locations.to(exact_type(dtype)), weights.to(exact_type(dtype))


def make_projection(dtype, points, coordinates, seed=2, queries=QUERIES):
    generator = torch.Generator().manual_seed(seed)
    around = torch.rand(BATCH, queries, len(points), coordinates, generator=generator, dtype=torch.float64)
    projection = torch.randn(BATCH, queries, HEADS * sum(points) * 3, generator=generator, dtype=torch.float64)
    return around.to(exact_type(dtype)), projection.to(exact_type(dtype))


def relative(result, expected):
    """Of the whole tensor: single entries near a pixel's border may fall to the other side of it."""
    return float((result.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def compare(run, run_backward, define, inputs, points, head_dim):
    """Errors of the result and of the three gradients against the definition in float64."""
    result = run(*inputs, FLAT, points)
    generator = torch.Generator().manual_seed(9)
    grad = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(inputs[0].dtype)
    gradients = run_backward(grad, *inputs, FLAT, points, [True] * 3)
    doubles = [tensor.double().requires_grad_() for tensor in inputs]
    expected = define(*doubles, FLAT, points)
    expected_gradients = torch.autograd.grad(expected, doubles, grad.double())
    assert [tensor.dtype for tensor in gradients] == [tensor.dtype for tensor in inputs]
    return [
        relative(one, other)
        for one, other in zip((result, *gradients), (expected.detach(), *expected_gradients), strict=True)
    ]


@needs_kernel
@pytest.mark.parametrize("instructions", copies())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 2, 3, 6, 8, 12, 16, 30, 32, 33, 64, 71, 130])
def test_equals_the_definition(use, instructions, dtype, head_dim):
    use(instructions)
    # Rounding of a stored result: half a unit in the last place, relative to the norm about a third of that.
    stored = {torch.float64: 2e-15, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    computed = 2e-15 if dtype == torch.float64 else 1e-6
    for points in ((4, 4, 4), (3, 1, 2), (9, 5, 30)):
        value = make_value(dtype, head_dim)
        errors = compare(
            cpu.sample,
            cpu.sample_backward,
            reference.sample,
            (value, *make_samples(dtype, points)),
            points,
            head_dim,
        )
        assert max(errors[:2]) < stored, (points, errors)
        assert max(errors[2:]) < computed, (points, errors)


@needs_kernel
@pytest.mark.parametrize("instructions", copies())
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_projected_form_equals_the_definition(use, instructions, coordinates, dtype):
    use(instructions)
    stored = {torch.float64: 2e-15, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    computed = 2e-15 if dtype == torch.float64 else 1e-6
    for points in ((4, 4, 4), (3, 1, 2), (9, 5, 30)):
        for head_dim in (8, 30, 32):
            inputs = (make_value(dtype, head_dim), *make_projection(dtype, points, coordinates))
            errors = compare(cpu.attend, cpu.attend_backward, reference.attend, inputs, points, head_dim)
            assert max(errors[:2]) < stored, (points, head_dim, errors)
            assert max(errors[2:]) < computed, (points, head_dim, errors)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_err_at_most_twice_what_the_definition_errs(dtype):
    value = make_value(dtype, 32)
    locations, weights = make_samples(dtype, (4, 4, 4))
    exact = reference.sample(value.double(), locations.double(), weights.double(), FLAT, (4, 4, 4))
    own = cpu.sample(value, locations, weights, FLAT, (4, 4, 4)).double() - exact
    plain = reference.sample(value, locations, weights, FLAT, (4, 4, 4)).double() - exact
    assert own.abs().max() <= 2 * plain.abs().max()


# Large enough to be read in head order, and to be shared out; and an image with so few queries that it is neither.
WIDE_SHAPES = ((37, 53), (11, 17))
WIDE_FLAT = [size for pair in WIDE_SHAPES for size in pair]


@needs_kernel
@pytest.mark.parametrize("instructions", copies())
@pytest.mark.parametrize("queries", [2148, 61], ids=["dense", "few"])
@pytest.mark.parametrize("coordinates", [0, 2, 4], ids=["given", "points", "boxes"])
def test_large_maps_equal_the_definition(use, instructions, queries, coordinates):
    use(instructions)
    points = (4, 3)
    value = make_value(torch.float32, 24, spatial_shapes=WIDE_SHAPES)
    if coordinates:
        inputs = (value, *make_projection(torch.float32, points, coordinates, queries=queries))
        run, run_backward, define = cpu.attend, cpu.attend_backward, reference.attend
    else:
        inputs = (value, *make_samples(torch.float32, points, queries=queries))
        run, run_backward, define = cpu.sample, cpu.sample_backward, reference.sample
    doubles = [tensor.double().requires_grad_() for tensor in inputs]
    expected = define(*doubles, WIDE_FLAT, points)
    torch.testing.assert_close(run(*inputs, WIDE_FLAT, points).double(), expected.detach(), rtol=0, atol=1e-4)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    gradients = run_backward(grad, *inputs, WIDE_FLAT, points, [True] * 3)
    for own, truth in zip(gradients, torch.autograd.grad(expected, doubles, grad.double()), strict=True):
        # A sample within 1e-5 px of a pixel's border may see the slope of the next one.
        assert relative(own, truth) < 5e-3
        assert ((own - truth).abs() > 1e-4 * truth.abs().max()).float().mean() < 1e-3


@needs_kernel
@pytest.mark.parametrize("queries", [2148, 61], ids=["dense", "few"])
def test_any_number_of_threads_gives_the_same_bits(threads, queries):
    points = (4, 3)
    value = make_value(torch.float32, 24, spatial_shapes=WIDE_SHAPES)
    locations, weights = make_samples(torch.float32, points, queries=queries)
    around, projection = make_projection(torch.float32, points, 4, queries=queries)
    grad = torch.randn(BATCH, queries, HEADS, 24, generator=torch.Generator().manual_seed(4))
    results = []
    for number in (1, 2, 3, 5, 1):
        threads(number)
        given = cpu.sample_backward(grad, value, locations, weights, WIDE_FLAT, points, [True] * 3)
        made = cpu.attend_backward(grad, value, around, projection, WIDE_FLAT, points, [True] * 3)
        forward = cpu.attend(value, around, projection, WIDE_FLAT, points)
        results.append([cpu.sample(value, locations, weights, WIDE_FLAT, points), forward, *given, *made])
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@needs_kernel
@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_only_wanted_gradients_are_computed(wanted):
    points = (4, 4, 4)
    value = make_value(torch.float32, 8)
    grad = torch.randn(BATCH, QUERIES, HEADS, 8, generator=torch.Generator().manual_seed(4))
    for inputs, run_backward in [
        ((value, *make_samples(torch.float32, points)), cpu.sample_backward),
        ((value, *make_projection(torch.float32, points, 4)), cpu.attend_backward),
    ]:
        everything = run_backward(grad, *inputs, FLAT, points, [True] * 3)
        some = run_backward(grad, *inputs, FLAT, points, wanted)
        for want, one, all_of_it in zip(wanted, some, everything, strict=True):
            assert torch.equal(one, all_of_it) if want else one.numel() == 0


@needs_kernel
def test_nothing_is_read_that_was_not_given():
    """Fresh memory is not zero: with what lies there poisoned, results stay."""
    points = (3, 1, 2)
    value, samples = make_value(torch.float32, 30), make_samples(torch.float32, points)
    expected = cpu.sample(value, *samples, FLAT, points)
    poison = [torch.full((200_000,), float("nan")) for _ in range(20)]
    del poison
    assert torch.equal(cpu.sample(value, *samples, FLAT, points), expected)


@needs_kernel
def test_empty_axes_give_empty_or_zero():
    value, (locations, weights) = make_value(torch.float32, 8), make_samples(torch.float32, (4, 4, 4))
    assert cpu.sample(value, locations[:, :0], weights[:, :0], FLAT, (4, 4, 4)).shape == (BATCH, 0, HEADS, 8)
    nothing = cpu.sample(value, locations[:, :, :, :0], weights[..., :0], FLAT, (0, 0, 0))
    assert torch.equal(nothing, torch.zeros(BATCH, QUERIES, HEADS, 8))
    assert cpu.sample(value[:0], locations[:0], weights[:0], FLAT, (4, 4, 4)).shape == (0, QUERIES, HEADS, 8)
    grad = torch.randn(BATCH, 0, HEADS, 8)
    untouched = cpu.sample_backward(grad, value, locations[:, :0], weights[:, :0], FLAT, (4, 4, 4), [True] * 3)
    assert torch.equal(untouched[0], torch.zeros_like(value))


@needs_kernel
@pytest.mark.parametrize("empty", ["batch", "heads", "head_dim", "queries", "points"])
def test_where_nothing_is_asked_gradients_are_zero(empty):
    size = {"batch": 2, "heads": 3, "head_dim": 8, "queries": 5, "points": 4, empty: 0}
    points = [size["points"]]
    value = torch.randn(size["batch"], 15, size["heads"], size["head_dim"])
    rows = size["batch"], size["queries"]
    samples = (*rows, size["heads"], size["points"])
    grad = torch.randn(*rows, *value.shape[2:])
    projection = torch.randn(*rows, size["heads"] * size["points"] * 3)
    for run, run_backward, inputs in [
        (cpu.sample, cpu.sample_backward, (value, torch.rand(*samples, 2), torch.rand(samples))),
        (cpu.attend, cpu.attend_backward, (value, torch.rand(*rows, 1, 4), projection)),
    ]:
        assert torch.equal(run(*inputs, [3, 5], points), torch.zeros_like(grad))
        gradients = run_backward(grad, *inputs, [3, 5], points, [True] * 3)
        for gradient, tensor in zip(gradients, inputs, strict=True):
            assert torch.equal(gradient, torch.zeros_like(tensor))


@needs_kernel
def test_strided_inputs_and_gradients_are_read_right():
    points = (4, 4, 4)
    value, (locations, weights) = make_value(torch.float32, 8), make_samples(torch.float32, points)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3)
    grad = torch.randn(BATCH, QUERIES, 8, HEADS).transpose(2, 3)
    assert torch.equal(
        cpu.sample(strided, locations, weights, FLAT, points), cpu.sample(value, locations, weights, FLAT, points)
    )
    own = cpu.sample_backward(grad, strided, locations, weights, FLAT, points, [True] * 3)
    plain = cpu.sample_backward(grad.contiguous(), value, locations, weights, FLAT, points, [True] * 3)
    assert all(torch.equal(one, other) for one, other in zip(own, plain, strict=True))


def large_result(seed):
    """A call that is shared out among threads."""
    value = make_value(torch.float32, 24, seed, WIDE_SHAPES)
    samples = make_samples(torch.float32, (4, 3), queries=2148)
    grad = torch.ones(BATCH, 2148, HEADS, 24)
    forward = cpu.sample(value, *samples, WIDE_FLAT, (4, 3))
    backward = cpu.sample_backward(grad, value, *samples, WIDE_FLAT, (4, 3), [True] * 3)
    return torch.cat([tensor.nan_to_num().flatten() for tensor in (forward, *backward)])


def summary(seed):
    return zlib.crc32(large_result(seed).numpy().tobytes())


@needs_kernel
def test_six_python_threads_at_once_get_their_own_results():
    expected = [large_result(seed) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            results = list(pool.map(large_result, range(6)))
            assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))


@needs_kernel
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_process_that_has_used_the_kernel(method):
    """A forked child has none of the parent's threads, and must not wait for them."""
    expected = [summary(seed) for seed in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads: that is the point
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
            assert list(pool.map(summary, range(2), timeout=120)) == expected


def test_without_a_library_one_warning_says_what_it_costs(monkeypatch):
    monkeypatch.setattr(compile_flags, "LIBRARY", "_nothing_here.so")
    cpu._find.cache_clear()
    value = torch.randn(1, 6, 2, 4)
    inputs = (value, ((2, 3),), torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3))
    try:
        with pytest.warns(UserWarning, match=r"grid_sample, some 30 times slower .*: _nothing_here.so was not built"):
            result = multi_scale_deformable_attention(*inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            torch.testing.assert_close(multi_scale_deformable_attention(*inputs, backend="reference"), result)
            assert "no C compiler was found" in backends(*inputs)["cpu"]
    finally:
        cpu._find.cache_clear()


def test_a_library_that_cannot_be_loaded_is_a_reason_and_no_crash(monkeypatch, tmp_path):
    (tmp_path / compile_flags.LIBRARY).write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    cpu._find.cache_clear()
    try:
        with pytest.warns(UserWarning, match="cannot be loaded"):
            assert "cannot be loaded" in cpu.missing()
    finally:
        cpu._find.cache_clear()


@needs_kernel
def test_a_copy_this_processor_cannot_run_is_refused():
    with pytest.raises(OSError, match="no copy for sse9"):
        cpu.load_kernel(cpu.kernel().path, "sse9")


@needs_kernel
def test_reasons_name_what_the_kernel_has_no_code_for():
    value = torch.zeros(1, 6, 2, 4, dtype=torch.int32)
    assert cpu.why_not(value, ((2, 3),), (3,), 5).startswith("it has no code for torch.int32; it has for torch.float32")
    assert cpu.why_not(value.to("meta"), ((2, 3),), (3,), 5) == "it needs a CPU tensor, value is on meta"
    huge = torch.zeros(1, 1, 1, 1).expand(1, 2**20, 8, 64)
    assert "more than 2^31 bytes" in cpu.why_not(huge, ((2**10, 2**10),), (4,), 5)
    assert cpu.why_not(value.float(), ((2, 3),), (3,), 5) is None


@needs_kernel
def test_a_pytorch_without_a_pool_to_lend_leaves_one_thread(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    kernel = cpu.load_kernel(Path(cpu.__file__).with_name(compile_flags.LIBRARY))
    assert kernel.parallel_for == 0
    monkeypatch.undo()
    expected = large_result(3)
    monkeypatch.setattr(cpu, "_find", lambda: (kernel, None))
    assert torch.equal(large_result(3), expected)
