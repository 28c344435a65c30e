"""Deformable DETR (arXiv 2010.04159): base, with iterative box refinement, and two-stage."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import DetectorOutput, Target
from deformable_detr.models.interface import ClassRows
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.layers.decoder import Decoder, DecoderLayer
from deformable_detr.models.layers.encoder import Encoder, EncoderLayer
from deformable_detr.models.layers.feedforward import MLP
from deformable_detr.models.layers.initialisation import initialise
from deformable_detr.models.layers.pyramid import Pyramid
from deformable_detr.models.layers.queries import LearnedQueries, ProposalQueries, QuerySource
from deformable_detr.models.losses import Criterion, CriterionConfig

# The backbone gives maps of strides 8, 16 and 32 at most; further levels are strided convolutions of the last.
_MAX_BACKBONE_MAPS = 3


@dataclass(frozen=True, kw_only=True)
class DeformableDETRConfig:
    """Everything that shapes the network; the defaults are the paper's base model on COCO's 91 category ids.

    Raises:
        ConfigError: a setting out of range, or two that cannot go together.
    """

    num_classes: int = 91
    """Channels of the class heads; there is no background class."""
    variant: Literal["base", "refine", "two_stage"] = "base"
    """"refine": every decoder layer corrects the boxes of the one before. "two_stage": queries are the encoder's own
    best proposals, and refinement too."""
    backbone: str = "resnet50.tv_in1k"
    """Any convolutional network of timm, by timm's name. The paper's is this; plain "resnet50" brings other weights."""
    backbone_weights: str = "hub"
    """What the backbone starts from: "hub" (timm's own), a .safetensors or .pth file, or "none"."""
    frozen_stages: int = 2
    """Stages of the backbone, from the image up, that keep their weights; 2 is the paper's stem and layer1."""
    frozen_batch_norm: bool = True
    """Keep the backbone's batch norm as it is, as in the paper. A backbone that starts from nothing needs False."""
    dilation: bool = False
    """Keep the backbone's last stage at stride 16 (DC5)."""
    num_levels: int = 4
    """Up to 3: that many of the backbone's coarsest maps. More: strided convolutions of the last."""
    features: Literal["padded", "per_image"] = "padded"
    """"padded" is the paper's: backbone and projections see the padded batch, and what is found in an image depends
    a little on the padding its neighbours cause. "per_image" runs them on each image without padding."""
    hidden_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_points: int = 4
    decoder_points: int = 4
    ffn_dim: int = 1024
    dropout: float = 0.1
    num_queries: int = 300
    """Objects that can be found in one image at most, and proposals kept in two-stage."""
    proposals: Literal["paper", "valid", "distinct"] = "paper"
    """Two-stage only. "paper" lets proposals in the padding and at the border compete with the box (1, 1, 1, 1), as
    the official code does; "valid" never picks them while there are others; "distinct" neither, and of proposals for
    nearly the same box it picks the best."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        counts = ("num_classes", "num_levels", "hidden_dim", "num_heads", "decoder_layers", "encoder_points")
        for name in (*counts, "decoder_points", "ffn_dim", "num_queries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("encoder_layers", "frozen_stages"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be in 0..1, 1 excluded")
        if self.hidden_dim % 32:
            raise ConfigError(f"hidden_dim is {self.hidden_dim}; it must be a multiple of 32 (groups of the norms)")
        if self.hidden_dim % self.num_heads:
            raise ConfigError(f"hidden_dim {self.hidden_dim} cannot be split over num_heads {self.num_heads}")
        if self.proposals != "paper" and self.variant != "two_stage":
            raise ConfigError(
                f"proposals={self.proposals!r} has no meaning for variant {self.variant!r}; it needs 'two_stage', "
                "or set proposals=paper"
            )
        if not self.backbone or not self.backbone_weights:
            raise ConfigError("backbone and backbone_weights cannot be empty; say backbone_weights='none' for random")
        if self.backbone_weights == "none" and self.frozen_stages:
            raise ConfigError(
                f"frozen_stages is {self.frozen_stages}, but backbone_weights is 'none': stages that start from "
                "nothing cannot stay frozen; set frozen_stages=0 or give weights"
            )
        if self.backbone_weights == "none" and self.frozen_batch_norm:
            raise ConfigError(
                "frozen_batch_norm is true, but backbone_weights is 'none': batch norm that has seen nothing cannot "
                "stay frozen; set frozen_batch_norm=false or give weights"
            )

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """Parts that start from learnt weights of their own: the backbone, unless it starts from random ones."""
        return ("backbone",) if self.backbone_weights != "none" else ()

    @property
    def free_settings(self) -> frozenset[str]:
        """Settings on which no tensor depends; with proposals the number of queries is one."""
        more = ("num_queries",) if self.variant == "two_stage" else ()
        return frozenset(("dropout", "frozen_stages", "features", "proposals", *more))

    @property
    def downloads(self) -> str:
        """The backbone's weights, if they come from timm's hub."""
        return f"weights of {self.backbone}" if self.backbone_weights == "hub" else ""

    def describe(self) -> str:
        """Variant and backbone."""
        return f"{self.variant}, backbone {self.backbone} (weights: {self.backbone_weights})"

    def with_classes(self, num_classes: int) -> "DeformableDETRConfig":
        """Settings for another number of classes."""
        return replace(self, num_classes=num_classes)

    def portable(self) -> "DeformableDETRConfig":
        """Settings without the path to a file of backbone weights."""
        return replace(self, backbone_weights=Path(self.backbone_weights).name)


class DeformableDETR(nn.Module):
    """Images to predictions. The variants differ in their parts, not in the path."""

    parts: Mapping[str, tuple[str, ...]] = {
        "heads": ("decoder.class_heads.", "decoder.box_heads.", "query_source.class_head.", "query_source.box_head."),
        "backbone": ("pyramid.backbone.",),
        "projections": ("pyramid.projections.", "pyramid.level_embed"),
        "encoder": ("encoder.",),
        "queries": ("query_source.",),
        "decoder": ("decoder.layers.",),
    }
    offsets = ("sampling_offsets", "reference_points")
    # Proposals are told from background by channel 0 alone, whatever the classes are.
    class_rows = ClassRows(by_class=("decoder.class_heads.",), by_channel=("query_source.class_head.",))

    def __init__(
        self,
        pyramid: Pyramid,
        encoder: Encoder,
        query_source: QuerySource,
        decoder: Decoder,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.encoder = encoder
        self.query_source = query_source
        self.decoder = decoder

    @property
    def num_classes(self) -> int:
        """Channels of the class heads."""
        head = self.decoder.class_heads[0]
        assert isinstance(head, nn.Linear)
        return head.out_features

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        padding_mask: Bool[Tensor, "batch height width"],
        targets: list[Target] | None = None,
    ) -> DetectorOutput:
        """Predictions for normalised images, padded at the right and bottom; True in the mask = padding.

        `targets` are there for networks that learn from noisy copies of them; this one does not.
        """
        memory = self.encoder(self.pyramid(images, padding_mask))
        queries, proposals = self.query_source(memory)
        return DetectorOutput(self.decoder(queries, memory), proposals)

    def layers(self) -> list[nn.Module]:
        """Layers of encoder and decoder."""
        return [*self.encoder.layers, *self.decoder.layers]

    def gathered_together(self) -> list[nn.Module]:
        """Stages of the backbone, the pyramid around it, and every layer of encoder and decoder."""
        return [*self.pyramid.gathered_together(), *self.layers()]

    def make_criterion(self, settings: CriterionConfig) -> Criterion:
        """The paper's set loss, over all decoder layers and the proposals."""
        return Criterion(settings)


def build(config: DeformableDETRConfig, *, load_backbone_weights: bool = True) -> DeformableDETR:
    """The network of a config, initialised as the paper's.

    Args:
        config: what to build.
        load_backbone_weights: False where a checkpoint will bring all weights anyway.

    Raises:
        ConfigError: the backbone does not exist or does not fit the other settings.
        CheckpointError: the backbone's weights cannot be had.
    """
    backbone = Backbone(
        config.backbone,
        num_maps=min(config.num_levels, _MAX_BACKBONE_MAPS),
        dilation=config.dilation,
        frozen_stages=config.frozen_stages,
        frozen_batch_norm=config.frozen_batch_norm,
    )
    if load_backbone_weights and config.backbone_weights != "none":
        backbone.load_weights(config.backbone_weights)
    dim = config.hidden_dim
    layer = {
        "num_heads": config.num_heads,
        "num_levels": config.num_levels,
        "ffn_dim": config.ffn_dim,
    }
    pyramid = Pyramid(backbone, num_levels=config.num_levels, dim=dim, per_image=config.features == "per_image")
    encoder = Encoder(
        [
            EncoderLayer(dim, num_points=config.encoder_points, dropout=config.dropout, **layer)
            for _ in range(config.encoder_layers)
        ]
    )
    query_source: LearnedQueries | ProposalQueries
    if config.variant == "two_stage":
        query_source = ProposalQueries(config.num_queries, dim, config.num_classes, choice=config.proposals)
    else:
        query_source = LearnedQueries(config.num_queries, dim)
    refine = config.variant != "base"
    num_heads = config.decoder_layers if refine else 1
    decoder = Decoder(
        [
            DecoderLayer(dim, num_points=config.decoder_points, dropout=config.dropout, **layer)
            for _ in range(config.decoder_layers)
        ],
        [nn.Linear(dim, config.num_classes) for _ in range(num_heads)],
        [MLP(dim, dim, 4, num_layers=3) for _ in range(num_heads)],
        refine=refine,
    )
    initialise(pyramid, encoder, query_source, decoder)
    return DeformableDETR(pyramid, encoder, query_source, decoder)
