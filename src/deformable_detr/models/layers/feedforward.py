"""Small dense networks: the transformer's feed-forward block and the box head's MLP."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.models.layers.dropout import Dropout


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, linear; the caller adds the residual and the norm."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Each token on its own."""
        return self.linear2(self.dropout.after_relu(self.linear1(tokens)))


class MLP(nn.Module):
    """Linear layers with a ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, tokens: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes out"]:
        """The last layer has no activation."""
        for layer in self.layers[:-1]:
            tokens = layer(tokens).relu()
        return self.layers[-1](tokens)


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
