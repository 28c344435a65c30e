"""Matrix products and convolutions by oneDNN, with weights packed once; all of PyTorch's private names for it are here.

PyTorch hands float32 products to MKL, which is slower on some processors, and packs the weights of a convolution anew
in each call. The operators below are those that PyTorch's own compiler uses for frozen weights. Where they are missing,
or a measurement says that they do not pay, the public functions do the work.
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "relu", "relu6", "silu", "hardswish"]
"""Activation that follows a product within the same operation."""

_ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "silu": ("swish", []),
    "hardswish": ("hardswish", []),
}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "relu6": functools.partial(F.relu6, inplace=True),
    "silu": functools.partial(F.silu, inplace=True),
    "hardswish": functools.partial(F.hardswish, inplace=True),
}
_NAMES = ("_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight", "_convolution_pointwise")
# Shapes of the trial: tokens, channels in, channels out; and batch, channels in, height, width, channels out, kernel.
_TRIED_LINEAR = (1024, 256, 256)
_TRIED_CONVOLUTIONS = {"pointwise": (1, 256, 24, 32, 128, 1), "convolution": (1, 64, 24, 32, 64, 3)}
_TRIED_DEPTHWISE = (1, 192, 24, 32, 3)
_ROUNDS = 7
_MARGIN = 0.95


def why_unpacked() -> str | None:
    """Reason why oneDNN's operators cannot be used here; None if they can."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn is switched off"
    missing = [name for name in _NAMES if not hasattr(torch.ops.mkldnn, name)]
    return f"PyTorch {torch.__version__} no longer has torch.ops.mkldnn.{missing[0]}" if missing else None


@dataclass(frozen=True)
class PackedProducts:
    """Products that oneDNN does with packed weights; the others are left to PyTorch."""

    linear: bool
    """Linear layers."""
    pointwise: bool
    """Convolutions of one pixel with stride 1."""
    convolution: bool
    """All other convolutions but depthwise ones."""
    depthwise: bool
    """Depthwise convolutions."""


NOTHING = PackedProducts(linear=False, pointwise=False, convolution=False, depthwise=False)
"""Choice to leave all products to PyTorch."""
EVERYTHING = PackedProducts(linear=True, pointwise=True, convolution=True, depthwise=True)
"""Choice to let oneDNN do all products."""


def measured_choice(dtype: torch.dtype = torch.float32) -> PackedProducts:
    """Choice by a trial of each kind of product, which takes some 30 milliseconds, once per number of threads.

    A product goes to oneDNN if that is at least 5 % faster here and now; no name of a processor is asked.
    """
    return _measured(dtype, torch.get_num_threads())


@functools.cache
def _measured(dtype: torch.dtype, num_threads: int) -> PackedProducts:
    if why_unpacked() is not None:
        return NOTHING
    generator = torch.Generator().manual_seed(0)  # of our own: a trial must not change the program's random numbers

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tokens, channels, width = _TRIED_LINEAR
    faster = {"linear": _is_faster(Linear, random(tokens, channels), random(width, channels), random(width))}
    for name, (batch, channels, height, width, out, kernel) in _TRIED_CONVOLUTIONS.items():
        image = random(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
        faster[name] = _is_faster(Convolution, image, random(out, channels, kernel, kernel), random(out))
    batch, channels, height, width, kernel = _TRIED_DEPTHWISE
    image = random(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    depthwise = functools.partial(Convolution, groups=channels)
    faster["depthwise"] = _is_faster(depthwise, image, random(channels, 1, kernel, kernel), random(channels))
    return PackedProducts(**faster)


def _is_faster(product: Callable[..., nn.Module], inputs: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether a product is faster with packed weights; both take turns, so that a busy machine slows both."""
    plain, packed = (product(weight, bias, activation="relu", packed=one) for one in (False, True))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            for is_packed, module in ((False, plain), (True, packed)):
                began = time.perf_counter()
                module(inputs)
                seconds[is_packed].append(time.perf_counter() - began)
    return statistics.median(seconds[True][1:]) < _MARGIN * statistics.median(seconds[False][1:])


class Linear(nn.Module):
    """Linear layer with an activation, or with a residual that is added; its weights are constants.

    Args:
        weight: (channels out, channels in).
        bias: (channels out).
        activation: activation after the product.
        packed: whether oneDNN does it, with weights in its own layout.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, activation: Activation = "none", packed: bool = True
    ) -> None:
        super().__init__()
        weight = weight.detach()
        self.packed = packed
        self.activation = activation
        self.attribute, self.scalars = _ACTIVATIONS[activation]
        # Plain attributes: packed tensors have no strides, and cannot be copied or saved like parameters.
        self.bias = None if bias is None else bias.detach().clone()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if packed else weight

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """Product, plus the residual if there is one, after the activation.

        Args:
            inputs: (..., channels in).
            residual: (..., channels out); only where the activation is "none".
        """
        if not self.packed:
            return _finished(F.linear(inputs, self.weight, self.bias), residual, self.activation)
        if residual is not None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(inputs, residual, self.weight, self.bias, "add")
            return result
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, self.attribute, self.scalars, "")


class Convolution(nn.Module):
    """Convolution with a residual that is added and an activation; its weights are constants.

    Args:
        weight: (channels out, channels in / groups, height, width).
        bias: (channels out).
        stride: of both axes.
        padding: on each side, for both axes.
        dilation: of both axes.
        groups: number of groups of channels.
        activation: activation after the convolution and the residual.
        packed: whether oneDNN does it, with weights in its own layout.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        activation: Activation = "none",
        packed: bool = True,
    ) -> None:
        super().__init__()
        weight = weight.detach()
        self.packed, self.activation = packed, activation
        self.attribute, self.scalars = _ACTIVATIONS[activation]
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.bias = None if bias is None else bias.detach().clone()
        # A pointwise convolution is a product of all pixels, which lie one after another in channels_last.
        self.is_product = weight.shape[2:] == (1, 1) and stride == (1, 1) and padding == (0, 0) and groups == 1
        if not packed:
            self.weight = weight.contiguous(memory_format=torch.channels_last)
        elif self.is_product:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1).contiguous(), None)
        else:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, list(padding), list(stride), list(dilation), groups
            )

    def forward(self, image: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolution, plus the residual if there is one, after the activation; in channels_last."""
        if not self.packed:
            result = F.conv2d(image, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return _finished(result, residual, self.activation)
        if self.is_product:
            return self._product(image, residual)
        geometry = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        if residual is None or self.groups > 1:
            attribute, scalars = (self.attribute, self.scalars) if residual is None else ("none", [])
            result = torch.ops.mkldnn._convolution_pointwise(
                image, self.weight, self.bias, *geometry, attribute, scalars, ""
            )
            # PyTorch joins no sum to a convolution in groups.
            return result if residual is None else _finished(result, residual, self.activation)
        # Of the activations, PyTorch joins only ReLU to a sum.
        joined: tuple[str | None, list[float], str | None] = (
            ("relu", [], "") if self.activation == "relu" else (None, [], None)
        )
        added: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            image, residual, self.weight, self.bias, *geometry, "add", 1.0, *joined
        )
        return added if self.activation in ("none", "relu") else _IN_PLACE[self.activation](added)

    def _product(self, image: Tensor, residual: Tensor | None) -> Tensor:
        pixels = image.permute(0, 2, 3, 1)  # a view of what lies in channels_last
        if residual is None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(
                pixels, self.weight, self.bias, self.attribute, self.scalars, ""
            )
        else:
            added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                pixels, residual.permute(0, 2, 3, 1), self.weight, self.bias, "add"
            )
            result = _IN_PLACE[self.activation](added) if self.activation != "none" else added
        return result.permute(0, 3, 1, 2)


def _finished(result: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
    if residual is not None:
        result = result.add_(residual)
    return result if activation == "none" else _IN_PLACE[activation](result)
