"""Averaged weights (EMA) of the network: evaluated and kept for use, smoother than the weights that take the steps."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from deformable_detr.training.sharding import local_shard


def averaging_copy(model: nn.Module) -> nn.Module:
    """A copy for averaged weights: it learns nothing by itself."""
    return deepcopy(model).eval().requires_grad_(False)


class EMA:
    """Exponential moving average of a network's weights, in a network of its own: as much memory as the weights again.

    After update t, from 1, the average is moved by 1 - d towards the model's weights, where d is the smaller of `decay`
    and (1 + t) / (10 + t). So it reaches back over about a ninth of the steps taken, however short the run, and never
    over more than about 1 / (1 - decay). Statistics of batch norm are averaged like weights; counters are copied.

    Args:
        model: what is trained; it must stay on its device from now on.
        decay: above 0, below 1.
        copy: what `averaging_copy` made of the model; needed where both are sharded since.
    """

    def __init__(self, model: nn.Module, decay: float, copy: nn.Module | None = None) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy or averaging_copy(model)
        # Looked up once: both lists hold the same tensors from the first step to the last.
        weights = model.state_dict()
        pairs = [(local_shard(own), local_shard(weights[name])) for name, own in self.model.state_dict().items()]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages: list[Tensor] = [own for own, _ in floating]
        self._weights: list[Tensor] = [weight for _, weight in floating]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for own, counter in self._counters:
            own.copy_(counter)

    @torch.no_grad()
    def begin(self) -> None:
        """Start anew from the model's weights as they are."""
        self.updates = 0
        for own, weight in zip(self._averages, self._weights, strict=True):
            own.copy_(weight)
        for own, counter in self._counters:
            own.copy_(counter)
