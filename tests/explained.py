"""Explanations made by hand, for tests of what is drawn and said of them."""

from dataclasses import replace

import torch
from PIL import Image

from deformable_detr.core.detections import Detections
from deformable_detr.inference.chained_map import ChainedMap
from deformable_detr.inference.explanation import Explanation, LayerPoints, Proposal

SIZE_WH = (300, 200)
SHAPES = ((25, 38), (13, 19))
BOX = (100.0, 60.0, 200.0, 120.0)
BEFORE = ([80.0, 50.0, 190.0, 130.0], [99.5, 60.0, 200.0, 120.0])
"""Boxes that the two layers look from."""
POINTS = [
    # x, y, weight, effect: head 0 with two levels of one point, then head 1
    [(150.0, 60.0, 0.8, 0.4), (150.0, 90.0, 0.2, -0.1)],
    [(200.0, 90.0, 0.995, 0.2), (310.0, 90.0, 0.005, 0.001)],
]


def white(size_wh=SIZE_WH):
    """White photo, on which colours are what they were drawn with."""
    return Image.new("RGB", size_wh, (255, 255, 255))


def layer_of(number, effects=True):
    """Layer with the points above: locations in pixels, weights and effects."""
    every = torch.tensor(POINTS)[None, :, :, None]
    looked_from = torch.tensor([BEFORE[number - 1]])
    effects_of = every[..., 3] if effects else None
    return LayerPoints(number, every[..., :2], every[..., 2], looked_from, effects_of, 0.0002, 0.25)


def looking_from(first, second):
    """The two layers, looking from these boxes."""
    layers = layer_of(1, effects=False), layer_of(2)
    return tuple(
        layer._replace(reference_xyxy=torch.tensor([box])) for layer, box in zip(layers, (first, second), strict=True)
    )


def by_hand(**changes):
    """Explanation of one detection in a two-stage network of two layers; `changes` are fields that differ."""
    mass = torch.zeros(1, sum(height * width for height, width in SHAPES))
    mass[0, 11 * 38 + 19] = 0.6  # a cell in the box
    mass[0, 1] = 0.1
    given = {
        "detections": Detections(
            torch.tensor([BOX]),
            torch.tensor([0.75]),
            torch.tensor([1]),
            torch.tensor([7]),
            classes=("cat", "dog"),
            category_ids=(1, 2),
        ),
        "num_others": 0,
        "missed": None,
        "size_wh": SIZE_WH,
        "input_size_wh": SIZE_WH,
        "spatial_shapes": SHAPES,
        "layers": (layer_of(1, effects=False), layer_of(2)),
        "dense_maps": (),
        "path_xyxy": torch.tensor([[BEFORE[1]], [BOX]]),
        "path_logits": torch.tensor([[0.5], [1.0986]]),
        "proposals": (Proposal(1, 5, 9),),
        "attended_queries": (torch.full((1, 11), 1 / 11),) * 2,
        "chained": ChainedMap(mass, torch.tensor([0.05]), torch.tensor([0.25]), SHAPES),
        "gradients": None,
        "gradient_kind": None,
    }
    return Explanation(**{**given, **changes})


def without_points(explanation):
    """Explanation of a DETR: maps of one level instead of points."""
    maps = torch.zeros(1, 2, 7, 10)
    maps[0, 0, 3, 4], maps[0, 1, 0, 0] = 1.0, 1.0
    return replace(
        explanation,
        layers=(),
        dense_maps=(maps, maps),
        proposals=(),
        spatial_shapes=((7, 10),),
    )
