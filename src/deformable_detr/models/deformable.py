"""Deformable DETR (arXiv 2010.04159): base, with iterative box refinement, and two-stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import DetectorOutput, Target
from deformable_detr.models.interface import ClassRows
from deformable_detr.models.layers.branches import output_of_branches
from deformable_detr.models.layers.decoder import Decoder, DecoderLayer
from deformable_detr.models.layers.denoising import BoxQueries, Denoising
from deformable_detr.models.layers.encoder import Encoder, EncoderLayer
from deformable_detr.models.layers.feedforward import MLP
from deformable_detr.models.layers.initialisation import initialise
from deformable_detr.models.layers.pyramid import Pyramid
from deformable_detr.models.layers.queries import LearnedQueries, ProposalQueries, QuerySource, TrainingBranches
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

# The paper takes the maps of strides 8, 16 and 32 (A.2); further levels are strided convolutions.
_MAX_BACKBONE_MAPS = 3


@dataclass(frozen=True, kw_only=True)
class DeformableDETRConfig(BackboneSettings):
    """Settings of the network. The defaults are the paper's base model for COCO's 91 category ids (section 5).

    Raises:
        ConfigError: a setting is out of range, or two settings exclude each other.
    """

    num_classes: int = 91
    """Number of classes, which is the number of channels of the class heads, 1..100,000. There is no background
    class."""
    variant: Literal["base", "refine", "two_stage"] = "base"
    """Variant of the paper: "base"; "refine", where every decoder layer corrects the boxes of the layer before (section
    4.2, iterative box refinement); or "two_stage", where the best proposals of the encoder become the queries, with
    refinement as well (section 4.2)."""
    backbone: str = "resnet50.tv_in1k"
    """Backbone: timm's own name of any convolutional network; no address, no folder. The default has the paper's
    ImageNet weights; timm's plain "resnet50" has others."""
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
    """Dilated last stage of the backbone, at stride 16 instead of 32 (DC5)."""
    deformable_stages: int = 0
    """Number of backbone stages, counted from the coarsest, with modulated deformable convolutions instead of the plain
    ones of 3 x 3; 0..48. For ResNet and ResNeXt only; the paper's "DCN" (Table 3)."""
    num_levels: int = 4
    """Number of levels of the feature pyramid, 1..8. With 1 to 3 they are the coarsest maps of the backbone. A
    fourth level is a strided convolution of the coarsest map, and each further one of the level before (A.2)."""
    features: Literal["padded", "per_image"] = "padded"
    """Input of backbone and projections. "padded", as in the paper, is the padded batch: detections in an image then
    depend a little on the padding, and so on the other images. "per_image" is each image without its padding."""
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
    ffn_dim: int = 1024
    """Channels between the two linear layers of every feed-forward block, 1..16,384."""
    dropout: float = 0.1
    """Dropout probability in the encoder and the decoder, in 0..1, 1 excluded."""
    num_queries: int = 300
    """Number of decoder queries, 1..20,000: the largest number of objects that can be found in one image. In
    two-stage also the number of proposals that are kept."""
    proposals: Literal["paper", "valid", "distinct"] = "paper"
    """Choice of proposals, for two-stage only. "paper" also ranks proposals in the padding and at the border, with the
    box (1, 1, 1, 1), as the official code does. "valid" takes those only if there are no others. "distinct" does so,
    too, and prefers the best of several proposals with nearly the same box."""
    hybrid_queries: int = 0
    """Number of additional queries in training that are matched several to one (H-DETR), 0..20,000, all queries
    together; its authors have 1500. Prediction is not changed."""
    hybrid_repeats: int = 6
    """Number of hybrid queries that each object is matched to, 2..100."""
    query_groups: int = 1
    """Number of groups of `num_queries` queries in training (Group DETR), 1..50; its authors have 11. Prediction uses
    the first group and is not changed."""
    denoising_queries: int = 0
    """Positive copies of objects in contrastive denoising, for one image in training; 0..20,000, for two-stage only.
    0, as in the paper, is without denoising. DINO has 100."""
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
        if self.proposals != "paper" and self.variant != "two_stage":
            raise ConfigError(
                f"proposals={self.proposals!r} has no meaning for variant {self.variant!r}; it needs 'two_stage', "
                "or set proposals=paper"
            )
        if self.denoising_queries and self.variant != "two_stage":
            raise ConfigError(
                f"denoising_queries={self.denoising_queries} has no meaning for variant {self.variant!r}, whose "
                "queries look from points and not from boxes; it needs 'two_stage', or set denoising_queries=0"
            )
        check_branches(self)

    @property
    def free_settings(self) -> frozenset[str]:
        """Settings on which no weight tensor depends, but for tensors that training alone needs.

        In two-stage, the number of queries is among them.
        """
        training = ("hybrid_queries", "hybrid_repeats", "query_groups", "denoising_queries", "box_noise", "label_noise")
        more = ("num_queries",) if self.variant == "two_stage" else ()
        return frozenset(("dropout", "frozen_stages", "features", "proposals", *training, *more))

    def describe(self) -> str:
        """Description in words: variant and backbone."""
        deformable = f", {self.deformable_stages} deformable stages" if self.deformable_stages else ""
        return f"{self.variant}, backbone {self.backbone} (weights: {self.backbone_weights}){deformable}"


class DeformableDETR(nn.Module):
    """Deformable DETR network (arXiv 2010.04159), from images to predictions.

    All variants share this forward pass and differ in their parts.

    Args:
        pyramid: backbone and projections: images to the levels.
        encoder: self-attention over all levels.
        query_source: learned queries, or proposals of the encoder in two-stage.
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
        "decoder": ("decoder.layers.",),
    }
    """Named parts, for freezing and learning rates: part name to the beginnings of its parameters' names."""
    offsets = ("sampling_offsets", "reference_points")
    """Words in names of parameters with the learning rate of sampling offsets (section 5)."""
    # The class head of the proposals uses channel 0 alone, as "there is an object", whatever the classes are.
    class_rows = ClassRows(
        by_class=("decoder.class_heads.", "denoising.label_embed."),
        by_channel=("query_source.class_head.", "query_source.group_class_heads."),
    )
    """Weight tensors with one row per class, for fine-tuning."""
    training_tensors = ("denoising.", "query_source.training_embedding.", "query_source.group_")
    """Beginnings of the names of tensors that training alone needs; weights to start from may lack them, and
    those that such weights have and this network has not are ignored."""

    def __init__(
        self,
        pyramid: Pyramid,
        encoder: Encoder,
        query_source: QuerySource,
        decoder: Decoder,
        denoising: Denoising | None = None,
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
        head = self.decoder.class_heads[0]
        assert isinstance(head, nn.Linear)
        return head.out_features

    @property
    def num_queries(self) -> int | None:
        """Number of queries, the most objects that can be found in an image; None if the query source does not say."""
        return getattr(self.query_source, "num_queries", None)

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        padding_mask: Bool[Tensor, "batch height width"],
        targets: list[Target] | None = None,
    ) -> DetectorOutput:
        """Predictions of every decoder layer, and of the proposals in two-stage.

        Args:
            images: normalised images, padded at the right and at the bottom.
            padding_mask: True = padding.
            targets: ground truth, which denoising uses in training; nothing else does.
        """
        memory = self.encoder(self.pyramid(images, padding_mask))
        queries, proposals = self.query_source(memory)
        if self.denoising is None or targets is None or not self.training:
            return output_of_branches(self.decoder(queries, memory), proposals, queries.branches)
        # `build` adds denoising to proposals alone, whose queries are boxes.
        noisy = self.denoising(targets, queries, cast(BoxQueries, self.query_source))
        return noisy.output(self.decoder(noisy.queries, memory), proposals)

    def layers(self) -> list[nn.Module]:
        """Layers of the encoder, then of the decoder."""
        return [*self.encoder.layers, *self.decoder.layers]

    def gathered_together(self) -> list[nn.Module]:
        """Modules that are sharded as units: backbone stages, the pyramid, and every layer of encoder and decoder."""
        return [*self.pyramid.gathered_together(), *self.layers()]

    def make_criterion(self, settings: CriterionConfig) -> Criterion:
        """Criterion for training: the paper's set loss over all decoder layers and the proposals."""
        return Criterion(settings)


def build(config: DeformableDETRConfig, *, load_backbone_weights: bool = True) -> DeformableDETR:
    """Network for these settings, initialised as in the paper and the official code.

    Random weights are drawn from PyTorch's global random generator.

    Args:
        config: settings of the network.
        load_backbone_weights: False where a checkpoint brings all weights afterwards.

    Raises:
        ConfigError: the backbone does not exist or does not fit the other settings.
        CheckpointError: the backbone's weights cannot be downloaded or read, or do not fit.
    """
    # Images to levels.
    backbone = config.build_backbone(
        min(config.num_levels, _MAX_BACKBONE_MAPS),
        load_weights=load_backbone_weights,
        deformable_stages=config.deformable_stages,
    )
    dim = config.hidden_dim
    layer = {
        "num_heads": config.num_heads,
        "num_levels": config.num_levels,
        "ffn_dim": config.ffn_dim,
    }
    pyramid = Pyramid(backbone, num_levels=config.num_levels, dim=dim, per_image=config.features == "per_image")
    # Levels to tokens.
    encoder = Encoder(
        [
            EncoderLayer(dim, num_points=config.encoder_points, dropout=config.dropout, **layer)
            for _ in range(config.encoder_layers)
        ]
    )
    # Learned queries, or the best proposals of the encoder.
    query_source: LearnedQueries | ProposalQueries
    added = TrainingBranches(config.hybrid_queries, config.hybrid_repeats, config.query_groups)
    if config.variant == "two_stage":
        query_source = ProposalQueries(
            config.num_queries, dim, config.num_classes, choice=config.proposals, added=added
        )
    else:
        query_source = LearnedQueries(config.num_queries, dim, added)
    # Without refinement all decoder layers share one class head and one box head; with it each layer has its own.
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
    denoising = None
    if config.denoising_queries:
        denoising = Denoising(
            config.denoising_queries,
            dim,
            config.num_classes,
            box_noise=config.box_noise,
            label_noise=config.label_noise,
        )
    return DeformableDETR(pyramid, encoder, query_source, decoder, denoising)
