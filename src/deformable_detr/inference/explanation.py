"""Explanation of detections: where each decoder layer looked, what each point did, and the way of each box."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deformable_detr.core.detections import Detections
from deformable_detr.inference.chained_map import ChainedMap
from deformable_detr.inference.missed import Missed
from deformable_detr.inference.pixel_gradients import GradientKind


class LayerPoints(NamedTuple):
    """Sampling points of one decoder layer for each explained detection."""

    layer: int
    """Number of the decoder layer, from 1."""
    locations_px: Float[Tensor, "objects heads levels points 2"]
    """(x, y) of each point in pixels of the image as displayed; may lie outside of it."""
    weights: Float[Tensor, "objects heads levels points"]
    """Attention weight of each point; those of a head sum to 1."""
    reference_xyxy: Float[Tensor, "objects 4"]
    """Reference that the layer looked from: a box, or a point as a box without size. With DINO it is near the box after
    the layer before, elsewhere with refinement that very box."""
    effects: Float[Tensor, "objects heads levels points"] | None
    """Fall of the final class logit if the point is left out, negative where the point speaks against the class; None
    where it was not asked for. They do not add up to the logit."""
    offset_variation: float
    """Variance of the sampling offsets over the queries of this image, as a share of their mean square, 0..1. Near 0,
    all queries look at the same places of their boxes, whatever the image shows there."""
    weight_variation: float
    """Standard deviation of the attention weights over the queries, as a share of their mean."""

    def outside(self, size_wh: tuple[int, int]) -> Float[Tensor, "objects"]:
        """Share of the attention weight at points outside the image, 0..1.

        Args:
            size_wh: width and height of the image, in pixels.
        """
        size = self.locations_px.new_tensor(size_wh)
        off = ((self.locations_px < 0) | (self.locations_px > size)).any(-1)
        return (self.weights * off).flatten(1).sum(1) / self.weights.shape[1]

    def level_shares(self) -> Float[Tensor, "objects levels"]:
        """Share of the attention weight on each level, finest first, heads averaged."""
        return self.weights.sum(-1).mean(1)

    def points_for_half(self) -> Int[Tensor, "objects"]:
        """Smallest number of points that hold half of the attention weight."""
        return fewest_holding(self.weights.flatten(1), 0.5)


class Proposal(NamedTuple):
    """Place in the feature maps whose proposal became a query."""

    level: int
    """Level, from 0, finest first."""
    row: int
    """Row in the level's map, from 0."""
    column: int
    """Column in the level's map, from 0."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Explanation of some detections of one image. First axes follow `detections`, coordinates are pixels of the image.

    See `explain` for what the parts mean and what they do not.
    """

    detections: Detections
    """Detections that are explained; `query_ids` are the queries that found them."""
    num_others: int
    """Number of detections above the threshold that are not among them."""
    missed: Missed | None
    """Answer for a place that was asked for and has no detection; else None."""
    size_wh: tuple[int, int]
    """Width and height of the image as displayed, in pixels."""
    input_size_wh: tuple[int, int]
    """Width and height of what the network saw, in pixels."""
    spatial_shapes: tuple[tuple[int, int], ...]
    """(height, width) of each feature map, finest first."""
    layers: tuple[LayerPoints, ...]
    """Sampling points of each decoder layer, first layer first; empty for DETR, which has none."""
    dense_maps: tuple[Float[Tensor, "objects heads height width"], ...]
    """Attention weights of each decoder layer of DETR over the feature map; empty for the others."""
    path_xyxy: Float[Tensor, "layers objects 4"]
    """Box after each layer; without refinement all start from the same reference."""
    path_logits: Float[Tensor, "layers objects"]
    """Logit of the detection's class after each layer."""
    proposals: tuple[Proposal, ...]
    """Origin of each query; empty for learned queries."""
    attended_queries: tuple[Float[Tensor, "objects queries"], ...]
    """Self-attention of each decoder layer: weight of every other query, heads averaged; a row sums to 1."""
    chained: ChainedMap
    """Shares of the tokens, chained through decoder and encoder."""
    gradients: Float[Tensor, "objects targets height width"] | None
    """Norm of the gradient of each of `pixel_gradients.TARGETS`, in pixels that the network saw; None if not taken."""
    gradient_kind: GradientKind | None
    """Kind of the gradients: with what came through earlier boxes ("total") or without ("direct")."""

    @property
    def reference_xyxy(self) -> Float[Tensor, "objects 4"] | None:
        """Reference that the first layer looked from: a box, or a point as a box without size; None for DETR."""
        return self.layers[0].reference_xyxy if self.layers else None

    @property
    def reference_moves(self) -> bool:
        """Whether layers look from references of their own; else all look from the first, as without refinement."""
        return any(not torch.equal(layer.reference_xyxy, self.layers[0].reference_xyxy) for layer in self.layers)

    def heat(self, index: int, size_wh: tuple[int, int] | None = None) -> Float[Tensor, "height width"]:
        """Chained map of one detection as a picture; it sums to the share that lies inside the image.

        Args:
            index: position in `detections`.
            size_wh: width and height of the picture; those of the image if left out.
        """
        width, height = size_wh or self.size_wh
        one = self.chained._replace(mass=self.chained.mass[index : index + 1])
        return one.pixels((height, width))[0]

    def record(self) -> dict[str, Any]:
        """Record as plain data, for JSON: points are [x, y, level, head, weight, effect or null]."""
        return {
            "width": self.size_wh[0],
            "height": self.size_wh[1],
            "maps": [list(shape) for shape in self.spatial_shapes],
            "not_explained": self.num_others,
            "missed": None if self.missed is None else self.missed.record(),
            "detections": [self._record_of(index) for index in range(len(self.detections))],
        }

    def _record_of(self, index: int) -> dict[str, Any]:
        one = self.detections[index]
        origin = self.proposals[index]._asdict() if self.proposals else None
        reference = None if self.reference_xyxy is None else _rounded(self.reference_xyxy[index], 1)
        chained = self.chained
        return {
            "query": one.query_id,
            "class": one.class_name,
            "class_id": one.class_id,
            "score": round(one.score, 4),
            "box_xyxy": [round(side, 1) for side in one.box_xyxy],
            "proposal": origin,
            "reference_xyxy": reference,
            "reference_moves": self.reference_moves,
            "path": [
                {"layer": number, "box_xyxy": _rounded(box, 1), "logit": round(float(logit), 3)}
                for number, (box, logit) in enumerate(
                    zip(self.path_xyxy[:, index], self.path_logits[:, index], strict=True), start=1
                )
            ],
            "layers": [_layer_record(layer, index, self.size_wh) for layer in self.layers],
            "attended_queries": [_strongest(row[index]) for row in self.attended_queries],
            "chained": {
                "inside": round(float(chained.mass[index].sum()), 4),
                "outside": round(float(chained.outside[index]), 4),
                "in_queries": round(float(chained.residue[index]), 4),
            },
        }


def fewest_holding(weights: Float[Tensor, "*rows count"], share: float) -> Int[Tensor, "*rows"]:
    """Smallest number of weights in each row that hold a share of its sum.

    Args:
        weights: weights, not negative.
        share: 0..1.
    """
    held = weights.sort(-1, descending=True).values.cumsum(-1) / weights.sum(-1, keepdim=True)
    return (held < share - 1e-6).sum(-1) + 1


def _layer_record(layer: LayerPoints, index: int, size_wh: tuple[int, int]) -> dict[str, Any]:
    heads, levels, points = layer.weights.shape[1:]
    rows = []
    for head in range(heads):
        for level in range(levels):
            for point in range(points):
                place = (index, head, level, point)
                x, y = _rounded(layer.locations_px[place], 1)
                effect = None if layer.effects is None else round(float(layer.effects[place]), 4)
                rows.append([x, y, level, head, round(float(layer.weights[place]), 4), effect])
    return {
        "layer": layer.layer,
        "outside": round(float(layer.outside(size_wh)[index]), 4),
        "level_shares": _rounded(layer.level_shares()[index], 4),
        "points_for_half": int(layer.points_for_half()[index]),
        "offset_variation": round(layer.offset_variation, 4),
        "weight_variation": round(layer.weight_variation, 4),
        "points": rows,
    }


def _strongest(weights: Tensor) -> list[list[int | float]]:
    """Queries with more than three times an equal share, as [query, weight], heaviest first."""
    heavy = (weights > 3 / len(weights)).nonzero().squeeze(1)
    order = heavy[weights[heavy].argsort(descending=True)]
    return [[query, round(float(weights[query]), 4)] for query in order.tolist()]


def _rounded(values: Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]
