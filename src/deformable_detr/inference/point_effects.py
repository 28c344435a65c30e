"""Effects of sampling points: how much the class logit of a detection falls when one point is left out, exactly."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deformable_detr.core.types import Queries
from deformable_detr.models.layers.branches import isolation_mask
from deformable_detr.models.layers.recording import DeformableCall, Recording
from deformable_detr.ops import multi_scale_deformable_attention

# Queries that go through the decoder at once when it runs again.
_QUERIES_AT_ONCE = 1600


@torch.no_grad()
def last_layer_effects(
    decoder: nn.Module, record: Recording, queries: Int[Tensor, "objects"], class_ids: Int[Tensor, "objects"]
) -> Float[Tensor, "objects heads levels points"]:
    """Effects of the last layer's sampling points: the logit of a class with all points minus that without one.

    Positive where a point speaks for the class. Only what follows the cross-attention is computed again, once for each
    point: norms, the feed-forward block and the class head. Effects do not add up to the logit.

    Args:
        decoder: decoder of the network, with `layers` and `class_logits`.
        record: recording of one image.
        queries: query of each object.
        class_ids: class of each object.
    """
    weights = record.decoder[-1].sampling_points(queries).weights[0]
    logits = last_layer_logits(decoder, record, queries, class_ids, with_each_left_out(weights))
    return (logits[:, :1] - logits[:, 1:]).unflatten(1, weights.shape[1:])


def last_layer_logits(
    decoder: nn.Module,
    record: Recording,
    queries: Int[Tensor, "objects"],
    class_ids: Int[Tensor, "objects"],
    weights: Float[Tensor, "objects copies heads levels points"],
) -> Float[Tensor, "objects copies"]:
    """Class logits as they would be with other attention weights in the last decoder layer.

    Args:
        decoder: as for `last_layer_effects`.
        record: recording of one image.
        queries: query of each object.
        class_ids: class of each object.
        weights: weights to try instead of those of each query, several sets for each.
    """
    parts: Any = decoder
    layer, call = parts.layers[-1], record.decoder[-1]
    attended = attended_with(call, queries, weights)
    content = (record.before_norm[-1] - call.output)[0, queries, None] + attended
    content = layer.norm_cross(content)
    content = layer.norm_ffn(content + layer.ffn(content))
    logits: Tensor = parts.class_logits(len(parts.layers) - 1, content)
    return logits.gather(-1, class_ids.view(-1, 1, 1).expand(-1, logits.shape[1], 1)).squeeze(-1)


@torch.no_grad()
def effects_by_reruns(
    decoder: nn.Module, record: Recording, layer: int, query: int, class_id: int
) -> Float[Tensor, "heads levels points"]:
    """Effects of one layer's sampling points on the final logit of a detection, by running the decoder again.

    The decoder runs once for each point, with all queries: what the others make of the change comes back, too. Several
    runs go through it at once, as queries that do not see each other.

    Args:
        decoder: decoder of the network.
        record: recording of one image.
        layer: position of the layer, from 0.
        query: query of the detection.
        class_id: class of the detection.
    """
    assert record.queries is not None
    parts: Any = decoder
    given, call = record.queries, record.decoder[layer]
    device = call.query.device
    queries = torch.tensor([query], device=device)
    weights = with_each_left_out(call.sampling_points(queries).weights[0])
    attended = attended_with(call, queries, weights)[0]  # (1 + samples, dim)
    count = given.content.shape[1]
    logits = []
    for some in attended.split(max(1, _QUERIES_AT_ONCE // count)):
        copies = len(some)
        rows = query + count * torch.arange(copies, device=device)

        def with_points_left_out(
            _: nn.Module, __: object, output: Tensor, rows: Tensor = rows, some: Tensor = some
        ) -> Tensor:
            return output.index_copy(1, rows, some[None].to(output.dtype))

        handle = call.module.register_forward_hook(with_points_left_out)
        try:
            layers = parts(_repeated(given, copies), record.memory)
        finally:
            handle.remove()
        logits.append(layers[-1].logits[0, rows, class_id])
    own = torch.cat(logits)
    return (own[0] - own[1:]).view(weights.shape[2:])


def with_each_left_out(
    weights: Float[Tensor, "objects heads levels points"],
) -> Float[Tensor, "objects copies heads levels points"]:
    """Weights as they are, then once for each point with its own at 0; the others stay as they are."""
    samples = weights.shape[1:].numel()
    kept = torch.cat([weights.new_ones(1, samples), 1 - torch.eye(samples, dtype=weights.dtype, device=weights.device)])
    return weights[:, None] * kept.view(-1, *weights.shape[1:])


def attended_with(
    call: DeformableCall,
    queries: Int[Tensor, "objects"],
    weights: Float[Tensor, "objects copies heads levels points"],
) -> Float[Tensor, "objects copies dim"]:
    """Output of a deformable attention with other attention weights at the same locations.

    Args:
        call: recorded call, of one image.
        queries: query of each object.
        weights: weights to try, several sets for each object.
    """
    locations = call.sampling_points(queries).locations[0, :, None].expand(*weights.shape, 2)
    value = call.module.value_proj(call.tokens).masked_fill(call.padding_mask[..., None], 0.0)
    sampled = multi_scale_deformable_attention(
        value.unflatten(-1, (call.module.num_heads, -1)),
        call.spatial_shapes,
        locations.flatten(0, 1)[None],
        weights.flatten(0, 1)[None],
    )
    attended: Tensor = call.module.output_proj(sampled[0].flatten(1))
    return attended.unflatten(0, weights.shape[:2])


def _repeated(queries: Queries, copies: int) -> Queries:
    """Queries several times, one copy after another; no copy sees another."""
    position = None if queries.position is None else queries.position.repeat(1, copies, 1)
    mask = isolation_mask((queries.content.shape[1],) * copies, queries.content.device)
    return Queries(
        queries.content.repeat(1, copies, 1), position, queries.reference.repeat(1, copies, 1), attention_mask=mask
    )
