"""Decoder of DINO: queries are boxes, with positions from the boxes and looking forward twice (arXiv 2203.03605)."""

from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.types import Memory, Predictions, Queries
from deformable_detr.models.layers.decoder import DecoderLayer, in_each_level, shifted
from deformable_detr.models.layers.feedforward import MLP, in_float32
from deformable_detr.models.layers.position import embed_boxes

REFERENCE_EPS = 1e-3
"""Distance from 0 and 1 that coordinates of references keep in logits: widths below a thousandth cannot be held."""


class BoxDecoder(nn.Module):
    """Decoder layers on boxes, with position embeddings from the boxes before every layer, and their heads.

    The boxes of a layer move on, without gradient, from the content as the layer leaves it; what is predicted comes
    from the normalised content, and from the boxes of the layer before with their gradient (section 3.4, look forward
    twice). So the loss of a layer reaches the box head at the layer before as well.

    Args:
        layers: decoder layers, applied in order; predictions are made after each.
        class_heads: one per layer, or a single one for all layers.
        box_heads: as many; they predict the shift of a box in logits.
        dim: channels of the queries.
        head_eps: distance from 0 and 1 that a box keeps in logits where it is predicted; where boxes move on, it is
            `REFERENCE_EPS`.
        per_image: embed boxes as shares of the image. As published they are shares of the finest padded map, so that
            predictions depend on the padding.
    """

    def __init__(
        self,
        layers: list[DecoderLayer],
        class_heads: list[nn.Linear],
        box_heads: list[MLP],
        *,
        dim: int,
        head_eps: float = REFERENCE_EPS,
        per_image: bool = False,
    ) -> None:
        super().__init__()
        assert len(class_heads) == len(box_heads)
        assert len(class_heads) in (1, len(layers))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        # Half of the features of an embedding for each of the four coordinates.
        self.embedding_dim = 2 * dim
        self.position_head = MLP(self.embedding_dim, dim, dim, num_layers=2)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.head_eps = head_eps
        self.per_image = per_image

    def forward(self, queries: Queries, memory: Memory) -> list[Predictions]:
        """Predictions of every layer, in order; the last are the final ones."""
        content, reference = queries.content, queries.reference
        before = reference  # with gradient
        predictions = []
        for index, layer in enumerate(self.layers):
            head = self._head_of(index)
            in_levels = in_each_level(reference, memory.valid_ratios)
            position = self.positions(reference if self.per_image else in_levels[:, :, 0])
            content = layer(content, position, in_levels, memory, queries.attention_mask)
            normalised = self.norm(content)
            boxes = shifted(before, in_float32(self.box_heads[head], normalised), eps=self.head_eps)
            predictions.append(Predictions(in_float32(self.class_heads[head], normalised), boxes))
            if index + 1 < len(self.layers):
                before = shifted(reference, in_float32(self.box_heads[head], content), eps=REFERENCE_EPS)
                reference = before.detach()
        return predictions

    def class_logits(
        self, index: int, content: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch queries classes"]:
        """Class logits from the content of the queries as the layer of this index leaves it."""
        return in_float32(self.class_heads[self._head_of(index)], self.norm(content))

    def positions(self, reference: Float[Tensor, "batch queries 4"]) -> Float[Tensor, "batch queries dim"]:
        """Position embedding of boxes cxcywh in 0..1."""
        in_their_order = reference[..., [1, 0, 2, 3]]  # published weights expect y before x
        embedded: Tensor = self.position_head(embed_boxes(in_their_order, self.embedding_dim))
        return embedded

    def _head_of(self, index: int) -> int:
        return index if len(self.box_heads) > 1 else 0
