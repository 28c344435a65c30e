import math

import pytest
import torch

from deformable_detr.ops import cpu
from deformable_detr.ops import selftest as trial
from deformable_detr.ops.msda import (
    BACKENDS,
    multi_scale_deformable_attention,
    multi_scale_deformable_attention_from_projection,
)
from deformable_detr.ops.reference import locations_and_weights

needs_kernel = pytest.mark.skipif(cpu.missing() is not None, reason="no compiler was found at installation")
dtypes = pytest.mark.parametrize("dtype", trial.DTYPES, ids=str)
DEVICES = ("cpu", pytest.param("cuda:0", marks=pytest.mark.gpu))


def choice_of(backend, dtype, device="cpu"):
    return trial.Choice(device=device, dtype=str(dtype).removeprefix("torch."), backend=backend, others={})


def spoil(monkeypatch, change):
    """Lets the operator be wrong everywhere but in the definition."""

    def wrong(*arguments, backend, **options):
        result = multi_scale_deformable_attention(*arguments, backend=backend, **options)
        return result if backend == "reference" else change(result, *arguments)

    monkeypatch.setattr(trial, "multi_scale_deformable_attention", wrong)


@needs_kernel
@dtypes
def test_the_first_that_can_run_is_chosen_and_each_other_has_a_reason_or_none(dtype):
    choice = trial.choose("cpu", dtype)
    assert (choice.device, choice.dtype, choice.backend) == ("cpu", str(dtype).removeprefix("torch."), "cpu")
    reason = "it needs a CUDA tensor, value is on cpu"
    assert choice.others == {"triton": reason, "grid_sample": None, "reference": None}


@dtypes
@pytest.mark.parametrize("device", DEVICES)
def test_every_backend_that_can_run_passes(device, dtype):
    able = [name for name, reason in trial.choose(device, dtype).others.items() if reason is None]
    for backend in (trial.choose(device, dtype).backend, *able):
        check = trial.check(choice_of(backend, dtype, device))
        assert check.ok, check
        if dtype != torch.float64 or backend != "reference":
            assert 0 < check.result_error < check.allowed
            assert 0 < check.gradient_error < check.allowed


@pytest.mark.parametrize("dtype", trial.DTYPES[:3], ids=str)
def test_what_is_allowed_is_little_more_than_rounding(dtype, monkeypatch):
    """A result that is off by a few roundings of its type is found out."""
    spoil(monkeypatch, lambda result, *inputs: result * (1 + (3e-5 if dtype == torch.float32 else 0.03)))
    check = trial.check(choice_of("grid_sample", dtype))
    assert not check.ok
    assert check.result_error > check.allowed
    assert check.gradient_error > check.allowed
    assert check.problem is None


@pytest.mark.parametrize("position", range(3), ids=["value", "locations", "weights"])
def test_one_wrong_gradient_of_three_is_found(position, monkeypatch):
    def change(result, value, shapes, locations, weights):
        tensor = (value, locations, weights)[position].nan_to_num(posinf=0.0)
        return result + 1e-3 * (tensor - tensor.detach()).sum()  # the result is right, its gradient is not

    spoil(monkeypatch, change)
    check = trial.check(choice_of("grid_sample", torch.float32))
    assert check.result_error < check.allowed < check.gradient_error
    assert not check.ok


@pytest.mark.parametrize("nonsense", [math.nan, math.inf])
def test_a_single_number_that_is_none_is_found(nonsense, monkeypatch):
    def change(result, *inputs):
        result = result.clone()
        result[1, 3, 2, 36] = nonsense
        return result

    spoil(monkeypatch, change)
    check = trial.check(choice_of("grid_sample", torch.float32))
    assert not check.ok
    assert (check.result_error, check.gradient_error) == (None, None)
    assert check.problem == "it gives numbers that are not finite"


def test_what_the_fused_form_gets_wrong_is_found(monkeypatch):
    original = multi_scale_deformable_attention_from_projection

    def wrong(*arguments, backend, **options):
        return original(*arguments, backend=backend, **options) * (1 if backend == "reference" else 1.1)

    monkeypatch.setattr(trial, "multi_scale_deformable_attention_from_projection", wrong)
    assert not trial.check(choice_of("grid_sample", torch.float32)).ok


def test_an_error_of_a_driver_or_compiler_is_the_finding(monkeypatch):
    def fail(result, *inputs):
        raise RuntimeError("no compiler\nand much more")

    spoil(monkeypatch, fail)
    check = trial.check(choice_of("grid_sample", torch.float32))
    assert not check.ok
    assert check.problem == "RuntimeError: no compiler"


def test_a_bug_shows_its_traceback(monkeypatch):
    def fail(result, *inputs):
        raise ZeroDivisionError

    spoil(monkeypatch, fail)
    with pytest.raises(ZeroDivisionError):
        trial.check(choice_of("grid_sample", torch.float32))


def test_the_samples_are_awkward():
    value, locations, _ = trial._samples()
    sizes = {*value.shape, *locations.shape, *trial._POINTS, *(side for pair in trial._SHAPES for side in pair)}
    assert len(sizes) >= 10
    outside = (locations < 0) | (locations > 1)
    assert 0.1 < outside.double().mean() < 0.5
    assert locations.isnan().any()
    assert locations.isinf().any()


def test_the_numbers_are_the_same_under_every_default():
    expected = trial._samples()[0]
    before = torch.get_default_dtype()
    torch.manual_seed(123)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(trial._samples()[0], expected)
            assert torch.equal(trial._centres(1, 2), torch.tensor([[0.25, 0.5], [0.75, 0.5]], device="cpu"))
    finally:
        torch.set_default_dtype(before)


@needs_kernel
def test_the_chosen_backend_is_timed_against_grid_sample(monkeypatch):
    monkeypatch.setattr(trial, "_ENOUGH_S", 1e-9)
    timings = list(trial.timings(choice_of("cpu", torch.float32)))
    assert [(one.case.split(",")[0], one.backend) for one in timings] == [
        ("decoder", "cpu"),
        ("decoder", "grid_sample"),
        ("encoder", "cpu"),
        ("encoder", "grid_sample"),
    ]
    for one in timings:
        assert 0 < one.forward_ms < one.training_ms < 60_000


def test_what_runs_without_a_kernel_is_timed_once(monkeypatch):
    monkeypatch.setattr(trial, "_ENOUGH_S", 1e-9)
    assert [one.backend for one in trial.timings(choice_of("grid_sample", torch.float32))] == ["grid_sample"] * 2


def test_the_time_is_that_of_one_call_in_milliseconds(monkeypatch):
    clock = iter([1.0, 1.002, 2.0, 2.009, 3.0, 3.004, 4.0, 4.5])
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(clock))
    calls = []
    assert trial._median_ms(lambda: calls.append(None), "cpu") == pytest.approx(6.5)  # the fourth is enough
    assert len(calls) == 5


def test_queries_of_an_encoder_sit_on_their_pixels():
    shapes, queries = trial._TIMED["encoder, 1840 positions"]
    value, reference, _ = trial._layer(shapes, queries, "cpu")
    assert value.shape[1] == queries
    torch.testing.assert_close(reference[0, 32 * 43 + 22 + 3, 0], torch.tensor([3.5 / 22, 1.5 / 16]))


def test_every_named_backend_is_one():
    assert set(trial.choose("cpu", torch.float32).others) | {trial.choose("cpu", torch.float32).backend} == set(
        BACKENDS
    )


def test_no_sample_is_so_near_a_pixel_border_that_rounding_decides_its_slope():
    value, boxes, projection = trial._asks()
    flat = [side for pair in trial._SHAPES for side in pair]
    made, _ = locations_and_weights(value, boxes, projection, flat, trial._POINTS)
    for locations in (trial._samples()[1], made):
        for (height, width), of_level in zip(trial._SHAPES, locations.split(list(trial._POINTS), dim=3), strict=True):
            pixels = (of_level * torch.tensor([width, height]) - 0.5).nan_to_num(posinf=0.5, nan=0.5)
            assert (pixels - pixels.round()).abs().min() > 1e-4
