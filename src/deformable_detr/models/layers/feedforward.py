"""Feed-forward block of the transformer layers, and the MLP of the box heads."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.models.layers.dropout import Dropout


class FeedForward(nn.Module):
    """Feed-forward block: linear, ReLU, dropout, linear. The caller adds the residual connection and the norm."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Features of the tokens after the block; each token is processed on its own."""
        return self.linear2(self.dropout.after_relu(self.linear1(tokens)))


class MLP(nn.Module):
    """Multi-layer perceptron: linear layers with a ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, tokens: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes out"]:
        """Output of the last linear layer, without an activation."""
        for layer in self.layers[:-1]:
            tokens = layer(tokens).relu()
        return self.layers[-1](tokens)


def in_float32(module: nn.Module, inputs: Tensor) -> Tensor:
    """Output of `module` in float32, also where autocast is on.

    bfloat16 has eight significant bits: a box computed in it is wrong by up to 1/300 of the image. This is for the last
    layers before a box or a score, where float32 costs almost nothing.
    """
    if not torch.is_autocast_enabled(inputs.device.type):
        result: Tensor = module(inputs)
        return result
    with torch.autocast(inputs.device.type, enabled=False):
        return module(inputs.float())
