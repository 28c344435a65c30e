"""Ways to a faster or leaner step: half precision, compiled layers, recomputed activations."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from deformable_detr.core.errors import BackendError, ConfigError
from deformable_detr.models import DeformableDETR
from deformable_detr.runs.config import PrecisionName

_COMPILERS = ("c++", "g++", "clang++", "cl")


def compile_layers(model: DeformableDETR) -> None:
    """Compile every layer of encoder and decoder at its first use; names of parameters stay what they are.

    Layers of one kind share what was compiled, and their shapes stay open: a batch of another size costs nothing. The
    backbone, which is convolutions from a library, and the matching of the loss stay as they are.

    Raises:
        ConfigError: there is no C++ compiler, without which PyTorch can compile nothing.
    """
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(f"compile is true, which needs a C++ compiler, and there is no {' or '.join(wanted)}")
    # On a processor a compiler's own random numbers come one after another, and take longer than all that it saves.
    on_processor = next(model.parameters()).device.type == "cpu"
    options = {"fallback_random": True} if on_processor else None
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.compile(dynamic=True, options=options)


def checkpoint_activations(model: DeformableDETR) -> None:
    """Let every layer of encoder and decoder, and the backbone's stages, be computed twice instead of remembered.

    Losses and gradients stay the same to the last bit on a processor; dropout draws the same numbers both times. A
    backbone whose batch norm learns is left alone, as it would count every batch twice.
    """
    for layer in (*model.encoder.layers, *model.decoder.layers):
        # On the object, not around it: names of parameters stay what they are.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    body = _body(model)
    if hasattr(body, "set_grad_checkpointing") and not any(isinstance(one, _BatchNorm) for one in body.modules()):
        body.set_grad_checkpointing(True)


def checkpointed_parts(model: DeformableDETR) -> list[str]:
    """Which of backbone, encoder and decoder remember no more than the input of their layers."""
    parts = ["backbone"] if getattr(_body(model), "grad_checkpointing", False) else []
    for name in ("encoder", "decoder"):
        layers = getattr(model, name).layers
        if any(isinstance(layer.forward, partial) and layer.forward.func is checkpoint for layer in layers):
            parts.append(name)
    return parts


def _body(model: DeformableDETR) -> Any:
    return model.pyramid.backbone.body


# Of processors, as `torch.cpu.get_capabilities` calls them: without one of these bfloat16 is float32 in disguise.
_BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Autocast of the network, and what float16 needs beside it. Weights, losses and matching stay float32.

    Args:
        name: "auto" is bfloat16 on GPUs that have it, float16 on older ones, and float32 on a processor: with
            instructions for bfloat16 that would be quicker, without them much slower, and what a run learns should
            not depend on which processor it met.
        device: where the network is.

    Raises:
        BackendError: float16 on a processor, or bfloat16 on a GPU that has none.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        has_bfloat16 = not on_gpu or torch.cuda.get_device_capability(device) >= (8, 0)
        if name == "auto":
            name = ("bfloat16" if has_bfloat16 else "float16") if on_gpu else "float32"
        if name == "float16" and not on_gpu:
            raise BackendError("precision float16 is for GPUs; on a processor there are float32 and bfloat16")
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
        """Whether this processor has no instructions for it, so that float32 is several times as fast."""
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
