"""Coordinates and scores are computed in float32, whatever autocast makes of the rest."""

import torch
from torch import Tensor, nn


def in_float32(module: nn.Module, inputs: Tensor) -> Tensor:
    """What `module` makes of the inputs without autocast.

    bfloat16 has eight bits: a box computed in it is off by a three-hundredth of the image. The layers this is for are
    the last ones before a box or a score, and cost next to nothing.
    """
    if not torch.is_autocast_enabled(inputs.device.type):
        result: Tensor = module(inputs)
        return result
    with torch.autocast(inputs.device.type, enabled=False):
        return module(inputs.float())
