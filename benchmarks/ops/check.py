"""Check of the results of every contender against the definition in float64, before it is timed."""

import torch
from torch import Tensor

from benchmarks.ops.contenders import Calls
from benchmarks.ops.problem import Form, Problem, pixel_coordinates
from deformable_detr import ops

_CHECKED_QUERIES = 200
# The gradient of a location jumps where a sample crosses a pixel centre; rounding decides there.
_NEAR_PIXEL_CENTRE = 1e-3
# Shares of the largest expected entry: float32 places samples to about 1e-5 pixels, shorter types round the results.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}


class Expected:
    """What some queries spread over all give in float64, and what their gradients are.

    The operator treats queries one by one, so a few stand for all; their gradient of the values is complete if all
    other queries get a gradient of zero.
    """

    def __init__(self, problem: Problem, form: Form) -> None:
        queries = problem.locations.shape[1]
        self.rows = torch.linspace(0, queries - 1, min(queries, _CHECKED_QUERIES), device=problem.value.device).long()
        value, second, third = (tensor.detach().double() for tensor in problem.inputs(form))
        inputs = tuple(tensor.requires_grad_(True) for tensor in (value, second[:, self.rows], third[:, self.rows]))
        if form == "sample":
            self.result = ops.multi_scale_deformable_attention(
                inputs[0], problem.spatial_shapes, inputs[1], inputs[2], backend="reference"
            )
            wanted = inputs
        else:
            self.result = ops.multi_scale_deformable_attention_from_projection(
                *(inputs[0], problem.spatial_shapes, inputs[1], inputs[2]),
                num_points=problem.locations.shape[4],
                backend="reference",
            )
            wanted = (inputs[0], inputs[2])
        towards = problem.towards[:, self.rows].double()
        self.value_grad, *self.other_grads = torch.autograd.grad(self.result, wanted, towards)
        self.uncertain = [_uncertain(problem, form, self.rows), None][: len(self.other_grads)]


def check(calls: Calls, expected: Expected, problem: Problem) -> list[float]:
    """Figures that every right contender shares.

    Raises:
        AssertionError: it is not right.
    """
    tolerance = _TOLERANCE[problem.value.dtype]
    rows = expected.rows
    result = calls.with_graph()
    _compare("result", result[:, rows], expected.result, tolerance)
    _compare("result without gradients", calls.forward()[:, rows], expected.result, tolerance)
    some = torch.zeros_like(problem.towards)
    some[:, rows] = problem.towards[:, rows]
    value_grad, *other_grads = calls.gradients(result, some)
    _compare("gradient of the values", value_grad, expected.value_grad, tolerance)
    for number, (ours, right) in enumerate(zip(other_grads, expected.other_grads, strict=True)):
        what = f"gradient {number + 1} of the queries"
        _compare(what, ours[:, rows], right, tolerance, expected.uncertain[number])
        others = ours.clone()
        others[:, rows] = 0
        assert not others.any(), f"{what} is not zero where nothing was asked"
    value_grad = calls.gradients(result, problem.towards)[0]
    products = (problem.towards.double() * result.detach().double()).flatten()
    back = float((value_grad.double() * problem.value.double()).sum())
    # The operator is linear in the values, which ties all queries of both directions together.
    assert abs(back - float(products.sum())) <= tolerance * float(products.abs().sum()), (
        f"forward and backward disagree: {float(products.sum())} and {back}"
    )
    return [float(result.detach().double().abs().sum()), float(value_grad.double().abs().sum())]


def _compare(what: str, ours: Tensor, right: Tensor, tolerance: float, uncertain: Tensor | None = None) -> None:
    assert ours.shape == right.shape, f"{what} has shape {tuple(ours.shape)}, not {tuple(right.shape)}"
    difference = (ours.detach().double() - right.detach()).abs()
    if uncertain is not None:
        difference = difference.masked_fill(uncertain, 0)
    largest, limit = float(difference.max()), tolerance * float(right.detach().abs().max())
    assert largest <= limit, f"{what} is off by {largest:.3g}; {limit:.3g} is allowed"


def _uncertain(problem: Problem, form: Form, rows: Tensor) -> Tensor:
    pixels = pixel_coordinates(problem.locations[:, rows], problem.spatial_shapes)
    near = ((pixels - pixels.round()).abs() < _NEAR_PIXEL_CENTRE).any(-1, keepdim=True).expand(pixels.shape)
    if form == "sample":
        return near
    near = near.flatten(2)
    rest = problem.projection.shape[-1] - near.shape[-1]
    return torch.cat([near, near.new_zeros((*near.shape[:2], rest))], dim=-1)
