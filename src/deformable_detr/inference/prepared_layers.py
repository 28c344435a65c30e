"""Layers of a prepared network: constant weights, joined products, and nothing that only training needs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.boxes import cxcywh_to_xyxy
from deformable_detr.core.types import Predictions, Queries, SpatialShapes
from deformable_detr.inference.onednn import Activation, Linear, PackedProducts
from deformable_detr.models.layers.decoder import Decoder, DecoderLayer, shifted
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.encoder import EncoderLayer
from deformable_detr.models.layers.feedforward import MLP, FeedForward
from deformable_detr.models.layers.position import embed_boxes
from deformable_detr.models.layers.queries import (
    CANDIDATES_PER_QUERY,
    Anchors,
    LearnedQueries,
    ProposalQueries,
    distinct_first,
    pick,
)
from deformable_detr.ops import multi_scale_deformable_attention_from_projection

MakeLinear = Callable[..., Linear]
"""Function that makes a linear layer of a weight, a bias and perhaps an activation."""


def linear_maker(choice: PackedProducts, dtype: torch.dtype) -> MakeLinear:
    """Function that makes linear layers in this type, packed if that was chosen."""

    def make(weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Linear:
        cast = None if bias is None else bias.to(dtype)
        return Linear(weight.to(dtype), cast, activation=activation, packed=choice.linear)

    return make


class _LayerNorm(nn.Module):
    """Layer norm of constant scale and shift."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight, self.bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, self.shape, self.weight, self.bias, self.eps)


class PreparedAttention(nn.Module):
    """Deformable attention with offsets and weights joined to one product."""

    def __init__(self, attention: DeformableAttention, make: MakeLinear) -> None:
        super().__init__()
        self.num_heads, self.num_points = attention.num_heads, attention.num_points
        offsets, weights = attention.sampling_offsets, attention.attention_weights
        self.projection = make(torch.cat([offsets.weight, weights.weight]), torch.cat([offsets.bias, weights.bias]))
        self.value_proj = make(attention.value_proj.weight, attention.value_proj.bias)
        self.output_proj = make(attention.output_proj.weight, attention.output_proj.bias)

    def forward(
        self, query: Tensor, reference: Tensor, tokens: Tensor, spatial_shapes: SpatialShapes, residual: Tensor
    ) -> Tensor:
        """Attended features of each query, plus the residual; there is no padding."""
        sampled = multi_scale_deformable_attention_from_projection(
            self.value_proj(tokens).unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            reference,
            self.projection(query),
            num_points=self.num_points,
        )
        result: Tensor = self.output_proj(sampled.flatten(2), residual)
        return result


class PreparedFeedForward(nn.Module):
    """Feed-forward block with its residual connection."""

    def __init__(self, ffn: FeedForward, make: MakeLinear) -> None:
        super().__init__()
        self.linear1 = make(ffn.linear1.weight, ffn.linear1.bias, "relu")
        self.linear2 = make(ffn.linear2.weight, ffn.linear2.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Features of the tokens after the block, plus the tokens."""
        result: Tensor = self.linear2(self.linear1(tokens), tokens)
        return result


class PreparedEncoderLayer(nn.Module):
    """Encoder layer without padding and dropout."""

    def __init__(self, layer: EncoderLayer, make: MakeLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attention = PreparedAttention(layer.self_attention, make)
        self.norm_attention = _LayerNorm(layer.norm_attention, dtype)
        self.ffn = PreparedFeedForward(layer.ffn, make)
        self.norm_ffn = _LayerNorm(layer.norm_ffn, dtype)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
        """Tokens after this layer."""
        attended = self.self_attention(tokens + position, reference, tokens, spatial_shapes, tokens)
        result: Tensor = self.norm_ffn(self.ffn(self.norm_attention(attended)))
        return result


class _SelfAttention(nn.Module):
    """Self-attention among queries, plus the residual: queries and keys are one product."""

    def __init__(self, attention: nn.MultiheadAttention, make: MakeLinear) -> None:
        super().__init__()
        self.num_heads, dim = attention.num_heads, attention.embed_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        assert weight is not None
        assert bias is not None
        self.query_and_key = make(weight[: 2 * dim], bias[: 2 * dim])
        self.value = make(weight[2 * dim :], bias[2 * dim :])
        self.output_proj = make(attention.out_proj.weight, attention.out_proj.bias)

    def forward(self, query: Tensor, content: Tensor) -> Tensor:
        by_head = (self.num_heads, -1)
        queries, keys = self.query_and_key(query).chunk(2, dim=-1)
        heads = [one.unflatten(-1, by_head).transpose(1, 2) for one in (queries, keys, self.value(content))]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        result: Tensor = self.output_proj(attended, content)
        return result


class PreparedDecoderLayer(nn.Module):
    """Decoder layer without padding and dropout."""

    def __init__(self, layer: DecoderLayer, make: MakeLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attention = _SelfAttention(layer.self_attention, make)
        self.norm_self = _LayerNorm(layer.norm_self, dtype)
        self.cross_attention = PreparedAttention(layer.cross_attention, make)
        self.norm_cross = _LayerNorm(layer.norm_cross, dtype)
        self.ffn = PreparedFeedForward(layer.ffn, make)
        self.norm_ffn = _LayerNorm(layer.norm_ffn, dtype)

    def forward(
        self, content: Tensor, position: Tensor, reference: Tensor, tokens: Tensor, spatial_shapes: SpatialShapes
    ) -> Tensor:
        """Content of the queries after this layer."""
        content = self.norm_self(self.self_attention(content + position, content))
        content = self.norm_cross(self.cross_attention(content + position, reference, tokens, spatial_shapes, content))
        result: Tensor = self.norm_ffn(self.ffn(content))
        return result


class PreparedMLP(nn.Module):
    """Multi-layer perceptron with each ReLU in the product before it."""

    def __init__(self, mlp: MLP, make: MakeLinear) -> None:
        super().__init__()
        *first, last = mlp.layers
        inner = [make(layer.weight, layer.bias, "relu") for layer in first]
        self.layers = nn.Sequential(*inner, make(last.weight, last.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        """Output of the last linear layer, without an activation."""
        result: Tensor = self.layers(tokens)
        return result


class PreparedDecoder(nn.Module):
    """Decoder that predicts once, after its last layer."""

    def __init__(self, decoder: Decoder, make: MakeLinear, num_levels: int) -> None:
        super().__init__()
        layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self.layers = nn.ModuleList(PreparedDecoderLayer(layer, make, torch.float32) for layer in layers)
        class_head = decoder.class_heads[-1]
        assert isinstance(class_head, nn.Linear)
        self.class_head = make(class_head.weight, class_head.bias)
        self.box_heads = nn.ModuleList(PreparedMLP(head, make) for head in decoder.box_heads if isinstance(head, MLP))
        self.refine, self.num_levels = decoder.refine, num_levels

    def forward(self, queries: Queries, tokens: Tensor, spatial_shapes: SpatialShapes) -> Predictions:
        """Predictions of the last layer."""
        content, reference = queries.content, queries.reference
        assert queries.position is not None
        for index, layer in enumerate(self.layers):
            # Without padding the references are the same in every level.
            in_each_level = reference[:, :, None].expand(-1, -1, self.num_levels, -1)
            content = layer(content, queries.position, in_each_level, tokens, spatial_shapes)
            if self.refine:
                reference = shifted(reference, self.box_heads[index](content))
        boxes = reference if self.refine else shifted(reference, self.box_heads[0](content))
        return Predictions(self.class_head(content), boxes)


class PreparedLearnedQueries(nn.Module):
    """Learned queries, which are the same for every image."""

    def __init__(self, source: LearnedQueries) -> None:
        super().__init__()
        position, content = source.embedding.weight.detach().chunk(2, dim=-1)
        self.position, self.content = position[None].contiguous(), content[None].contiguous()
        with torch.no_grad():
            self.reference = source.reference_points(self.position).sigmoid()

    def forward(self, tokens: Float[Tensor, "batch positions dim"], anchors: Anchors) -> Queries:
        """Queries with reference points (x, y) in 0..1; anchors are not needed."""
        batch = len(tokens)
        content, position, reference = (
            one.expand(batch, -1, -1) for one in (self.content, self.position, self.reference)
        )
        return Queries(content, position, reference)


class PreparedProposalQueries(nn.Module):
    """Queries from proposals: scores of all positions, but boxes only of those that may become queries."""

    def __init__(self, source: ProposalQueries, make: MakeLinear) -> None:
        super().__init__()
        self.num_queries, self.choice = source.num_queries, source.choice
        self.embedded_dim = source.position_proj.in_features
        self.memory_proj = make(source.memory_proj.weight, source.memory_proj.bias)
        self.memory_norm = _LayerNorm(source.memory_norm, torch.float32)
        # Channel 0 alone ranks the proposals.
        self.score_weight, self.score_bias = source.class_head.weight[0].detach(), source.class_head.bias[0].detach()
        self.box_head = PreparedMLP(source.box_head, make)
        self.position_proj = make(source.position_proj.weight, source.position_proj.bias)
        self.position_norm = _LayerNorm(source.position_norm, torch.float32)

    def forward(self, tokens: Float[Tensor, "batch positions dim"], anchors: Anchors) -> Queries:
        """Queries with reference boxes cxcywh in 0..1.

        Args:
            tokens: encoded tokens of images without padding.
            anchors: those of one image of this size.
        """
        if self.choice == "paper":
            # Here invalid positions are ranked like all others, by what the network makes of zeros.
            tokens = tokens.masked_fill(~anchors.valid[..., None], 0.0)
        features = self.memory_norm(self.memory_proj(tokens))
        scores = (
            torch.mv(features.flatten(0, 1), self.score_weight).add_(self.score_bias).unflatten(0, tokens.shape[:2])
        )
        if self.choice != "paper":
            scores = scores.masked_fill(~anchors.valid, -torch.inf)
        reference, positions = self._best(features, scores, anchors)
        embedded = self.position_norm(self.position_proj(embed_boxes(reference, self.embedded_dim)))
        position, content = embedded.chunk(2, dim=-1)
        return Queries(content, position, reference, positions=positions)

    def _best(self, features: Tensor, scores: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Boxes of the proposals that become queries, and their positions."""
        kept = min(self.num_queries, scores.shape[1])
        most = kept if self.choice != "distinct" else min(CANDIDATES_PER_QUERY * kept, scores.shape[1])
        best = scores.topk(most, dim=1)
        logits = pick(anchors.logits.expand(len(scores), -1, -1), best.indices)
        boxes = (self.box_head(pick(features, best.indices)) + logits).sigmoid()
        if self.choice != "distinct":
            return boxes, best.indices
        orders = [
            distinct_first(xyxy, score)[:kept] for xyxy, score in zip(cxcywh_to_xyxy(boxes), best.values, strict=True)
        ]
        order = torch.stack(orders)
        return pick(boxes, order), best.indices.gather(1, order)
