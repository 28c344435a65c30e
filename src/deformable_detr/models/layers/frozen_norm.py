"""Convolutions that have taken in the frozen batch norm behind them.

Frozen batch norm scales and shifts every channel by constants. Scaling the weights instead, which are few, saves a pass
over each feature map in the forward pass and one in the backward pass. Names and values of all weights stay.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Graph, Node, Tracer
from torch.fx.proxy import TraceError

from deformable_detr.models.layers.deformable_convolution import DeformableConvolution

_STATISTICS = ("running_mean", "running_var", "eps", "weight", "bias")
# Errors of a network whose Python code depends on the numbers in its input.
_UNTRACEABLE = (TraceError, TypeError, AttributeError, RuntimeError, ValueError, LookupError)


class FoldedConvolution(nn.Conv2d):
    """Convolution and the frozen batch norm behind it, as one operation; the norm's constants stay in the norm.

    Args:
        convolution: the convolution; its parameters are shared.
        norm: the norm behind it, a `FoldedNorm`.
    """

    def __init__(self, convolution: nn.Conv2d, norm: "FoldedNorm") -> None:
        nn.Module.__init__(self)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(convolution, name))
        self.transposed, self.output_padding, self.padding_mode = False, (0, 0), convolution.padding_mode
        self.weight, self.bias = convolution.weight, convolution.bias
        self.train(convolution.training)
        # In a tuple it is no part of this module: its constants have one name, that of the norm.
        self._norm = (norm,)

    def forward(self, input: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Feature maps after convolution and norm."""
        scale, shift = self._norm[0].scale_and_shift()
        if self.bias is not None:
            shift = shift + self.bias * scale
        return convolved(input, self.weight * scale[:, None, None, None], shift, self)


class FoldedNorm(nn.Module):
    """Frozen batch norm that the convolution before it computes: it only applies what is behind its shift.

    Args:
        norm: the norm, of fixed statistics, scale and shift, perhaps with an activation behind it; its constants are
            shared.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.eps = norm.eps
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def scale_and_shift(self) -> tuple[Float[Tensor, "channels"], Float[Tensor, "channels"]]:
        """Scale and shift of every channel, rounded once."""
        # Errors here would be those of whole maps. Apple's GPUs have no float64.
        wide = torch.float32 if self.weight.device.type == "mps" else torch.float64
        weight, bias, mean, var = (
            one.to(wide) for one in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (var + self.eps).rsqrt()
        shift = bias - mean * scale
        return scale.to(self.weight.dtype), shift.to(self.weight.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # Norms that learn count the batches that they have seen.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, features: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Feature maps after the activation, if there is one; `features` may be overwritten."""
        features = self.drop(features)
        if type(self.act) is nn.ReLU6 and self.act.inplace and features.requires_grad and _is_plain(features):
            clipped: Tensor = _Clipped.apply(features)
            return clipped
        result: Tensor = self.act(features)
        return result


def convolved(
    features: Float[Tensor, "batch _ _ _"], weight: Tensor, bias: Tensor | None, like: nn.Conv2d
) -> Float[Tensor, "batch _ _ _"]:
    """Feature maps after a convolution with this weight and bias, and with stride and padding of another one.

    One over single pixels is a matrix product. On a CPU it is computed as such: PyTorch would bring the pixels into
    another order first, and back.
    """
    if is_matrix_product(like) and _is_plain(features):
        product: Tensor = _PixelProduct.apply(features, weight.flatten(1), bias)
        return product
    return F.conv2d(features, weight, bias, like.stride, like.padding, like.dilation, like.groups)


def _is_plain(features: Tensor) -> bool:
    """Whether PyTorch has a convolution in its own order of pixels computed, on a CPU and in the type it has."""
    return (
        features.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and type(features) is Tensor
    )


class _PixelProduct(torch.autograd.Function):
    """Matrix product of all pixels, (pixels, channels), with a weight, written where the next layer reads it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pixels = _pixels(features)
        ctx.save_for_backward(pixels, weight)
        result = _empty(features, weight.shape[0])
        if bias is None:
            torch.mm(pixels, weight.t(), out=_pixels(result))
        else:
            torch.addmm(bias, pixels, weight.t(), out=_pixels(result))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        pixels, weight = ctx.saved_tensors
        grad = _pixels(grads[0])
        of_features = None
        if ctx.needs_input_grad[0]:
            of_features = _empty(grads[0], weight.shape[1])
            torch.mm(grad, weight, out=_pixels(of_features))
        of_weight = grad.t().mm(pixels) if ctx.needs_input_grad[1] else None
        return of_features, of_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


class _Clipped(torch.autograd.Function):
    """ReLU6 in place whose backward pass needs the result alone, where PyTorch's keeps a copy of its input."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.mark_dirty(features.clamp_(0, 6))
        ctx.save_for_backward(features)
        return features

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], result, 0.0, 6.0)


def _pixels(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "pixels channels"]:
    """Pixels of all maps, one after the other; a view where the channels of a pixel lie side by side."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _empty(like: Float[Tensor, "batch _ height width"], channels: int) -> Float[Tensor, "batch _ height width"]:
    batch, _, height, width = like.shape
    return torch.empty(
        (batch, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def is_matrix_product(convolution: nn.Conv2d) -> bool:
    """Whether a convolution takes each pixel on its own, all channels together."""
    one = (1, 1)
    alone = convolution.kernel_size == convolution.stride == one and convolution.padding == (0, 0)
    return alone and convolution.groups == 1


def fold_frozen_norms(network: nn.Module) -> None:
    """Let convolutions take in the frozen batch norm behind them, wherever nothing else uses their result.

    A network that cannot be traced stays as it is, and so does one with hooks, which may take a convolution's result.

    Args:
        network: feature maps from images; its modules are replaced.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        return
    graph = traced(network)
    if graph is None:
        return
    parts = dict(network.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        convolution, user = called(node, parts), only_user(node)
        # A subclass may compute in its own way.
        if user is None or type(convolution) is not nn.Conv2d or convolution.padding_mode != "zeros":
            continue
        norm, names = called(user, parts), (str(node.target), str(user.target))
        # What is called twice has two results, with one norm behind each.
        called_once = all(calls.count(name) == 1 for name in names)
        if norm is None or not is_frozen_norm(norm) or not called_once or isinstance(convolution.padding, str):
            continue
        folded = FoldedNorm(norm)
        network.set_submodule(names[1], folded)
        network.set_submodule(names[0], FoldedConvolution(convolution, folded))


def traced(network: nn.Module) -> Graph | None:
    """Graph of a network's operations, each layer and each batch norm as one; None if it cannot be traced."""
    try:
        return _Tracer(network).trace(network)
    except _UNTRACEABLE:
        return None


class _Tracer(Tracer):
    """Tracer that keeps each layer as it is, also deformable convolutions and norms with an activation in them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Looked at before tracing begins, which records every look at a parameter.
        self._whole = {
            name
            for name, module in network.named_modules()
            if has_statistics(module) or isinstance(module, FoldedConvolution | DeformableConvolution)
        }

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return qualified_name in self._whole or super().is_leaf_module(module, qualified_name)


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer is batch norm of fixed statistics, perhaps with an activation behind it."""
    return all(hasattr(module, name) for name in _STATISTICS) and isinstance(module.running_mean, Tensor)


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether a layer is batch norm that stays as it is in training, too: with constants, and no parameters."""
    constants = dict(module.named_buffers(recurse=False))
    mine = {"running_mean", "running_var", "weight", "bias"}
    return has_statistics(module) and constants.keys() == mine and not isinstance(module, FoldedNorm)


def called(node: Node, parts: dict[str, nn.Module]) -> nn.Module | None:
    """Module that a node of a graph calls; None if it does something else."""
    return parts.get(str(node.target)) if node.op == "call_module" else None


def only_user(node: Node) -> Node | None:
    """Node that alone uses the result of another; None if several do."""
    return next(iter(node.users)) if len(node.users) == 1 else None
