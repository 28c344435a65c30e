"""Values that cross module boundaries. Names, axes and ranges follow the glossary in docs/conventions.md."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

SpatialShapes = tuple[tuple[int, int], ...]
"""(height, width) of each level, finest first, as Python ints."""


class Memory(NamedTuple):
    """Encoder features: one token per position, levels one after another, each level row by row."""

    tokens: Float[Tensor, "batch positions dim"]
    """Features of each position."""
    position: Float[Tensor, "batch positions dim"]
    """Position embedding: sine plus level embedding (section 4.1), added to queries and never to values."""
    padding_mask: Bool[Tensor, "batch positions"]
    """Mask of the positions: True = padding."""
    valid_ratios: Float[Tensor, "batch levels 2"]
    """Share of each map that is image, as (w, h) in 0..1."""
    spatial_shapes: SpatialShapes
    """(height, width) of each level, finest first."""


class Queries(NamedTuple):
    """Decoder queries: content, position embedding, and the reference that each one looks from first."""

    content: Float[Tensor, "batch queries dim"]
    """Features of each query, which the decoder layers update."""
    position: Float[Tensor, "batch queries dim"] | None
    """Position embedding of each query, added in every attention; None if the decoder computes it from the reference
    before every layer."""
    reference: Float[Tensor, "batch queries 2"] | Float[Tensor, "batch queries 4"]
    """Reference point (x, y) or reference box cxcywh, in 0..1 of the image without its padding."""
    attention_mask: Bool[Tensor, "queries queries"] | None = None
    """Mask of the self-attention: True where a query (row) cannot see another (column); None if all see each other."""


class Predictions(NamedTuple):
    """Class logits and boxes of one decoder layer, or of the first stage."""

    logits: Float[Tensor, "batch predictions classes"]
    """Class scores before the sigmoid; there is no background class."""
    boxes: Float[Tensor, "batch predictions 4"]
    """Boxes cxcywh in 0..1 of the image without its padding."""


class Denoised(NamedTuple):
    """Predictions of every decoder layer for noisy copies of the objects, in slots, and the objects behind them."""

    layers: list[Predictions]
    """Predictions of each decoder layer, first layer first, one for each slot."""
    objects: Int[Tensor, "batch slots"]
    """Position in the image's target of the object that a slot should predict; -1 where it should predict that there
    is nothing. On the CPU."""
    num_groups: int
    """Number of groups: copies of each object that should be predicted."""


class DetectorOutput(NamedTuple):
    """Predictions of every decoder layer, the proposals if there is a first stage, and denoised objects in training."""

    layers: list[Predictions]
    """Predictions of each decoder layer, first layer first; the last ones are the answer."""
    proposals: Predictions | None
    """Predictions of the first stage that training supervises; None if the model has one stage only."""
    denoising: Denoised | None = None
    """Predictions for noisy copies of the objects; None except in training with denoising."""

    @property
    def final(self) -> Predictions:
        """Predictions of the last decoder layer."""
        return self.layers[-1]


class Target(NamedTuple):
    """Ground truth of one image: class ids, and boxes cxcywh in 0..1 of the image without padding.

    The last two values are for denoising in training, so that noise depends neither on the other images of a batch nor
    on the number of processes.
    """

    labels: Int[Tensor, "objects"]
    """Class ids, from 0."""
    boxes: Float[Tensor, "objects 4"]
    """Boxes cxcywh in 0..1 of the image without its padding."""
    noise_seed: int | None = None
    """Seed of the noise on this image's objects; with None it comes from PyTorch's global random generator."""
    most_objects: int | None = None
    """Largest number of objects in an image of the whole step, over all processes and parts; with None that of the
    images that go through the network together."""


class Batch(NamedTuple):
    """Images padded with zeros at the right and bottom to the largest height and width among them."""

    images: Float[Tensor, "batch 3 height width"]
    padding_mask: Bool[Tensor, "batch height width"]
    """Mask of the pixels: True = padding."""
    targets: list[Target]
    """Ground truth of each image."""
    sample_indices: list[int]
    """Position of each image in its data set."""
    original_sizes_wh: list[tuple[int, int]]
    """Size (width, height) of each image before any transform, in pixels."""
