"""Dropout that costs a CPU little: sixteen random bits decide about a number, and one byte remembers it.

PyTorch's own draws a 32-bit number for each, one after another on a single core, and keeps a float for the way back. On
other devices it is as good as this, and is used.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_STEPS = 2**16


class Dropout(nn.Module):
    """In training each number is dropped with a probability and the others grow to keep the mean; else nothing happens.

    The probability counts in steps of 1 / 65536.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, tokens: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Draws from PyTorch's generator of the device."""
        if not self.training or self.probability == 0:
            return tokens
        if not self._here(tokens):
            return torch.nn.functional.dropout(tokens, self.probability)
        dropped: Tensor = _Dropped.apply(tokens, _kept(tokens, self.probability), self.probability)
        return dropped

    def after_relu(self, tokens: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Of the rectified tokens; needs nothing for the way back that the next layer does not keep anyway."""
        if not self.training or self.probability == 0 or not self._here(tokens):
            return self(tokens.relu())
        rectified: Tensor = _RectifiedAndDropped.apply(tokens, _kept(tokens, self.probability), self.probability)
        return rectified

    def _here(self, tokens: Tensor) -> bool:
        # A compiler fuses PyTorch's own with its neighbours.
        return tokens.device.type == "cpu" and self.probability < 1 and not torch.compiler.is_compiling()

    def extra_repr(self) -> str:
        """For printing the model."""
        return f"probability={self.probability}"


def _kept(like: Tensor, probability: float) -> Tensor:
    count = like.numel()
    # The whole range of 64 bits, read as four numbers of 16.
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return (draws.view(torch.int16)[:count] >= round(probability * _STEPS) - _STEPS // 2).view(like.shape)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, kept: Tensor, probability: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - probability)
        return (tokens * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (grads[0] * kept).mul_(ctx.scale), None, None


class _RectifiedAndDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, kept: Tensor, probability: float) -> Tensor:
        ctx.scale = 1 / (1 - probability)
        result = tokens.relu().mul_(kept).mul_(ctx.scale)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return (grads[0] * (result > 0)).mul_(ctx.scale), None, None
