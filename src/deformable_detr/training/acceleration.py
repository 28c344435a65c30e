"""Acceleration and memory saving of the training step: half precision, compiled layers, recomputed activations."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from deformable_detr.core.devices import has_bfloat16
from deformable_detr.core.errors import BackendError, ConfigError
from deformable_detr.models import interface_of
from deformable_detr.runs.config import PrecisionName
from deformable_detr.training.freezing import part_of

_COMPILERS = ("c++", "g++", "clang++", "cl")
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compile_layers(model: nn.Module) -> None:
    """Compile every encoder and decoder layer at its first use; names of parameters do not change.

    Layers of one kind share their compiled code. It takes any shapes: a batch of another size needs no new compilation.
    The backbone and the loss are not compiled.

    Raises:
        ConfigError: there is no C++ compiler, which PyTorch needs to compile anything.
    """
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(f"compile is true, which needs a C++ compiler, and there is no {' or '.join(wanted)}")
    # On a CPU, compiled code draws its random numbers one by one, which takes longer than compilation saves. With this
    # option it uses PyTorch's random numbers.
    on_cpu = next(model.parameters()).device.type == "cpu"
    options = {"fallback_random": True} if on_cpu else None
    for layer in interface_of(model).layers():
        layer.compile(dynamic=True, options=options)


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute the activations of every layer and of the backbone's stages in the backward pass, to save memory.

    On a CPU, losses and gradients stay the same to the last bit; dropout draws the same numbers both times. A backbone
    whose batch norm learns is left as it is, because its statistics would count every batch twice.
    """
    for layer in interface_of(model).layers():
        # The method is replaced and the layer is not wrapped, so that names of parameters do not change.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for body in _bodies(model):
        if not any(isinstance(one, _BatchNorm) for one in body.modules()):
            body.set_grad_checkpointing(True)


def checkpointed_parts(model: nn.Module) -> list[str]:
    """Names of the parts of the network in which activations of a layer or stage are recomputed."""
    recomputed = {layer for layer in interface_of(model).layers() if _is_recomputed(layer)}
    recomputed |= {body for body in _bodies(model) if getattr(body, "grad_checkpointing", False)}
    parts = interface_of(model).parts
    found = {part_of(f"{name}.", parts) for name, module in model.named_modules() if module in recomputed}
    return [part for part in parts if part in found]


def _is_recomputed(layer: nn.Module) -> bool:
    return isinstance(layer.forward, partial) and layer.forward.func is checkpoint


def _bodies(model: nn.Module) -> list[Any]:
    """Backbones from timm inside the network, the outermost ones; timm has its own way to recompute activations."""
    found: list[Any] = []
    for module in model.modules():
        inside = any(module is one for body in found for one in body.modules())
        if hasattr(module, "set_grad_checkpointing") and not inside:
            found.append(module)
    return found


class Precision:
    """Precision of the forward pass: autocast, and gradient scaling for float16. Weights and loss stay float32.

    Args:
        name: number format. "auto" is bfloat16 on GPUs that have it, float16 on older GPUs, and float32 on CPUs. Some
            CPUs are faster with bfloat16 and others much slower, but the result of a run must not depend on its CPU.
        device: device of the network.

    Raises:
        BackendError: float16 on a CPU, or bfloat16 on a GPU that does not have it.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        has_bfloat16 = not on_gpu or torch.cuda.get_device_capability(device) >= (8, 0)
        if name == "auto":
            name = ("bfloat16" if has_bfloat16 else "float16") if on_gpu else "float32"
        if name == "float16" and not on_gpu:
            raise BackendError("precision float16 is for GPUs; on a CPU there are float32 and bfloat16")
        if name == "bfloat16" and not has_bfloat16:
            raise BackendError(f"{torch.cuda.get_device_name(device)} has no bfloat16; use --precision float16")
        self.name = name
        self._device = device.type
        # In float16 small gradients would become zero, so they are scaled up. With other types the scaler does nothing.
        self._scaler = torch.amp.GradScaler(self._device, enabled=name == "float16")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context of the forward pass, in which the network computes in this precision."""
        with torch.autocast(self._device, _TYPES[self.name], enabled=self.name != "float32"):
            yield

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the loss; in float16 the gradients are scaled up."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scaling of the gradients, so that they can be clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights; if gradients overflowed in float16, skip the update and halve the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()

    @property
    def is_slow(self) -> bool:
        """Whether this CPU has no instructions for bfloat16, so that float32 would be several times as fast."""
        return self.name == "bfloat16" and self._device == "cpu" and not has_bfloat16()

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient may be not finite because of the float16 scale, which then corrects itself."""
        return self._scaler.is_enabled()

    def state(self) -> dict[str, Any]:
        """State of the gradient scaling for a checkpoint, as JSON can hold it; empty without scaling."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state from `state`."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)


_CACHE_CAPACITY = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")


_PRIMITIVES = 64


def bound_primitive_cache() -> None:
    """Limit the cache of convolutions on a CPU to 64 image sizes instead of 1024; call it before the first convolution.

    oneDNN caches a prepared convolution for each image size, and in training hardly any size occurs twice. The cached
    data lie between the activations and fragment the heap, which can double in size. A limit that the user has set in
    ONEDNN_PRIMITIVE_CACHE_CAPACITY stays.
    """
    if not any(name in os.environ for name in _CACHE_CAPACITY):
        os.environ[_CACHE_CAPACITY[0]] = str(_PRIMITIVES)
