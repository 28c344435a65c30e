"""Preparation of a network for inference on a CPU: the same numbers from fewer, larger and better products.

Batch norm is folded, weights are packed where that pays, and nothing is computed that only training needs: dropout,
masks where nothing is padded, heads of all layers but the last, proposals beyond those that become queries. What
depends on the size of the images alone is computed once per size.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from deformable_detr.core.types import DetectorOutput, SpatialShapes, Target
from deformable_detr.inference.folding import folded
from deformable_detr.inference.onednn import Convolution, PackedProducts, measured_choice
from deformable_detr.inference.prepared_layers import (
    PreparedDecoder,
    PreparedEncoderLayer,
    PreparedLearnedQueries,
    PreparedProposalQueries,
    linear_maker,
)
from deformable_detr.models.deformable import DeformableDETR
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.layers.decoder import Decoder, DecoderLayer
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.denoising import Denoising
from deformable_detr.models.layers.dropout import Dropout
from deformable_detr.models.layers.encoder import Encoder, EncoderLayer, position_references
from deformable_detr.models.layers.feedforward import MLP, FeedForward
from deformable_detr.models.layers.pyramid import GroupNorm, Pyramid
from deformable_detr.models.layers.queries import Anchors, LearnedQueries, ProposalQueries, anchors_of

InferencePrecision = Literal["float32", "bfloat16"]
"""Precision of backbone and encoder; heads and coordinates are always in float32, and on a CPU the decoder is, too."""

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MOST_SIZES = 4
# A part of another class, such as one of a researcher, computes in its own way.
_PARTS = {
    *(DeformableDETR, Pyramid, Backbone, GroupNorm, Encoder, EncoderLayer, Decoder, DecoderLayer, DeformableAttention),
    *(
        FeedForward,
        MLP,
        Dropout,
        LearnedQueries,
        ProposalQueries,
        Denoising,
        nn.MultiheadAttention,
        NonDynamicallyQuantizableLinear,
    ),
    *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d, nn.Sequential, nn.ModuleList),
}


def prepare(
    model: nn.Module, *, precision: InferencePrecision = "float32", choice: PackedProducts | None = None
) -> nn.Module:
    """Network that is called like `model` and predicts the same on a CPU, faster; its output has the last layer only.

    Equal in float32 up to the order of sums: logits within 1e-4. When weights or hooks of `model` change, prepare anew.
    Batches with padding go through `model` itself, and so does everything of networks other than `DeformableDETR`, and
    of those in which a part has been replaced or has a hook.

    Args:
        model: the network on the CPU; it stays as it is, but is put into evaluation mode.
        precision: precision of backbone and encoder.
        choice: products that oneDNN does; measured if left out, once per process and number of threads.
    """
    model.eval()
    if not isinstance(model, DeformableDETR) or not _is_as_published(model):
        return _LastLayer(model, _TYPES[precision])
    chosen = choice or measured_choice(_TYPES[precision])
    in_float32 = choice or measured_choice()
    return PreparedDeformableDETR(model, _TYPES[precision], chosen, in_float32)


def _is_as_published(model: DeformableDETR) -> bool:
    """Whether all parts but those of the backbone, which is traced, are of this package and have no hooks."""
    # A method of one object alone is such a part, too.
    own = any("forward" in vars(module) for module in model.modules())
    body = set(model.pyramid.backbone.body.modules())
    others = [module for module in model.modules() if module not in body]
    has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not own and not has_hooks and all(type(module) in _PARTS for module in others)


class _LastLayer(nn.Module):
    """Network that gives the predictions of its last layer alone."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None = None) -> DetectorOutput:
        return _last_layer(self.model, images, padding_mask, self.dtype)


def _last_layer(model: nn.Module, images: Tensor, padding_mask: Tensor, dtype: torch.dtype) -> DetectorOutput:
    """Output of a network as it is, without all layers but the last; all of it but the heads in this type."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output: DetectorOutput = model(images, padding_mask)
    return DetectorOutput([output.final], None)


class _Constants(NamedTuple):
    """Constants of all images of one size, for a batch of one."""

    position: Float[Tensor, "1 positions dim"]
    reference: Float[Tensor, "1 positions levels 2"]
    anchors: Anchors


class PreparedDeformableDETR(nn.Module):
    """Deformable DETR prepared for inference on a CPU; see `prepare`.

    Args:
        model: the network.
        dtype: type of backbone and encoder.
        choice: products in that type that oneDNN does.
        in_float32: products of the decoder and the heads that oneDNN does.
    """

    def __init__(
        self, model: DeformableDETR, dtype: torch.dtype, choice: PackedProducts, in_float32: PackedProducts
    ) -> None:
        super().__init__()
        self.plain = model
        self.choice, self.dtype = choice, dtype
        pyramid = model.pyramid
        body = folded(pyramid.backbone.body, choice, dtype)
        # Where it cannot be folded, it stays as it is, and in float32.
        self.body = pyramid.backbone.body if body is None else body
        self.body_dtype = torch.float32 if body is None else dtype
        self.projections = nn.ModuleList(
            _PreparedProjection(one, choice, dtype) for one in pyramid.projections if isinstance(one, nn.Sequential)
        )
        make = linear_maker(choice, dtype)
        layers = [layer for layer in model.encoder.layers if isinstance(layer, EncoderLayer)]
        self.encoder = nn.ModuleList(PreparedEncoderLayer(layer, make, dtype) for layer in layers)
        make = linear_maker(in_float32, torch.float32)
        source = model.query_source
        self.query_source: PreparedLearnedQueries | PreparedProposalQueries
        if isinstance(source, ProposalQueries):
            self.query_source = PreparedProposalQueries(source, make)
        else:
            assert isinstance(source, LearnedQueries)
            self.query_source = PreparedLearnedQueries(source)
        self.decoder = PreparedDecoder(model.decoder, make, len(pyramid.level_embed))
        self._constants: dict[SpatialShapes, _Constants] = {}

    @torch.no_grad()
    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        padding_mask: Bool[Tensor, "batch height width"],
        targets: list[Target] | None = None,
    ) -> DetectorOutput:
        """Predictions of the last decoder layer.

        Args:
            images: normalised images.
            padding_mask: True = padding.
            targets: not used.
        """
        if bool(padding_mask.any()):
            return _last_layer(self.plain, images, padding_mask, self.dtype)
        levels = self._levels(images.to(self.body_dtype).contiguous(memory_format=torch.channels_last))
        spatial_shapes = tuple((level.shape[2], level.shape[3]) for level in levels)
        constants = self._constants_of(spatial_shapes)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        reference = constants.reference.expand(len(images), -1, -1, -1)
        for layer in self.encoder:
            tokens = layer(tokens, constants.position, reference, spatial_shapes)
        tokens = tokens.float()
        queries = self.query_source(tokens, constants.anchors)
        return DetectorOutput([self.decoder(queries, tokens, spatial_shapes)], None)

    def _levels(self, images: Tensor) -> list[Tensor]:
        maps = [one.to(self.dtype) for one in self.body(images)]
        levels = [project(one) for project, one in zip(self.projections, maps, strict=False)]
        source = maps[-1]
        for project in self.projections[len(maps) :]:
            source = project(source)
            levels.append(source)
        return levels

    def _constants_of(self, spatial_shapes: SpatialShapes) -> _Constants:
        found = self._constants.get(spatial_shapes)
        if found is None:
            found = _computed(self.plain.pyramid, spatial_shapes, self.dtype)
            self._constants[spatial_shapes] = found
            # Other threads may do the same: what is gone already is no error.
            for oldest in list(self._constants)[:-_MOST_SIZES]:
                self._constants.pop(oldest, None)
        return found


class _PreparedProjection(nn.Module):
    """Projection of a map of the backbone to a level: convolution and group norm."""

    def __init__(self, projection: nn.Sequential, choice: PackedProducts, dtype: torch.dtype) -> None:
        super().__init__()
        convolution, norm = projection
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.GroupNorm)
        assert convolution.bias is not None
        pointwise = convolution.kernel_size == (1, 1)
        self.convolution = Convolution(
            convolution.weight.to(dtype),
            convolution.bias.to(dtype),
            stride=(convolution.stride[0], convolution.stride[1]),
            padding=(0, 0) if pointwise else (1, 1),
            packed=choice.pointwise if pointwise else choice.convolution,
        )
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)

    def forward(self, features: Tensor) -> Tensor:
        return torch.group_norm(self.convolution(features), self.num_groups, self.weight, self.bias, self.eps)


def _computed(pyramid: Pyramid, spatial_shapes: SpatialShapes, dtype: torch.dtype) -> _Constants:
    masks = [torch.zeros(1, height, width, dtype=torch.bool) for height, width in spatial_shapes]
    position = torch.cat([one.flatten(1, 2) for one in pyramid.positions(masks)], dim=1)
    ratios = torch.ones(1, len(spatial_shapes), 2)
    padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    return _Constants(
        position.detach().to(dtype),
        position_references(spatial_shapes, ratios),
        anchors_of(spatial_shapes, ratios, padding_mask),
    )
