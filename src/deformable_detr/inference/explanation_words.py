"""Explanations in words: what the picture of a detection shows, for those who cannot see it."""

from math import log2

import torch
from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.errors import counted
from deformable_detr.inference.explanation import Explanation, LayerPoints, fewest_holding

# Share of the weight that the points named first carry together.
_MOST = 0.8
# Distance from an edge, in sides of the box, up to which a point is said to be at it.
_NEAR = 0.15
# Effects below this share of the largest are not counted.
_LEAST = 0.01
_PLACES = (
    "at the left edge",
    "at the top edge",
    "at the right edge",
    "at the bottom edge",
    "in the middle of the box",
    "outside the box",
)


def in_words(explanation: Explanation, index: int, *, layer: int = -1) -> str:
    """Description of the picture of one detection: how many points carry the weight, where they are, on which level.

    Args:
        explanation: the explanation.
        index: position in its detections.
        layer: position of the decoder layer; -1 is the last.
    """
    one = explanation.detections[index]
    name = f"{one.class_name} {one.score:.2f}"
    if explanation.missed is not None:
        x, y = (f"{value:.0f}" for value in explanation.missed.place)
        name = f"No detection at {x},{y}: {explanation.missed.reason()}. The query that came nearest, {name}"
    parts = [_of_points(explanation, index, explanation.layers[layer])] if explanation.layers else []
    if explanation.dense_maps:
        parts = [_of_cells(explanation, index, explanation.dense_maps[layer][index])]
    return f"{name}: {'; '.join(parts)}."


def _of_points(explanation: Explanation, index: int, layer: LayerPoints) -> str:
    weights = (layer.weights[index] / layer.weights.shape[1]).flatten()
    order = weights.argsort(descending=True)
    count = int(fewest_holding(weights, _MOST))
    held = order[:count]
    places = places_of(layer.locations_px[index].flatten(0, 2), explanation.detections.boxes_xyxy[index])
    where = _most(places[held], weights[held])
    shares = layer.level_shares()[index]
    level = int(shares.argmax())
    text = (
        f"{count} of {len(weights)} points carry {100 * float(weights[held].sum()):.0f} % of the weight, most {where}; "
        f"the level of stride {stride_of(explanation, level)} has {percent_of(float(shares[level]))}"
    )
    outside = float(layer.outside(explanation.size_wh)[index])
    if outside >= 0.005:
        text += f"; {percent_of(outside)} lies outside the image"
    if layer.effects is None:
        return text
    effects = layer.effects[index].flatten()
    best = int(effects.argmax())
    against = int((effects < -_LEAST * effects.abs().max()).sum())
    speak_against = counted(against, "point speaks", "points speak")
    if float(effects[best]) <= 0:
        return f"{text}; no point speaks for the class, and {speak_against} against it"
    return (
        f"{text}; the point that helps most, {_PLACES[int(places[best])]}, raises the class logit by "
        f"{float(effects[best]):.2f}, and {speak_against} against the class"
    )


def _of_cells(explanation: Explanation, index: int, heads: Float[Tensor, "heads height width"]) -> str:
    weights = heads.mean(0)
    ordered = weights.flatten().sort(descending=True).values
    count = int(fewest_holding(ordered, _MOST))
    inside = share_in_box(weights, explanation.detections.boxes_xyxy[index], explanation.size_wh)
    return (
        f"{count} of {len(ordered)} cells of stride {stride_of(explanation, 0)} carry "
        f"{100 * float(ordered[:count].sum()):.0f} % of the weight, {percent_of(inside)} of it lies in the box"
    )


def _most(places: Tensor, weights: Tensor) -> str:
    """Places that hold most of some weights, one or two of them, in words."""
    shares = torch.zeros(len(_PLACES)).index_add_(0, places, weights.float())
    first, second = shares.argsort(descending=True)[:2].tolist()
    if float(shares[first]) > 0.5 * float(shares.sum()) or float(shares[second]) == 0:
        return _PLACES[first]
    if max(first, second) < 4:  # two edges
        low, high = sorted((first, second))
        return f"{_PLACES[low].removesuffix(' edge')} and {_PLACES[high].removeprefix('at the ')}"
    return f"{_PLACES[first]} and {_PLACES[second]}"


def places_of(points: Float[Tensor, "points 2"], box_xyxy: Float[Tensor, "4"]) -> Tensor:
    """Place of each point: 0 to 3 at the left, top, right, bottom edge of a box, 4 further inside, 5 further outside.

    Args:
        points: (x, y) of each point, in pixels.
        box_xyxy: the box, in pixels.
    """
    size = (box_xyxy[2:] - box_xyxy[:2]).clamp(min=1e-6)
    share = (points - box_xyxy[:2]) / size
    distances = torch.cat([share, 1 - share], dim=1)  # left, top, right, bottom; below 0 outside
    nearest = distances.abs().min(1)
    places = torch.where(nearest.values <= _NEAR, nearest.indices, 4)
    return torch.where((distances < -_NEAR).any(1), 5, places)


def share_in_box(
    weights: Float[Tensor, "height width"], box_xyxy: Float[Tensor, "4"], size_wh: tuple[int, int]
) -> float:
    """Share of a map's sum that lies in a box; a cell counts by the part of it that is inside.

    Args:
        weights: map of the image.
        box_xyxy: the box, in pixels of the image.
        size_wh: width and height of the image.
    """
    total = float(weights.sum())
    if total <= 0:
        return 0.0
    parts = []
    for axis, cells in ((1, weights.shape[0]), (0, weights.shape[1])):
        low, high = (float(box_xyxy[axis + side]) / size_wh[axis] * cells for side in (0, 2))
        edges = torch.arange(cells, dtype=weights.dtype, device=weights.device)
        parts.append(((edges + 1).clamp(max=high) - edges.clamp(min=low)).clamp(min=0))
    return float(parts[0] @ weights @ parts[1]) / total


def stride_of(explanation: Explanation, level: int) -> int:
    """Stride of a level: pixels of what the network saw for each of its cells, a power of two.

    Args:
        explanation: the explanation.
        level: level, from 0, finest first.
    """
    height, width = explanation.spatial_shapes[level]
    pixels = max(explanation.input_size_wh) / max(height, width)
    return int(2 ** round(log2(pixels)))


def percent_of(share: float) -> str:
    """Share in percent, for people: small ones are not rounded to nothing.

    Args:
        share: 0..1.
    """
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
