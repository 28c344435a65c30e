"""Registration of the operator with PyTorch, once for all devices, with its fake, autograd and autocast rules.

The operation has two forms. `sample` takes locations and weights as they are. `attend` makes them from a reference and
a projection on the way, which saves the two largest tensors of an encoder layer. Both flatten levels and points into
one axis of samples, so that levels may differ in their number of points; `points` holds the number of each level.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from deformable_detr.core.errors import BackendError
from deformable_detr.ops import cpu, reference

_SHAPES = "SymInt[] shapes, int[] points"
_LIBRARY = torch.library.Library("deformable_detr", "DEF")
_LIBRARY.define(f"sample(Tensor value, Tensor locations, Tensor weights, {_SHAPES}) -> Tensor")
_LIBRARY.define(
    f"sample_backward(Tensor grad, Tensor value, Tensor locations, Tensor weights, {_SHAPES}, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(f"attend(Tensor value, Tensor reference, Tensor projection, {_SHAPES}) -> Tensor")
_LIBRARY.define(
    f"attend_backward(Tensor grad, Tensor value, Tensor reference, Tensor projection, {_SHAPES}, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)"
)

Gradients = tuple[Tensor, Tensor, Tensor]
_PLAIN = (Tensor, nn.Parameter)


# Rules that both forms and all devices share. The second argument is `locations` or `reference`, the third `weights`
# or `projection`.


def _fake(value: Tensor, second: Tensor, third: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
    return value.new_empty(value.shape[0], second.shape[1], value.shape[2], value.shape[3])


def _fake_backward(
    grad: Tensor,
    value: Tensor,
    second: Tensor,
    third: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    wanted: Sequence[bool],
) -> Gradients:
    one, two, three = (
        tensor.new_empty(tensor.shape if want else 0)
        for tensor, want in zip((value, second, third), wanted, strict=True)
    )
    return one, two, three


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, second, third, shapes, points = inputs
    ctx.save_for_backward(value, second, third)
    ctx.shapes, ctx.points = shapes, points


def _gradient_of(name: str) -> Callable[..., Any]:
    backward = getattr(torch.ops.deformable_detr, name)

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:3]
        gradients = backward(grad, *ctx.saved_tensors, ctx.shapes, ctx.points, wanted)
        return (*(one if want else None for one, want in zip(gradients, wanted, strict=True)), None, None)

    return gradient


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the compiled backends of multi_scale_deformable_attention have no second derivative; backend='reference' has"
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    pass


def _under_autocast(name: str, key: torch._C.DispatchKey) -> Callable[..., Any]:
    op = getattr(torch.ops.deformable_detr, name)
    keys = torch._C.DispatchKeySet(key)

    def run(value: Tensor, second: Tensor, third: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
        # A half-precision number cannot address every pixel of a large map. So autocast raises locations and weights
        # to float32, and lowers nothing.
        exact = reference.accumulation_dtype(value.dtype)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(value, second.to(exact), third.to(exact), shapes, points)

    return run


def _cuda(name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        from deformable_detr.ops import triton

        return getattr(triton, name)(*arguments)

    return run


def _no_kernel(grad: Tensor, value: Tensor, *others: object) -> Gradients:
    reason = cpu.missing() if value.device.type == "cpu" else f"there is none for {value.device.type}"
    raise BackendError(
        f"the gradient of the registered operator needs a compiled kernel: {reason}; call "
        "multi_scale_deformable_attention, which falls back to grid_sample"
    )


def _on_cpu(name: str, portable: Callable[..., Any]) -> Callable[..., Any]:
    compiled = getattr(cpu, name)

    def run(*arguments: Any) -> Any:
        # A program exported where the kernel was built still runs where it was not.
        return (compiled if cpu.missing() is None else portable)(*arguments)

    return run


def _register() -> None:
    portable: dict[str, Callable[..., Any]] = {
        "sample": reference.sample,
        "attend": reference.attend,
        "sample_backward": _no_kernel,
        "attend_backward": _no_kernel,
    }
    for name, fallback in portable.items():
        _LIBRARY.impl(name, fallback, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, _on_cpu(name, fallback), "CPU")
        _LIBRARY.impl(name, _cuda(name), "CUDA")
    for name in ("sample", "attend"):
        qualified = f"deformable_detr::{name}"
        torch.library.register_fake(qualified, _fake, lib=_LIBRARY)
        torch.library.register_fake(f"{qualified}_backward", _fake_backward, lib=_LIBRARY)
        torch.library.register_autograd(
            qualified, _gradient_of(f"{name}_backward"), setup_context=_setup_context, lib=_LIBRARY
        )
        torch.library.register_autograd(
            f"{qualified}_backward", _no_second_derivative, setup_context=_save_nothing, lib=_LIBRARY
        )
        for device in ("CPU", "CUDA"):
            key = getattr(torch._C.DispatchKey, f"Autocast{device}")
            _LIBRARY.impl(name, _under_autocast(name, key), f"Autocast{device}")


_register()

sample = torch.ops.deformable_detr.sample.default
attend = torch.ops.deformable_detr.attend.default


def _is_watched(*tensors: Tensor) -> bool:
    """Whether PyTorch has to see the call: for a gradient, a graph, a trace or a profile."""
    return (
        torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or any(type(tensor) not in _PLAIN for tensor in tensors)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


def _directly(op: Callable[..., Tensor], kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(value: Tensor, second: Tensor, third: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
        return (op if _is_watched(value, second, third) else kernel)(value, second, third, shapes, points)

    return run


# PyTorch takes some 12 us to find a kernel that is written in Python, a tenth of the time of a call in a decoder layer.
# So where it need not see the call, the kernel is called directly.
sample_on_cpu = _directly(sample, cpu.sample)
attend_on_cpu = _directly(attend, cpu.attend)
