"""DETR (arXiv 2005.12872): set prediction with dense attention over one map, the ancestor of Deformable DETR."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import ClassScores, DetectorOutput, Target
from deformable_detr.models.interface import ClassRows
from deformable_detr.models.layers.coarsest_map import CoarsestMap, LearnedPosition, SinePosition
from deformable_detr.models.layers.dense_decoder import DenseDecoder, DenseDecoderLayer
from deformable_detr.models.layers.dense_encoder import DenseEncoder, DenseEncoderLayer
from deformable_detr.models.layers.feedforward import MLP
from deformable_detr.models.layers.initialisation import initialise_dense
from deformable_detr.models.losses import CriterionConfig, SoftmaxCriterion
from deformable_detr.models.settings import BackboneSettings, check_attention, check_backbone, check_counts


@dataclass(frozen=True, kw_only=True)
class DETRConfig(BackboneSettings):
    """Settings of the network. The defaults are the paper's model with ResNet-50 for COCO's 91 category ids.

    Raises:
        ConfigError: a setting is out of range, or two settings exclude each other.
    """

    num_classes: int = 91
    """Number of classes, 1..100,000. The class head has one channel more, the last, for "no object"."""
    backbone: str = "resnet50.tv_in1k"
    """Backbone: timm's own name of any convolutional network; no address, no folder. The default has the paper's
    ImageNet weights."""
    backbone_weights: str = "hub"
    """Initial weights of the backbone: "hub" for those of timm, the path of a .safetensors or .pth file, or "none" for
    random weights."""
    frozen_stages: int = 2
    """Number of backbone stages that are not trained, counted from the image; 0..48. The official code's 2 are the
    stem and layer1 of a ResNet."""
    frozen_batch_norm: bool = True
    """Keep statistics, scale and shift of the backbone's batch norm, as the official code does. A backbone with random
    weights needs False."""
    dilation: bool = False
    """Dilated last stage of the backbone, at stride 16 instead of 32 (DC5): four times as many tokens."""
    position: Literal["sine", "learned"] = "sine"
    """Embedding of the positions: "sine", or "learned", which is for maps of at most 50 x 50 tokens (table 3)."""
    hidden_dim: int = 256
    """Channels of every token and query; a multiple of 4 and of `num_heads`, at most 2048."""
    num_heads: int = 8
    """Attention heads of every attention module; 1..64, a divisor of `hidden_dim`."""
    encoder_layers: int = 6
    """Number of encoder layers, 0..48."""
    decoder_layers: int = 6
    """Number of decoder layers, 1..48."""
    ffn_dim: int = 2048
    """Channels between the two linear layers of every feed-forward block, 1..16,384."""
    pre_norm: bool = False
    """Layer norm before every block instead of after it, and one more after the encoder."""
    dropout: float = 0.1
    """Dropout probability in the encoder and the decoder, also on attention weights; in 0..1, 1 excluded."""
    num_queries: int = 100
    """Number of decoder queries, 1..20,000: the largest number of objects that can be found in one image."""
    auxiliary_losses: bool = True
    """Learn from the predictions of every decoder layer, as in the paper, and not of the last alone. The final
    predictions do not depend on it."""

    def __post_init__(self) -> None:
        """Refuse settings out of range, and settings that exclude each other."""
        check_counts(self)
        if self.hidden_dim % 4:
            raise ConfigError(f"hidden_dim is {self.hidden_dim}; it must be a multiple of 4 (sine and cosine of x, y)")
        check_attention(self.hidden_dim, self.num_heads, self.dropout)
        check_backbone(self)

    @property
    def free_settings(self) -> frozenset[str]:
        """Settings on which no weight tensor depends."""
        return frozenset(("dropout", "frozen_stages", "auxiliary_losses"))

    def describe(self) -> str:
        """Description in words: the model, and its backbone."""
        return f"DETR{'-DC5' * self.dilation}, backbone {self.backbone} (weights: {self.backbone_weights})"


class DETR(nn.Module):
    """DETR network (arXiv 2005.12872), from images to predictions.

    Args:
        features: backbone, projection and positions: images to the tokens of one map.
        encoder: self-attention over all tokens.
        queries: learned position of each query.
        decoder: queries to predictions, with the class head and the box head.
    """

    parts: Mapping[str, tuple[str, ...]] = {
        "heads": ("decoder.class_head.", "decoder.box_head."),
        "backbone": ("features.backbone.",),
        "projections": ("features.projection.", "features.position."),
        "encoder": ("encoder.",),
        "queries": ("queries.",),
        "decoder": ("decoder.",),
    }
    """Named parts, for freezing and learning rates: part name to the beginnings of its parameters' names."""
    offsets = ()
    """Words in names of parameters with the learning rate of sampling offsets: there are none."""
    class_rows = ClassRows(by_class=("decoder.class_head.",))
    """Weight tensors with one row per class, and a last one for "no object"."""
    class_scores: ClassScores = "softmax"
    """Way from logits to class scores: a softmax over all classes and "no object"."""

    def __init__(
        self, features: CoarsestMap, encoder: DenseEncoder, queries: nn.Embedding, decoder: DenseDecoder
    ) -> None:
        super().__init__()
        self.features = features
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder

    @property
    def num_classes(self) -> int:
        """Number of classes: channels of the class head but the last, which is "no object"."""
        return self.decoder.class_head.out_features - 1

    @property
    def num_queries(self) -> int:
        """Number of queries, the most objects that can be found in an image."""
        return self.queries.num_embeddings

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        padding_mask: Bool[Tensor, "batch height width"],
        targets: list[Target] | None = None,
    ) -> DetectorOutput:
        """Predictions of every decoder layer, or of the last alone without auxiliary losses.

        Args:
            images: normalised images, padded at the right and at the bottom.
            padding_mask: True = padding.
            targets: not used; other networks learn from noisy copies of them.
        """
        memory = self.encoder(self.features(images, padding_mask))
        return DetectorOutput(self.decoder(self.queries.weight, memory), None)

    def layers(self) -> list[nn.Module]:
        """Layers of the encoder, then of the decoder."""
        return [*self.encoder.layers, *self.decoder.layers]

    def gathered_together(self) -> list[nn.Module]:
        """Modules that are sharded as units: backbone stages, the map, and every layer of encoder and decoder."""
        return [*self.features.gathered_together(), *self.layers()]

    def make_criterion(self, settings: CriterionConfig) -> SoftmaxCriterion:
        """Criterion for training: the paper's set loss over the predictions of all decoder layers."""
        return SoftmaxCriterion(settings, self.num_queries)


def build(config: DETRConfig, *, load_backbone_weights: bool = True) -> DETR:
    """Network for these settings, initialised as in the official code.

    Random weights are drawn from PyTorch's global random generator.

    Args:
        config: settings of the network.
        load_backbone_weights: False where a checkpoint brings all weights afterwards.

    Raises:
        ConfigError: the backbone does not exist or does not fit the other settings.
        CheckpointError: the backbone's weights cannot be downloaded or read, or do not fit.
    """
    backbone = config.build_backbone(1, load_weights=load_backbone_weights)
    dim = config.hidden_dim
    features = CoarsestMap(backbone, dim, SinePosition(dim) if config.position == "sine" else LearnedPosition(dim))
    encoder_layer = partial(
        DenseEncoderLayer,
        dim,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
    )
    encoder = DenseEncoder([encoder_layer() for _ in range(config.encoder_layers)], dim, pre_norm=config.pre_norm)
    decoder_layer = partial(
        DenseDecoderLayer,
        dim,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
    )
    decoder = DenseDecoder(
        [decoder_layer() for _ in range(config.decoder_layers)],
        dim,
        nn.Linear(dim, config.num_classes + 1),
        MLP(dim, dim, 4, num_layers=3),
        auxiliary=config.auxiliary_losses,
    )
    initialise_dense(encoder, decoder)
    return DETR(features, encoder, nn.Embedding(config.num_queries, dim), decoder)
