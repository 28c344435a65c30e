"""Values that cross module boundaries. Names, axes and ranges follow the glossary in docs/conventions.md."""

from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

SpatialShapes = tuple[tuple[int, int], ...]
"""(height, width) of each level, finest first, as Python ints."""

ClassScores = Literal["sigmoid", "softmax"]
"""Way from logits to class scores: "sigmoid", each class for itself; "softmax", over the classes and, as last, no
object."""


class Memory(NamedTuple):
    """Encoder features: one token per position, levels one after another, each level row by row."""

    tokens: Float[Tensor, "batch positions dim"]
    """Features of each position."""
    position: Float[Tensor, "batch positions dim"]
    """Position embedding: sine plus level embedding (section 4.1), added to queries and never to values. DETR adds its
    embedding to keys, too."""
    padding_mask: Bool[Tensor, "batch positions"]
    """Mask of the positions: True = padding."""
    valid_ratios: Float[Tensor, "batch levels 2"]
    """Share of each map that is image, as (w, h) in 0..1."""
    spatial_shapes: SpatialShapes
    """(height, width) of each level, finest first."""


class Branches(NamedTuple):
    """Branches of queries in training, of which only the first answers; see `models.layers.branches`."""

    sizes: tuple[int, ...]
    """Number of queries in each branch, in the order of the queries."""
    repeats: int
    """Number of queries of the second branch that each object is matched to, above 1 (H-DETR); 1 means that all
    branches are groups, each matched once (Group DETR)."""


class Queries(NamedTuple):
    """Decoder queries: content, position embedding, and the reference that each one looks from first."""

    content: Float[Tensor, "batch queries dim"]
    """Features of each query, which the decoder layers update."""
    position: Float[Tensor, "batch queries dim"] | None
    """Position embedding of each query, added in every attention; None if the decoder computes it from the reference
    before every layer."""
    reference: Float[Tensor, "batch queries 2"] | Float[Tensor, "batch queries 4"]
    """Reference point (x, y) or reference box cxcywh, in 0..1 of the image without its padding."""
    branches: Branches | None = None
    """Branches that the queries fall into, after those of denoising; None if all of them answer."""
    attention_mask: Bool[Tensor, "queries queries"] | None = None
    """Mask of the self-attention: True where a query (row) cannot see another (column); None if all see each other."""
    positions: Int[Tensor, "batch queries"] | None = None
    """Position in the memory whose proposal became each query; None for learned queries, and with denoising."""


class Predictions(NamedTuple):
    """Class logits and boxes of one decoder layer, or of the first stage."""

    logits: Float[Tensor, "batch predictions classes"]
    """Class scores before the sigmoid, without a background class; or before the softmax of DETR, whose last class is
    "no object" (see `ClassScores`)."""
    boxes: Float[Tensor, "batch predictions 4"]
    """Boxes cxcywh in 0..1 of the image without its padding."""


class GroupPredictions(NamedTuple):
    """Predictions of a further group of queries, which is matched for itself (Group DETR)."""

    layers: list[Predictions]
    """Predictions of each decoder layer, first layer first."""
    proposals: Predictions | None
    """Predictions of the first stage for this group; None if the model has one stage only."""


class OneToManyPredictions(NamedTuple):
    """Predictions of queries of which several are matched to every object (H-DETR)."""

    layers: list[Predictions]
    """Predictions of each decoder layer, first layer first."""
    repeats: int
    """Number of queries that each object is matched to, above 1."""


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
    groups: tuple[GroupPredictions, ...] = ()
    """Predictions of further groups of queries, in training only."""
    one_to_many: OneToManyPredictions | None = None
    """Predictions of queries that are matched several to one, in training only; None if there are none."""
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
