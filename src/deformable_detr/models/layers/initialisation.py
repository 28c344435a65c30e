"""Initial values of all parameters outside the backbone (official code; arXiv 2010.04159, A.3 and A.4).

- Transformer matrices (projections, self-attention, feed-forward, proposal projections): Xavier uniform. Their
  biases keep PyTorch's defaults: uniform within 1/sqrt(fan in) for linear layers, 0 for self-attention.
- Sampling offsets: weight 0; bias on a square ring: head m points at angle 2 pi m / heads, and point k = 1, 2, ... is
  k pixels away. Attention weights: weight and bias 0, so that all samples count the same.
- Value and output projections, and the convolutions of the pyramid: Xavier uniform, bias 0. Norms 1 and 0.
- Level embeddings and learned queries: normal with mean 0 and standard deviation 1. Reference points: Xavier uniform,
  bias 0.
- Class heads: PyTorch's default weight; bias such that every class starts at probability 0.01.
- Box heads: PyTorch's default, but the last layer is 0, so that boxes start at their references. The bias of w and h is
  -2 (0.12 of the image) where the reference has no size: in the one shared head, or in the first head with refinement.
  It is 0 in two-stage, where the proposals have a size.
- With refinement all class heads start equal, and all box heads, those of the proposals included.

DETR (arXiv 2005.12872) draws the matrices of encoder and decoder layers likewise, those of an attention's queries, keys
and values as one, and has no other rules: its heads, projection and queries start as PyTorch makes them.

DINO (arXiv 2203.03605 and its code) has the rules of Deformable DETR; its learned content and its position head are
Xavier uniform as well, and the label table of denoising is normal with mean 0 and standard deviation 1.
"""

import math

import torch
from torch import Tensor, nn

from deformable_detr.models.layers.box_decoder import BoxDecoder
from deformable_detr.models.layers.decoder import Decoder
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.dense_decoder import DenseDecoder
from deformable_detr.models.layers.dense_encoder import DenseEncoder
from deformable_detr.models.layers.encoder import Encoder
from deformable_detr.models.layers.feedforward import MLP
from deformable_detr.models.layers.pyramid import Pyramid
from deformable_detr.models.layers.queries import LearnedQueries, MixedQueries, ProposalQueries

PRIOR_PROBABILITY = 0.01
"""Initial probability of every class, in 0..1 (focal loss, Lin et al. 2017)."""
_SIZE_LOGIT = -2.0


@torch.no_grad()
def initialise(
    pyramid: Pyramid, encoder: Encoder, query_source: LearnedQueries | ProposalQueries, decoder: Decoder
) -> None:
    """Set the initial value of every parameter outside the backbone; random values use PyTorch's global generator."""
    _initialise_pyramid(pyramid)
    _initialise_layers(encoder.layers, decoder.layers)
    # Queries and heads. The heads of the proposals start like those of the decoder.
    two_stage = isinstance(query_source, ProposalQueries)
    class_heads, box_heads = list(decoder.class_heads), list(decoder.box_heads)
    if isinstance(query_source, ProposalQueries):
        _xavier_matrices(query_source.memory_proj)
        _xavier_matrices(query_source.position_proj)
        class_heads += [query_source.class_head, *query_source.group_class_heads]
        box_heads += [query_source.box_head, *query_source.group_box_heads]
        _xavier_matrices(query_source.group_projs)
    else:
        nn.init.normal_(query_source.embedding.weight)
        nn.init.xavier_uniform_(query_source.reference_points.weight)
        nn.init.zeros_(query_source.reference_points.bias)
        if query_source.training_embedding is not None:
            nn.init.normal_(query_source.training_embedding.weight)
    _initialise_heads(class_heads, box_heads, size_logit=0.0 if two_stage else _SIZE_LOGIT)


def initialise_dense(encoder: DenseEncoder, decoder: DenseDecoder) -> None:
    """Set the initial value of every matrix in the layers of DETR's encoder and decoder: Xavier uniform."""
    _xavier_matrices(encoder)
    _xavier_matrices(decoder.layers)


@torch.no_grad()
def initialise_dino(pyramid: Pyramid, encoder: Encoder, query_source: MixedQueries, decoder: BoxDecoder) -> None:
    """Set the initial value of every parameter of DINO outside the backbone, with PyTorch's global generator.

    The label table of denoising keeps the initial values of `nn.Embedding`.
    """
    _initialise_pyramid(pyramid)
    _initialise_layers(encoder.layers, decoder.layers)
    for module in (decoder.position_head, query_source.memory_proj, query_source.content, query_source.group_projs):
        _xavier_matrices(module)
    if query_source.training_embedding is not None:
        _xavier_matrices(query_source.training_embedding)
    _initialise_heads(
        [*decoder.class_heads, query_source.class_head, *query_source.group_class_heads],
        [*decoder.box_heads, query_source.box_head, *query_source.group_box_heads],
        size_logit=0.0,
    )


def _initialise_pyramid(pyramid: Pyramid) -> None:
    for module in pyramid.projections.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.normal_(pyramid.level_embed)


def _initialise_layers(*groups: nn.ModuleList) -> None:
    # First every matrix, then the attention modules, which have rules of their own.
    for layers in groups:
        _xavier_matrices(layers)
        for module in layers.modules():
            if isinstance(module, DeformableAttention):
                initialise_attention(module)


def initialise_attention(attention: DeformableAttention) -> None:
    """Set the initial values of an attention module: a ring of samples around the reference, all with equal weight."""
    nn.init.zeros_(attention.sampling_offsets.weight)
    attention.sampling_offsets.bias.data = ring(attention.num_heads, attention.num_levels, attention.num_points)
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.zeros_(attention.attention_weights.bias)
    for projection in (attention.value_proj, attention.output_proj):
        nn.init.xavier_uniform_(projection.weight)
        nn.init.zeros_(projection.bias)


def ring(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Initial sampling offsets in pixels, flattened: point k on a square ring of radius k, on every level (A.4)."""
    angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    radii = torch.arange(1, num_points + 1, dtype=torch.float32)
    offsets = directions[:, None, None] * radii[:, None]  # (heads, 1, points, 2)
    return offsets.expand(num_heads, num_levels, num_points, 2).flatten()


def _xavier_matrices(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _initialise_heads(class_heads: list[nn.Module], box_heads: list[nn.Module], *, size_logit: float) -> None:
    first_class, first_box = class_heads[0], box_heads[0]
    assert isinstance(first_class, nn.Linear)
    assert isinstance(first_box, MLP)
    nn.init.constant_(first_class.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    last = first_box.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    for heads in (class_heads, box_heads):
        for other in heads[1:]:
            other.load_state_dict(heads[0].state_dict())
    last.bias[2:] = size_logit
