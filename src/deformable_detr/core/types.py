"""Values that cross module boundaries. Names, axes and ranges follow the glossary in docs/conventions.md."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

SpatialShapes = tuple[tuple[int, int], ...]
"""(height, width) of each level, finest first, as Python ints."""


class Memory(NamedTuple):
    """What the encoder knows: one token per position, levels concatenated, each level row by row."""

    tokens: Float[Tensor, "batch positions dim"]
    position: Float[Tensor, "batch positions dim"]
    """Sine embedding plus level embedding, added to queries and never to values."""
    padding_mask: Bool[Tensor, "batch positions"]
    """True = padding."""
    valid_ratios: Float[Tensor, "batch levels 2"]
    """Share of each map that is image, as (w, h) in 0..1."""
    spatial_shapes: SpatialShapes


class Queries(NamedTuple):
    """Decoder slots: what each one is, where it sits, and where it first looks."""

    content: Float[Tensor, "batch queries dim"]
    position: Float[Tensor, "batch queries dim"]
    reference: Float[Tensor, "batch queries 2"] | Float[Tensor, "batch queries 4"]
    """A point (x, y) or a box cxcywh, in 0..1 of the image without its padding."""


class Predictions(NamedTuple):
    """Class scores before the sigmoid, no background class; boxes cxcywh in 0..1 of the image without padding."""

    logits: Float[Tensor, "batch predictions classes"]
    boxes: Float[Tensor, "batch predictions 4"]


class DetectorOutput(NamedTuple):
    """One `Predictions` per decoder layer, the last being the answer, and the proposals if there is a first stage."""

    layers: list[Predictions]
    proposals: Predictions | None

    @property
    def final(self) -> Predictions:
        """The last decoder layer's predictions."""
        return self.layers[-1]


class Target(NamedTuple):
    """Ground truth of one image: class ids, and boxes cxcywh in 0..1 of the image without padding."""

    labels: Int[Tensor, "objects"]
    boxes: Float[Tensor, "objects 4"]


class Batch(NamedTuple):
    """Images padded with zeros at the right and bottom to the largest height and width among them."""

    images: Float[Tensor, "batch 3 height width"]
    padding_mask: Bool[Tensor, "batch height width"]
    """True = padding."""
    targets: list[Target]
    sample_indices: list[int]
    """Position of each image in its data set."""
    original_sizes_wh: list[tuple[int, int]]
    """Size of each image before any transform, in pixels."""
