"""Folding of a convolutional network for inference: batch norm into convolutions, activations and sums behind them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.fx.proxy import TraceError

from deformable_detr.inference.onednn import Activation, Convolution, PackedProducts
from deformable_detr.models.layers.deformable_convolution import DeformableConvolution

_ACTIVATION_OF: dict[type[Any], Activation] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
_SUMS = ("add", "iadd")
_STATISTICS = ("running_mean", "running_var", "eps", "weight", "bias")
# Largest difference to the network as it was, of a map's largest value; sums in another order differ by less.
_TOLERANCE = 1e-4
_ROUGH_TOLERANCE = 0.2
# Errors of a network whose Python code depends on the numbers in its input.
_UNTRACEABLE = (TraceError, TypeError, AttributeError, RuntimeError, ValueError, LookupError)


def folded(network: nn.Module, choice: PackedProducts, dtype: torch.dtype = torch.float32) -> nn.Module | None:
    """Network that computes the same in evaluation mode with fewer and larger operations; None if there is no such.

    Batch norm and other layers of fixed scale and shift go into the convolution before them, activations and sums into
    the operation that computes their input. It is compared with the network on random images before it is returned.

    Args:
        network: feature maps from images, in evaluation mode; it stays as it is.
        choice: which convolutions oneDNN does.
        dtype: type of weights and features; only in float32 the comparison is close.
    """
    try:
        graph = _Tracer(network).trace(network)
    except _UNTRACEABLE:
        return None
    parts = dict(network.named_modules())
    _drop_identities(graph, parts)
    fused: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if isinstance(_module_of(node, parts), nn.Conv2d):
            _fuse(graph, node, parts, fused, choice, dtype)
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    kept = {name: _in_type(parts[name], dtype) for name in called if name in parts}
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    constants = {name: _attribute(network, name).detach().to(dtype) for name in read}
    graph.lint()
    result = GraphModule({**kept, **constants, **fused}, graph)
    return result if _is_equal(network, result, dtype) else None


class _Tracer(Tracer):
    """Tracer that keeps each layer as it is, also deformable convolutions and timm's norms with an activation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Looked at before tracing begins, which records every look at a parameter.
        self._norms = {name for name, module in network.named_modules() if _has_statistics(module)}

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        whole = qualified_name in self._norms or isinstance(module, DeformableConvolution)
        return whole or super().is_leaf_module(module, qualified_name)


def _has_statistics(module: nn.Module) -> bool:
    """Whether a layer is batch norm of fixed statistics, perhaps with an activation behind it."""
    return all(hasattr(module, name) for name in _STATISTICS) and isinstance(module.running_mean, Tensor)


def _module_of(node: Node, parts: dict[str, nn.Module]) -> nn.Module | None:
    return parts.get(str(node.target)) if node.op == "call_module" else None


def _drop_identities(graph: Graph, parts: dict[str, nn.Module]) -> None:
    for node in list(graph.nodes):
        if isinstance(_module_of(node, parts), nn.Identity | nn.Dropout | nn.Dropout2d):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _fuse(
    graph: Graph,
    node: Node,
    parts: dict[str, nn.Module],
    fused: dict[str, nn.Module],
    choice: PackedProducts,
    dtype: torch.dtype,
) -> None:
    """Replace a convolution, and what alone uses its result, by one operation."""
    convolution = parts[str(node.target)]
    assert isinstance(convolution, nn.Conv2d)
    # A subclass may pad or compute in its own way.
    if (
        type(convolution) is not nn.Conv2d
        or convolution.padding_mode != "zeros"
        or isinstance(convolution.padding, str)
    ):
        return
    weight = convolution.weight.detach()
    bias = None if convolution.bias is None else convolution.bias.detach()
    last: Node = node
    activation: Activation | None = None
    norm = _only_user(last)
    layer = _module_of(norm, parts) if norm is not None else None
    if norm is not None and layer is not None and _has_statistics(layer):
        within = getattr(layer, "act", None)
        if within is None or isinstance(within, nn.Identity) or type(within) in _ACTIVATION_OF:
            weight, bias = _with_norm(weight, bias, layer)
            last, activation = norm, _ACTIVATION_OF.get(type(within))
        else:
            activation = "none"  # the norm stays as it is, with its unusual activation
    residual: Node | None = None
    if activation is None:
        activation = "none"
        sum_node = _only_user(last)
        if sum_node is not None and _is_sum_of_two(sum_node):
            first, second = sum_node.args[:2]
            other = second if first is last else first
            # Both operands must be there; the result takes the place of the sum.
            if isinstance(other, Node) and other is not last:
                last, residual = sum_node, other
        after = _only_user(last)
        module = _module_of(after, parts) if after is not None else None
        if after is not None and type(module) in _ACTIVATION_OF:
            last, activation = after, _ACTIVATION_OF[type(module)]
    name = f"convolution_{len(fused)}"
    fused[name] = Convolution(
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        stride=_pair(convolution.stride),
        padding=_pair(convolution.padding),
        dilation=_pair(convolution.dilation),
        groups=convolution.groups,
        activation=activation,
        packed=_is_packed(convolution, choice),
    )
    inputs = (node.args[0],) if residual is None else (node.args[0], residual)
    with graph.inserting_before(last):
        replacement = graph.call_module(name, inputs)
    last.replace_all_uses_with(replacement)
    while last is not node:
        previous = last.args[0] if residual is None or not _is_sum_of_two(last) else _not(last, residual)
        graph.erase_node(last)
        assert isinstance(previous, Node)
        last = previous
    graph.erase_node(node)


def _not(sum_node: Node, residual: Node) -> Any:
    first, second = sum_node.args[:2]
    return second if first is residual else first


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_sum_of_two(node: Node) -> bool:
    name = getattr(node.target, "__name__", node.target)
    return node.op in ("call_function", "call_method") and name in _SUMS and len(node.args) == 2 and not node.kwargs


def _with_norm(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the norm behind it, computed in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if bias is not None:
        shift = shift + bias.double() * scale
    new_weight = weight.double() * scale[:, None, None, None]
    return new_weight.detach().to(weight.dtype), shift.detach().to(weight.dtype)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)


def _is_packed(convolution: nn.Conv2d, choice: PackedProducts) -> bool:
    if convolution.groups > 1:
        return choice.depthwise if convolution.groups == convolution.in_channels else False
    one = convolution.kernel_size == (1, 1) and convolution.stride == (1, 1)
    return choice.pointwise if one else choice.convolution


def _attribute(network: nn.Module, target: str) -> Any:
    value: Any = network
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _in_type(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return module if dtype == torch.float32 else copy.deepcopy(module).to(dtype)


def _is_equal(network: nn.Module, other: nn.Module, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 96, generator=generator).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(images)
        try:
            found = other(images.to(dtype))
        except RuntimeError:
            return False  # such as a sum of maps of unequal sizes, which oneDNN has none of
    tolerance = _TOLERANCE if dtype == torch.float32 else _ROUGH_TOLERANCE
    pairs = zip(expected, found, strict=True)
    return all(float((a - b).abs().max()) <= tolerance * (1.0 + float(a.abs().max())) for a, b in pairs)
