"""Memory for time: layers that keep their input alone, and compute what is inside again when gradients are wanted."""

from functools import partial
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from deformable_detr.models import DeformableDETR


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
