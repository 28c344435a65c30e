"""Dense attention: every query looks at every key, with a softmax over the keys (arXiv 2005.12872, appendix A.1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class DenseAttention(nn.Module):
    """Multi-head attention of queries to keys, by PyTorch's `scaled_dot_product_attention`.

    The projections of queries, keys and values are one matrix, in this order, as in `torch.nn.MultiheadAttention`,
    whose parameters have the same names. They start Xavier uniform as one matrix, and biases at 0.

    Args:
        dim: channels of queries, keys and values.
        num_heads: attention heads, a divisor of `dim`.
        dropout: probability of dropout on the attention weights, in 0..1.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        assert dim % num_heads == 0
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "batch queries dim"],
        key: Float[Tensor, "batch keys dim"],
        value: Float[Tensor, "batch keys dim"],
        padding_mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Sum of the values for each query, weighted by how well their keys fit it.

        Args:
            query: queries, with their positions.
            key: keys, with their positions.
            value: values, one for each key.
            padding_mask: True = padding, which no query attends to; None if there is none. At least one key of each
                image must be free, which is not checked.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        queries, keys, values = (
            # (batch, heads, tokens, head_dim)
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        free = None if padding_mask is None else ~padding_mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=free, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        """Settings that printing the model shows."""
        return f"num_heads={self.num_heads}, dropout={self.dropout}"
