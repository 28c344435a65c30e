"""Averaged weights (EMA) of the network: evaluated and kept for use, smoother than the weights that take the steps."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from deformable_detr.training.sharding import local_shard


def averaging_copy(model: nn.Module) -> nn.Module:
    """Copy of a network for its averaged weights, in evaluation mode and without gradients."""
    return deepcopy(model).eval().requires_grad_(False)


class EMA:
    """Exponential moving average of a network's weights, in a second network; it needs the memory of the weights again.

    Update t, counted from 1, moves the average by 1 - d towards the weights of the network, where d is the smaller of
    `decay` and (1 + t) / (10 + t). The average thus covers about the last ninth of the steps, however short the run,
    but never much more than 1 / (1 - decay) steps. Statistics of batch norm are averaged like weights; counters are
    copied.

    Args:
        model: network that is trained; it must stay on its device from now on.
        decay: largest decay, above 0 and below 1.
        copy: copy of the network from `averaging_copy`; needed if both have been sharded since.
    """

    def __init__(self, model: nn.Module, decay: float, copy: nn.Module | None = None) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy or averaging_copy(model)
        # Looked up once, because the networks keep the same tensors from the first step to the last.
        weights = model.state_dict()
        pairs = [(local_shard(own), local_shard(weights[name])) for name, own in self.model.state_dict().items()]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages: list[Tensor] = [own for own, _ in floating]
        self._weights: list[Tensor] = [weight for _, weight in floating]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for own, counter in self._counters:
            own.copy_(counter)

    @torch.no_grad()
    def begin(self) -> None:
        """Restart the average from the current weights."""
        self.updates = 0
        for own, weight in zip(self._averages, self._weights, strict=True):
            own.copy_(weight)
        for own, counter in self._counters:
            own.copy_(counter)
