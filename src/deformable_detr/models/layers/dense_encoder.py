"""Encoder of DETR: dense self-attention over all positions of one map (arXiv 2005.12872, section 3.2 and A.3)."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.types import Memory
from deformable_detr.models.layers.dense_attention import DenseAttention
from deformable_detr.models.layers.dropout import Dropout
from deformable_detr.models.layers.feedforward import FeedForward


class DenseEncoderLayer(nn.Module):
    """Encoder layer: dense self-attention, then the feed-forward block, each with dropout and a residual connection.

    Args:
        dim: channels of the tokens.
        num_heads: attention heads.
        ffn_dim: channels between the two linear layers of the feed-forward block.
        dropout: probability of dropout, in 0..1, also on the attention weights.
        pre_norm: layer norm comes before each of the two blocks instead of after its residual connection.
    """

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attention = DenseAttention(dim, num_heads=num_heads, dropout=dropout)
        self.norm_attention = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm_ffn = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch positions dim"],
        position: Float[Tensor, "batch positions dim"],
        padding_mask: Bool[Tensor, "batch positions"],
    ) -> Float[Tensor, "batch positions dim"]:
        """Tokens after this layer.

        Args:
            tokens: features of each position.
            position: embedding of the positions, added to queries and keys and never to values.
            padding_mask: True = padding.
        """
        if self.pre_norm:
            tokens = tokens + self.dropout(self._attended(self.norm_attention(tokens), position, padding_mask))
            return tokens + self.dropout(self.ffn(self.norm_ffn(tokens)))
        tokens = self.norm_attention(tokens + self.dropout(self._attended(tokens, position, padding_mask)))
        return self.norm_ffn(tokens + self.dropout(self.ffn(tokens)))

    def _attended(self, tokens: Tensor, position: Tensor, padding_mask: Tensor) -> Tensor:
        query = tokens + position
        return self.self_attention(query, query, tokens, padding_mask)


class DenseEncoder(nn.Module):
    """Encoder layers in order, and with `pre_norm` a layer norm after the last.

    Args:
        layers: encoder layers.
        dim: channels of the tokens.
        pre_norm: whether the layers have their norms before their blocks.
    """

    def __init__(self, layers: list[DenseEncoderLayer], dim: int, *, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim) if pre_norm else None

    def forward(self, memory: Memory) -> Memory:
        """Memory with encoded tokens; everything else in it stays."""
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.position, memory.padding_mask)
        return memory._replace(tokens=tokens if self.norm is None else self.norm(tokens))
