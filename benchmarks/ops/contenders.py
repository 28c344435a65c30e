"""Contenders that compute the operator: the baseline, the compiled baseline, and every backend of the library."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops import baseline
from benchmarks.ops.problem import Form, Problem
from deformable_detr import ops

BASELINE, COMPILED = "baseline", "baseline_compiled"
Run = Callable[[Tensor, Tensor, Tensor], Tensor]

_SLOW_ABOVE = 500_000
"""Samples beyond which the definition takes seconds and gigabytes; it is then measured only if named."""


class Calls:
    """One contender on one problem: a forward pass without gradients, and a backward pass on its own.

    The backward pass is timed alone by keeping the graph of one forward pass and asking for the gradients again and
    again. The alternative, forward and backward minus forward, has the noise of two measurements.
    """

    def __init__(self, contender: str, form: Form, problem: Problem) -> None:
        self.run = _run(contender, form, problem)
        # Nobody needs gradients of what the reference of a refined or an encoder's query is.
        self.inputs = tuple(
            tensor.detach().requires_grad_(form == "sample" or index != 1)
            for index, tensor in enumerate(problem.inputs(form))
        )
        self.wanted = [tensor for tensor in self.inputs if tensor.requires_grad]
        self.towards = problem.towards
        self._result: Tensor | None = None

    def forward(self) -> Tensor:
        """The result, without a graph."""
        with torch.no_grad():
            return self.run(*self.inputs)

    def with_graph(self) -> Tensor:
        """The result, with a graph to go back through."""
        return self.run(*self.inputs)

    def backward(self) -> tuple[Tensor, ...]:
        """Gradients of all wanted inputs through a graph that is kept."""
        if self._result is None:
            self._result = self.with_graph()
        return self.gradients(self._result, self.towards)

    def gradients(self, result: Tensor, towards: Tensor) -> tuple[Tensor, ...]:
        """Of value, locations and weights, or of value and projection; the graph stays."""
        return torch.autograd.grad(result, self.wanted, towards, retain_graph=True)


def able(problem: Problem, *, compiled: bool, named: list[str]) -> list[str]:
    """The baseline, then every backend that can run here, in the library's order of preference."""
    reasons = ops.backends(problem.value, problem.spatial_shapes, problem.locations, problem.weights)
    backends = [
        name
        for name, reason in reasons.items()
        if reason is None and (name != "reference" or name in named or problem.weights.numel() <= _SLOW_ABOVE)
    ]
    found = [BASELINE, *[COMPILED] * compiled, *backends]
    return [name for name in found if not named or name == BASELINE or name in named]


def _run(contender: str, form: Form, problem: Problem) -> Run:
    shapes = problem.spatial_shapes
    if contender in (BASELINE, COMPILED):
        function = baseline.sample if form == "sample" else baseline.attend
        if contender == COMPILED:
            function = _compiled(function)
        return lambda value, second, third: function(value, shapes, second, third)
    if form == "sample":
        return lambda value, second, third: ops.multi_scale_deformable_attention(
            value,
            shapes,
            second,
            third,
            backend=contender,  # type: ignore[arg-type]
        )
    points = problem.locations.shape[4]
    return lambda value, second, third: ops.multi_scale_deformable_attention_from_projection(
        value,
        shapes,
        second,
        third,
        num_points=points,
        backend=contender,  # type: ignore[arg-type]
    )


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()

    # Its buffers are normally given away in the first backward pass; here there are several through one graph.
    def compiled(*arguments: object) -> Tensor:
        with torch._functorch.config.patch(donated_buffer=False):
            return inner(*arguments)

    inner = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled
