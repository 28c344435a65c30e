"""Decoder of DETR: learned queries to predictions, through dense attention (arXiv 2005.12872, section 3.2 and A.3)."""

from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.types import Memory, Predictions
from deformable_detr.models.layers.dense_attention import DenseAttention
from deformable_detr.models.layers.dropout import Dropout
from deformable_detr.models.layers.feedforward import MLP, FeedForward, in_float32


class DenseDecoderLayer(nn.Module):
    """Decoder layer: self-attention among queries, dense cross-attention to the memory, feed-forward block.

    Each of the three has dropout and a residual connection.

    Args:
        dim: channels of the queries and of the memory.
        num_heads: attention heads of both attentions.
        ffn_dim: channels between the two linear layers of the feed-forward block.
        dropout: probability of dropout, in 0..1, also on the attention weights.
        pre_norm: layer norm comes before each of the three blocks instead of after its residual connection.
    """

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attention = DenseAttention(dim, num_heads=num_heads, dropout=dropout)
        self.norm_self = nn.LayerNorm(dim)
        self.cross_attention = DenseAttention(dim, num_heads=num_heads, dropout=dropout)
        self.norm_cross = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm_ffn = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        content: Float[Tensor, "batch queries dim"],
        position: Float[Tensor, "batch queries dim"],
        memory: Memory,
    ) -> Float[Tensor, "batch queries dim"]:
        """Content of the queries after this layer.

        Args:
            content: content of the queries.
            position: position of the queries, added wherever they attend, never to values.
            memory: encoded tokens of the image; their positions are added to the keys of the cross-attention.
        """
        if self.pre_norm:
            content = content + self.dropout(self._among(self.norm_self(content), position))
            content = content + self.dropout(self._across(self.norm_cross(content), position, memory))
            return content + self.dropout(self.ffn(self.norm_ffn(content)))
        content = self.norm_self(content + self.dropout(self._among(content, position)))
        content = self.norm_cross(content + self.dropout(self._across(content, position, memory)))
        return self.norm_ffn(content + self.dropout(self.ffn(content)))

    def _among(self, content: Tensor, position: Tensor) -> Tensor:
        query = content + position
        return self.self_attention(query, query, content)

    def _across(self, content: Tensor, position: Tensor, memory: Memory) -> Tensor:
        key = memory.tokens + memory.position
        return self.cross_attention(content + position, key, memory.tokens, memory.padding_mask)


class DenseDecoder(nn.Module):
    """Decoder layers, the norm that all of them share, and one class head and one box head for all of them.

    The norm comes before the heads alone: the next layer goes on with what has not been normalised.

    Args:
        layers: decoder layers, applied in order.
        dim: channels of the queries.
        class_head: features to logits: the classes, and as the last row "no object".
        box_head: features to boxes cxcywh before the sigmoid.
        auxiliary: whether there are predictions after every layer, to learn from; else after the last alone.
    """

    def __init__(
        self, layers: list[DenseDecoderLayer], dim: int, class_head: nn.Linear, box_head: MLP, *, auxiliary: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self.class_head = class_head
        self.box_head = box_head
        self.auxiliary = auxiliary

    def forward(self, position: Float[Tensor, "queries dim"], memory: Memory) -> list[Predictions]:
        """Predictions of every layer, or of the last alone; the last are the final ones.

        Args:
            position: learned position of each query, the same for every image. Their content starts at 0.
            memory: encoded tokens of the images.
        """
        position = position.expand(len(memory.tokens), -1, -1)
        content = position.new_zeros(position.shape)
        predictions = []
        for number, layer in enumerate(self.layers, start=1):
            content = layer(content, position, memory)
            if self.auxiliary or number == len(self.layers):
                features = self.norm(content)
                boxes = in_float32(self.box_head, features).sigmoid()
                predictions.append(Predictions(in_float32(self.class_head, features), boxes))
        return predictions
