"""The operator: forward, and forward with backward, for every backend that can run a case."""

import torch
from torch import Tensor

from benchmarks.cases import ONLY_WHEN_NAMED, OPERATOR_CASES, OperatorCase
from benchmarks.report import Measurement
from deformable_detr.ops import backends, multi_scale_deformable_attention

_BASELINE = "reference"


def names() -> list[str]:
    """Every measurement, as msda/CASE/PASS."""
    return [f"msda/{case}/{what}" for case in OPERATOR_CASES for what in ("forward", "forward+backward")]


def only_when_named(name: str) -> bool:
    """Whether the measurement is left out of a run that names none."""
    return name.split("/")[1] in ONLY_WHEN_NAMED


def contenders(name: str, device: str) -> list[str]:
    """Backends that can run the case, the baseline first."""
    value, locations, weights, shapes = _inputs(OPERATOR_CASES[name.split("/")[1]], device)
    able = [backend for backend, reason in backends(value, shapes, locations, weights).items() if reason is None]
    return [_BASELINE, *(backend for backend in able if backend != _BASELINE)]


def prepare(name: str, contender: str, device: str) -> Measurement:
    """One backend on one case; `contender` "auto" is the backend the library chooses."""
    _, case_name, what = name.split("/")
    value, locations, weights, shapes = _inputs(OPERATOR_CASES[case_name], device)
    inputs = (value, locations, weights)
    for tensor in inputs:
        tensor.requires_grad_(True)
    towards = torch.randn(
        (*locations.shape[:3], value.shape[-1]), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(value)

    def forward() -> Tensor:
        return multi_scale_deformable_attention(value, shapes, locations, weights, backend=contender)  # type: ignore[arg-type]

    def forward_alone() -> Tensor:
        with torch.no_grad():
            return forward()

    def with_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), inputs, towards)

    def check() -> list[float]:
        """The forward pass against float64, and figures that every correct contender shares."""
        result = forward_alone()
        expected = multi_scale_deformable_attention(
            value.detach().double(), shapes, locations.detach().double(), weights.detach().double(), backend="reference"
        )
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
        return [float(part.double().abs().sum()) for part in (result, *with_backward())]

    return Measurement(check, forward_alone if what == "forward" else with_backward)


def _inputs(case: OperatorCase, device: str) -> tuple[Tensor, Tensor, Tensor, tuple[tuple[int, int], ...]]:
    generator = torch.Generator().manual_seed(0)
    levels = len(case.spatial_shapes)
    value = torch.randn(case.batch, case.num_positions, case.heads, case.head_dim, generator=generator)
    around = torch.rand(case.batch, case.num_queries, 1, 1, 1, 2, generator=generator)
    # A few pixels around a reference, as a trained model samples; some fall outside the image.
    spread = 0.05 * torch.randn(case.batch, case.num_queries, case.heads, levels, case.points, 2, generator=generator)
    weights = torch.randn(case.batch, case.num_queries, case.heads, levels * case.points, generator=generator)
    weights = weights.softmax(-1).unflatten(-1, (levels, case.points))
    return value.to(device), (around + spread).to(device), weights.to(device), case.spatial_shapes
