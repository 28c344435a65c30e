"""Matrix products of a training on a CPU: by oneDNN where a trial finds that faster, and as exact as PyTorch's choice.

PyTorch hands float32 products to MKL, which is slower than oneDNN on some processors. The switch that hands them to
oneDNN allows it to round to bfloat16. oneDNN does so only on processors with matrix units for bfloat16; elsewhere its
products are as exact as any in float32. So both are measured, and no processor is asked its name.
"""

import functools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.core.progress import Reporter
from deformable_detr.runs.config import ProductsName, TrainConfig

# Feed-forward block of the paper's encoder: tokens, channels in, channels out.
_TOKENS, _CHANNELS, _WIDTH = 1536, 256, 1024
_ROUNDS = 7
_LEAST_GAIN = 1.1
_MOST_ERROR = 2.0
_SWITCHED = "bf16"


class Trial(NamedTuple):
    """Trial of a linear layer, forward and backward, with the products of PyTorch and of oneDNN."""

    gain: float
    """How many times as fast oneDNN is."""
    error: float
    """Largest error of oneDNN's results, in units of the largest error of PyTorch's, both against float64."""

    @property
    def is_exact(self) -> bool:
        """Whether oneDNN's products are as exact as those of float32 are."""
        return self.error <= _MOST_ERROR

    @property
    def pays(self) -> bool:
        """Whether oneDNN is to be used: faster by a tenth, and exact."""
        return self.is_exact and self.gain >= _LEAST_GAIN


def try_products() -> Trial | None:
    """Trial on this processor with the present number of threads, in some 200 ms; None if there is no such switch.

    It is made once for each number of threads.
    """
    return None if _settings() is None else _trial(torch.get_num_threads())


@functools.cache
def _trial(num_threads: int) -> Trial:
    generator = torch.Generator().manual_seed(0)  # of our own: a trial must not change the random numbers of a run
    inputs, weight, grad = (
        torch.randn(shape, generator=generator)
        for shape in ((_TOKENS, _CHANNELS), (_WIDTH, _CHANNELS), (_TOKENS, _WIDTH))
    )
    exact = _products(inputs.double(), weight.double(), grad.double())
    seconds: dict[ProductsName, list[float]] = {"pytorch": [], "onednn": []}
    errors: dict[ProductsName, float] = {}
    for _ in range(_ROUNDS):
        for name, taken in seconds.items():  # in turns, so that a busy machine slows both
            with products(name):
                began = time.perf_counter()
                found = _products(inputs, weight, grad)
                taken.append(time.perf_counter() - began)
            errors[name] = max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))
    plain, switched = (statistics.median(seconds[name][1:]) for name in ("pytorch", "onednn"))
    return Trial(plain / switched, errors["onednn"] / max(errors["pytorch"], 1e-12))


def _products(inputs: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Results of the three products of a linear layer: output, gradient of the input, gradient of the weight."""
    inputs, weight = inputs.clone().requires_grad_(), weight.clone().requires_grad_()
    output = F.linear(inputs, weight)
    of_inputs, of_weight = torch.autograd.grad(output, (inputs, weight), grad)
    return output.detach(), of_inputs, of_weight


def with_products(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, str | None]:
    """Config with its products settled, and a sentence that says what was found; None where nothing was tried."""
    compute = config.compute
    if compute.products != "auto":
        return config, None
    trial = try_products() if device.type == "cpu" else None
    chosen: ProductsName = "onednn" if trial is not None and trial.pays else "pytorch"
    found = None if trial is None else _described(trial)
    return replace(config, compute=replace(compute, products=chosen)), found


def _described(trial: Trial) -> str:
    if trial.pays:
        return f"products by oneDNN, {trial.gain:.1f} times as fast here as PyTorch's choice, and as exact"
    if not trial.is_exact:
        return f"products by PyTorch's choice: those of oneDNN err {trial.error:.0f} times as much on this processor"
    return f"products by PyTorch's choice: oneDNN is {trial.gain:.1f} times as fast here"


@contextmanager
def products(name: ProductsName) -> Iterator[None]:
    """Context with the products of float32 by oneDNN or by PyTorch's choice; "auto" leaves all as it is."""
    settings = _settings()
    if settings is None or name == "auto":
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = _SWITCHED if name == "onednn" else "none"
    try:
        yield
    finally:
        settings.fp32_precision = before


@contextmanager
def products_of_run(name: ProductsName, device: torch.device, reporter: Reporter) -> Iterator[None]:
    """Context of a run with the products that were settled when it began.

    Where they would be less exact on this processor than on that one, PyTorch's choice takes their place, and
    `reporter` is told.
    """
    used = name if device.type == "cpu" else "auto"
    if used == "onednn":
        trial = try_products()
        if trial is None or not trial.is_exact:
            reporter.say(
                "this run began with products by oneDNN, which are not as exact here: PyTorch's choice is used"
            )
            used = "pytorch"
    with products(used):
        yield


def _settings() -> Any:
    """Settings of PyTorch that hold the switch; None if this PyTorch has none."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    usable = torch.backends.mkldnn.is_available() and hasattr(matmul, "fp32_precision")
    return matmul if usable else None
