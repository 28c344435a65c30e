"""Ways to a faster or leaner step: half precision, compiled layers, recomputed activations."""

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

from deformable_detr.core.errors import BackendError, ConfigError
from deformable_detr.models import interface_of
from deformable_detr.runs.config import PrecisionName
from deformable_detr.training.freezing import part_of

_COMPILERS = ("c++", "g++", "clang++", "cl")
# Names of `torch.cpu.get_capabilities`: without one of these bfloat16 is float32 in disguise.
_BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of the network at its first use; names of parameters stay what they are.

    Layers of one kind share what was compiled, and their shapes stay open: a batch of another size costs nothing. The
    backbone, which is convolutions from a library, and the matching of the loss stay as they are.

    Raises:
        ConfigError: there is no C++ compiler, without which PyTorch can compile nothing.
    """
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(f"compile is true, which needs a C++ compiler, and there is no {' or '.join(wanted)}")
    # On a CPU a compiler's own random numbers come one after another, and take longer than all that it saves.
    on_cpu = next(model.parameters()).device.type == "cpu"
    options = {"fallback_random": True} if on_cpu else None
    for layer in interface_of(model).layers():
        layer.compile(dynamic=True, options=options)


def checkpoint_activations(model: nn.Module) -> None:
    """Let every layer of the network, and the backbone's stages, be computed twice instead of remembered.

    Losses and gradients stay the same to the last bit on a CPU; dropout draws the same numbers both times. What takes
    images through timm's own recomputation, and has a batch norm that learns, is left alone: it would count every
    batch twice.
    """
    for layer in interface_of(model).layers():
        # On the object, not around it: names of parameters stay what they are.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for body in _bodies(model):
        if not any(isinstance(one, _BatchNorm) for one in body.modules()):
            body.set_grad_checkpointing(True)


def checkpointed_parts(model: nn.Module) -> list[str]:
    """Parts of the network of which at least one layer or stage remembers no more than its input."""
    recomputed = {layer for layer in interface_of(model).layers() if _is_recomputed(layer)}
    recomputed |= {body for body in _bodies(model) if getattr(body, "grad_checkpointing", False)}
    parts = interface_of(model).parts
    found = {part_of(f"{name}.", parts) for name, module in model.named_modules() if module in recomputed}
    return [part for part in parts if part in found]


def _is_recomputed(layer: nn.Module) -> bool:
    return isinstance(layer.forward, partial) and layer.forward.func is checkpoint


def _bodies(model: nn.Module) -> list[Any]:
    """Networks of timm inside the network, which have a recomputation of their own; the outermost ones."""
    found: list[Any] = []
    for module in model.modules():
        inside = any(module is one for body in found for one in body.modules())
        if hasattr(module, "set_grad_checkpointing") and not inside:
            found.append(module)
    return found


class Precision:
    """Autocast of the network, and what float16 needs beside it. Weights, losses and matching stay float32.

    Args:
        name: "auto" is bfloat16 on GPUs that have it, float16 on older ones, and float32 on a CPU: with
            instructions for bfloat16 that would be quicker, without them much slower, and what a run learns should
            not depend on which CPU it met.
        device: where the network is.

    Raises:
        BackendError: float16 on a CPU, or bfloat16 on a GPU that has none.
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
        # Small gradients vanish in float16 unless they are scaled up on the way; with other types it does nothing.
        self._scaler = torch.amp.GradScaler(self._device, enabled=name == "float16")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For the forward pass."""
        with torch.autocast(self._device, _TYPES[self.name], enabled=self.name != "float32"):
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, scaled if need be."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size, so that they can be clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step, unless float16 has overflowed; then the scale is halved for the next one."""
        self._scaler.step(optimizer)
        self._scaler.update()

    @property
    def is_slow(self) -> bool:
        """Whether this CPU has no instructions for it, so that float32 is several times as fast."""
        if self.name != "bfloat16" or self._device != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
            return False  # PyTorch 2.11 cannot say what a processor has
        has = torch.cpu.get_capabilities()
        return not any(has.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite is a matter of the scale, which mends itself."""
        return self._scaler.is_enabled()

    def state(self) -> dict[str, Any]:
        """What a run that goes on needs, as JSON can hold it."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
