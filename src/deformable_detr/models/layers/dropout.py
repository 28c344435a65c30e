"""Dropout that is fast on the CPU.

Sixteen random bits decide whether a number is dropped, and one byte keeps the decision for the backward pass. PyTorch's
dropout draws 32 bits for each number on a single core and keeps a float for the backward pass. On other devices
PyTorch's dropout is as fast, and is used.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_STEPS = 2**16


class Dropout(nn.Module):
    """Dropout: in training sets numbers to 0 at random and scales the others, so that the mean stays.

    Outside training it changes nothing.

    Args:
        probability: share of the numbers that are dropped, in 0..1; on the CPU in steps of 1/65536.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, tokens: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Tokens after dropout; random numbers come from PyTorch's global generator of the device."""
        if not self.training or self.probability == 0:
            return tokens
        if not self._uses_random_bits(tokens):
            return torch.nn.functional.dropout(tokens, self.probability)
        dropped: Tensor = _Dropped.apply(tokens, _kept(tokens, self.probability), self.probability)
        return dropped

    def after_relu(self, tokens: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Tokens after ReLU and dropout; the backward pass needs only the result, which the next layer keeps anyway."""
        if not self.training or self.probability == 0 or not self._uses_random_bits(tokens):
            return self(tokens.relu())
        rectified: Tensor = _RectifiedAndDropped.apply(tokens, _kept(tokens, self.probability), self.probability)
        return rectified

    def _uses_random_bits(self, tokens: Tensor) -> bool:
        # The compiler fuses PyTorch's dropout with the operations around it.
        return tokens.device.type == "cpu" and self.probability < 1 and not torch.compiler.is_compiling()

    def extra_repr(self) -> str:
        """Settings that printing the model shows."""
        return f"probability={self.probability}"


def _kept(like: Tensor, probability: float) -> Tensor:
    """Random mask, True = kept, with the shape of `like`."""
    count = like.numel()
    # One draw of 64 random bits serves four numbers.
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return (draws.view(torch.int16)[:count] >= round(probability * _STEPS) - _STEPS // 2).view(like.shape)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, kept: Tensor, probability: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - probability)
        return _scaled(kept, ctx.scale, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _scaled(kept, ctx.scale, grads[0]), None, None


class _RectifiedAndDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, kept: Tensor, probability: float) -> Tensor:
        ctx.scale = 1 / (1 - probability)
        result = _scaled(kept, ctx.scale, tokens).clamp_min_(0)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        # The gradient is that of ReLU: the result is above 0 where a number was, and was kept.
        return torch.ops.aten.threshold_backward(grads[0], result, 0).mul_(ctx.scale), None, None


def _scaled(kept: Tensor, scale: float, tokens: Tensor) -> Tensor:
    """Numbers that are kept, scaled, and 0 for the others; a product with truth values would convert them each time."""
    return kept.to(tokens.dtype).mul_(tokens).mul_(scale)
