"""DINO (arXiv 2203.03605): two-stage Deformable DETR with mixed queries, looking forward twice, and denoising."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import DetectorOutput, Target
from deformable_detr.models.interface import ClassRows
from deformable_detr.models.layers.box_decoder import REFERENCE_EPS, BoxDecoder
from deformable_detr.models.layers.branches import output_of_branches
from deformable_detr.models.layers.decoder import DecoderLayer
from deformable_detr.models.layers.denoising import Denoising
from deformable_detr.models.layers.encoder import Encoder, EncoderLayer
from deformable_detr.models.layers.feedforward import MLP
from deformable_detr.models.layers.initialisation import initialise_dino
from deformable_detr.models.layers.pyramid import Pyramid
from deformable_detr.models.layers.queries import MixedQueries, TrainingBranches
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.models.settings import (
    BackboneSettings,
    check_attention,
    check_backbone,
    check_branches,
    check_counts,
    check_groups_of_norms,
    check_noise,
)

_LONGEST_WAVE = 1e6


@dataclass(frozen=True, kw_only=True)
class DINOConfig(BackboneSettings):
    """Settings of DINO. The defaults are those of the published model with four levels, for COCO's 91 category ids.

    Raises:
        ConfigError: a setting is out of range, or two settings exclude each other.
    """

    num_classes: int = 91
    """Number of classes, which is the number of channels of the class heads, 1..100,000. There is no background
    class."""
    backbone: str = "resnet50.tv_in1k"
    """Backbone: timm's own name of any convolutional network; no address, no folder. The default has the ImageNet
    weights of the published models."""
    backbone_weights: str = "hub"
    """Initial weights of the backbone: "hub" for those of timm, the path of a .safetensors or .pth file, or "none" for
    random weights."""
    frozen_stages: int = 2
    """Number of backbone stages that are not trained, counted from the image; 0..48. The published 2 are the stem and
    layer1 of a ResNet."""
    frozen_batch_norm: bool = True
    """Keep statistics, scale and shift of the backbone's batch norm, as the published code does. A backbone with random
    weights needs False."""
    dilation: bool = False
    """Dilated last stage of the backbone, at stride 16 instead of 32 (DC5)."""
    num_levels: int = 4
    """Number of levels of the feature pyramid, 1..8. With 1 to 3 they are the coarsest maps of the backbone. The fourth
    is a strided convolution of the coarsest map; with 5, the finest of the levels is the backbone's map of stride 4.
    Further levels are strided convolutions."""
    features: Literal["padded", "per_image"] = "padded"
    """Input of backbone and projections, and of the embedding of boxes. "padded", as published, is the padded batch:
    detections in an image then depend a little on the padding, and so on the other images. "per_image" is each image
    without its padding."""
    position_temperature: float = 20.0
    """Temperature of the sine embedding of positions in the image, above 0: 20 as published by the authors, 10,000 as
    in Deformable DETR."""
    position_offset: float = 0.0
    """Shift of positions in that embedding: 0 as published by the authors; -0.5, for centres of pixels, as in
    Deformable DETR."""
    hidden_dim: int = 256
    """Channels of every level, token and query; a multiple of 32 and of `num_heads`, at most 2048."""
    num_heads: int = 8
    """Attention heads of every attention module; 1..64, a divisor of `hidden_dim`."""
    encoder_layers: int = 6
    """Number of encoder layers, 0..48."""
    decoder_layers: int = 6
    """Number of decoder layers, 1..48."""
    encoder_points: int = 4
    """Sampling points of each query per head and level in the encoder, 1..32."""
    decoder_points: int = 4
    """Sampling points of each query per head and level in the decoder, 1..32."""
    ffn_dim: int = 2048
    """Channels between the two linear layers of every feed-forward block, 1..16,384."""
    dropout: float = 0.0
    """Dropout probability in the encoder and the decoder, in 0..1, 1 excluded."""
    num_queries: int = 900
    """Number of decoder queries, 1..20,000: the number of proposals that are kept, and the largest number of objects
    that can be found in one image."""
    heads: Literal["shared", "separate"] = "shared"
    """Class heads and box heads of the decoder: "shared" by all layers, as in the authors' code, or "separate" ones for
    every layer, as in detrex and OpenMMLab. The proposals have their own either way."""
    head_eps: float = REFERENCE_EPS
    """Distance from 0 and 1 that boxes keep in logits where they are predicted, above 0 and below 0.5; 0.00001 in
    OpenMMLab. References keep 0.001."""
    proposals: Literal["paper", "valid", "distinct"] = "valid"
    """Choice of proposals. "valid" takes proposals in the padding and at the border only if there are no others.
    "paper" ranks them like all others, with the box (1, 1, 1, 1), as published code does. "distinct" is "valid", and
    prefers the best of several proposals with nearly the same box."""
    hybrid_queries: int = 0
    """Number of additional queries in training that are matched several to one (H-DETR), 0..20,000, all queries
    together; its authors have 1500. Prediction is not changed."""
    hybrid_repeats: int = 6
    """Number of hybrid queries that each object is matched to, 2..100."""
    query_groups: int = 1
    """Number of groups of `num_queries` queries in training (Group DETR), 1..50; its authors have 11. Prediction uses
    the first group and is not changed."""
    denoising_queries: int = 100
    """Positive copies of objects in contrastive denoising, for one image in training; 0..20,000, 0 is without
    denoising. Each has a negative copy beside it."""
    box_noise: float = 1.0
    """Noise of the boxes in denoising: largest shift of an edge, in halves of a box's width or height; 0..10. Edges of
    negative copies move by once to twice as much."""
    label_noise: float = 0.5
    """Noise of the labels in denoising: twice the probability that a label is drawn anew from all classes; 0..2."""

    def __post_init__(self) -> None:
        """Refuse settings out of range, and settings that exclude each other."""
        check_counts(self)
        check_groups_of_norms(self.hidden_dim)
        check_attention(self.hidden_dim, self.num_heads, self.dropout)
        check_backbone(self)
        check_noise(self)
        check_branches(self)
        if not 0 < self.position_temperature <= _LONGEST_WAVE:
            raise ConfigError(
                f"position_temperature is {self.position_temperature}; it must be above 0, at most {_LONGEST_WAVE:g}"
            )
        if not -1 <= self.position_offset <= 0:
            raise ConfigError(f"position_offset is {self.position_offset}; it must be in -1..0")
        if not 0 < self.head_eps < 0.5:
            raise ConfigError(f"head_eps is {self.head_eps}; it must be above 0 and below 0.5")

    @property
    def free_settings(self) -> frozenset[str]:
        """Settings on which no weight tensor depends, but for tensors that training alone needs."""
        training = ("hybrid_queries", "hybrid_repeats", "query_groups", "denoising_queries", "box_noise", "label_noise")
        return frozenset(("dropout", "frozen_stages", "features", "proposals", *training))

    @property
    def num_maps(self) -> int:
        """Number of feature maps of the backbone that become levels: three, or four with five levels and more."""
        return 4 if self.num_levels > 4 else min(self.num_levels, 3)

    def describe(self) -> str:
        """Description in words: levels, queries and backbone."""
        return (
            f"DINO of {self.num_levels} levels and {self.num_queries} queries, backbone {self.backbone} "
            f"(weights: {self.backbone_weights})"
        )


class DINO(nn.Module):
    """DINO network (arXiv 2203.03605), from images to predictions.

    Args:
        pyramid: backbone and projections: images to the levels.
        encoder: self-attention over all levels.
        query_source: queries at the encoder's best proposals, with learned content.
        decoder: queries to predictions, with the class heads and box heads.
        denoising: maker of noisy copies of the objects, which training learns from as well; None is without.
    """

    parts: Mapping[str, tuple[str, ...]] = {
        "heads": (
            *("decoder.class_heads.", "decoder.box_heads.", "query_source.class_head.", "query_source.box_head."),
            *("query_source.group_class_heads.", "query_source.group_box_heads."),
        ),
        "backbone": ("pyramid.backbone.",),
        "projections": ("pyramid.projections.", "pyramid.level_embed"),
        "encoder": ("encoder.",),
        "queries": ("query_source.", "denoising."),
        "decoder": ("decoder.",),
    }
    """Named parts, for freezing and learning rates: part name to the beginnings of its parameters' names."""
    offsets = ("sampling_offsets",)
    """Words in names of parameters with the learning rate of sampling offsets; the authors give them no other."""
    class_rows = ClassRows(
        by_class=(
            *("decoder.class_heads.", "query_source.class_head.", "query_source.group_class_heads."),
            "denoising.label_embed.",
        )
    )
    """Weight tensors with one row per class, for fine-tuning."""
    training_tensors = ("denoising.", "query_source.training_embedding.", "query_source.group_")
    """Beginnings of the names of tensors that training alone needs; weights to start from may lack them, or have them
    in vain."""

    def __init__(
        self,
        pyramid: Pyramid,
        encoder: Encoder,
        query_source: MixedQueries,
        decoder: BoxDecoder,
        denoising: Denoising | None,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.encoder = encoder
        self.query_source = query_source
        self.decoder = decoder
        self.denoising = denoising

    @property
    def num_classes(self) -> int:
        """Number of classes: channels of the class heads."""
        return self.query_source.class_head.out_features

    @property
    def num_queries(self) -> int:
        """Number of queries, the most objects that can be found in an image."""
        return self.query_source.num_queries

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        padding_mask: Bool[Tensor, "batch height width"],
        targets: list[Target] | None = None,
    ) -> DetectorOutput:
        """Predictions of every decoder layer, of the proposals that became queries, and in training of noisy copies.

        Args:
            images: normalised images, padded at the right and at the bottom.
            padding_mask: True = padding.
            targets: ground truth, which denoising uses in training; nothing else does.
        """
        memory = self.encoder(self.pyramid(images, padding_mask))
        queries, proposals = self.query_source(memory)
        if self.denoising is None or targets is None or not self.training:
            return output_of_branches(self.decoder(queries, memory), proposals, queries.branches)
        noisy = self.denoising(targets, queries, self.query_source)
        return noisy.output(self.decoder(noisy.queries, memory), proposals)

    def layers(self) -> list[nn.Module]:
        """Layers of the encoder, then of the decoder."""
        return [*self.encoder.layers, *self.decoder.layers]

    def gathered_together(self) -> list[nn.Module]:
        """Modules that are sharded as units: backbone stages, the pyramid, and every layer of encoder and decoder."""
        return [*self.pyramid.gathered_together(), *self.layers()]

    def make_criterion(self, settings: CriterionConfig) -> Criterion:
        """Criterion for training: the set loss over all decoder layers and the proposals, and the loss of denoising."""
        return Criterion(settings, proposals="class", class_weight=1.0)


def build(config: DINOConfig, *, load_backbone_weights: bool = True) -> DINO:
    """Network for these settings, initialised as in the authors' code.

    Random weights are drawn from PyTorch's global random generator.

    Args:
        config: settings of the network.
        load_backbone_weights: False where a checkpoint brings all weights afterwards.

    Raises:
        ConfigError: the backbone does not exist or does not fit the other settings.
        CheckpointError: the backbone's weights cannot be downloaded or read, or do not fit.
    """
    # Images to levels.
    backbone = config.build_backbone(config.num_maps, load_weights=load_backbone_weights)
    dim = config.hidden_dim
    pyramid = Pyramid(
        backbone,
        num_levels=config.num_levels,
        dim=dim,
        per_image=config.features == "per_image",
        temperature=config.position_temperature,
        offset=config.position_offset,
    )
    layer = {
        "num_heads": config.num_heads,
        "num_levels": config.num_levels,
        "ffn_dim": config.ffn_dim,
    }
    # Levels to tokens, tokens to queries, queries to predictions.
    encoder = Encoder(
        [
            EncoderLayer(dim, num_points=config.encoder_points, dropout=config.dropout, **layer)
            for _ in range(config.encoder_layers)
        ]
    )
    added = TrainingBranches(config.hybrid_queries, config.hybrid_repeats, config.query_groups)
    query_source = MixedQueries(config.num_queries, dim, config.num_classes, choice=config.proposals, added=added)
    num_heads = config.decoder_layers if config.heads == "separate" else 1
    decoder = BoxDecoder(
        [
            DecoderLayer(dim, num_points=config.decoder_points, dropout=config.dropout, **layer)
            for _ in range(config.decoder_layers)
        ],
        [nn.Linear(dim, config.num_classes) for _ in range(num_heads)],
        [MLP(dim, dim, 4, num_layers=3) for _ in range(num_heads)],
        dim=dim,
        head_eps=config.head_eps,
        per_image=config.features == "per_image",
    )
    initialise_dino(pyramid, encoder, query_source, decoder)
    # Training alone: noisy copies of the objects.
    denoising = None
    if config.denoising_queries:
        denoising = Denoising(
            config.denoising_queries,
            dim,
            config.num_classes,
            box_noise=config.box_noise,
            label_noise=config.label_noise,
        )
    return DINO(pyramid, encoder, query_source, decoder, denoising)
