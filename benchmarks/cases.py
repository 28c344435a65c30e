"""Named cases of the benchmarks: sizes that occur in real runs."""

from typing import NamedTuple

from deformable_detr.models import DeformableDETRConfig
from deformable_detr.runs.config import TrainConfig

Sizes = tuple[tuple[int, int], ...]


class OperatorCase(NamedTuple):
    """Case of the operator on one image."""

    spatial_shapes: Sizes
    """Height and width of each level, in positions."""
    queries: int | None
    """Number of queries; None for one query at every position, as in the encoder."""
    heads: int
    """Number of heads."""
    head_dim: int
    """Channels of each head."""
    points: int
    """Points for each query, head and level."""

    @property
    def num_positions(self) -> int:
        """Number of positions over all levels."""
        return sum(height * width for height, width in self.spatial_shapes)

    @property
    def num_queries(self) -> int:
        """Number of queries of each image."""
        return self.num_positions if self.queries is None else self.queries

    @property
    def num_samples(self) -> int:
        """Number of samples of each image, over all queries, heads, levels and points."""
        return self.num_queries * self.heads * len(self.spatial_shapes) * self.points


class StepCase(NamedTuple):
    """Case of a training step with the settings of a recipe, on images of one size."""

    recipe: str
    """Name of the recipe."""
    batch: int
    """Images per step."""
    size_hw: tuple[int, int]
    """Height and width of the images, in pixels."""
    objects: int
    """Objects in each image."""
    classes: int
    """Number of classes."""


class ModelCase(NamedTuple):
    """Case of a whole model: inference on one image, and training on a batch."""

    inference_hw: tuple[int, int]
    """Height and width of the image for inference, in pixels."""
    training_hw: tuple[int, int]
    """Height and width of the training images, in pixels."""
    batch: int
    """Training images per step."""
    objects: int
    """Objects in each training image."""
    settings: dict[str, str | int]
    """Settings that differ from the paper's base model, by name."""


# Levels of an image of 800 x 1333 at strides 8, 16, 32 and 64, of one of 640 x 640, and of one of 256 x 341.
_FULL = ((100, 167), (50, 84), (25, 42), (13, 21))
_640 = ((80, 80), (40, 40), (20, 20), (10, 10))
_SMALL = ((32, 43), (16, 22), (8, 11), (4, 6))

OPERATOR_CASES = {
    "encoder_800x1333": OperatorCase(_FULL, None, heads=8, head_dim=32, points=4),
    "decoder_300": OperatorCase(_FULL, 300, heads=8, head_dim=32, points=4),
    "decoder_900": OperatorCase(_FULL, 900, heads=8, head_dim=32, points=4),
    "encoder_640": OperatorCase(_640, None, heads=8, head_dim=32, points=4),
    "rtdetr_640": OperatorCase(_640[:3], 300, heads=8, head_dim=32, points=4),
    "small_encoder_256x341": OperatorCase(_SMALL, None, heads=4, head_dim=32, points=4),
    "small_decoder_100": OperatorCase(_SMALL, 100, heads=4, head_dim=32, points=4),
    "tiny_encoder": OperatorCase(((7, 5), (4, 3)), None, heads=3, head_dim=8, points=2),
    "tiny_decoder": OperatorCase(((7, 5), (4, 3)), 11, heads=3, head_dim=8, points=2),
}

STEP_CASES = {
    "small_256x341": StepCase("small", 4, (256, 341), objects=12, classes=3),
    "demo_144x192": StepCase("demo", 8, (144, 192), objects=4, classes=6),
    "tiny": StepCase("demo", 2, (64, 96), objects=3, classes=2),
}

MODEL_CASES = {
    "paper_r50": ModelCase((800, 1333), (480, 640), batch=2, objects=7, settings={}),
    "tiny": ModelCase(
        (64, 96),
        (48, 80),
        batch=2,
        objects=3,
        settings={"backbone": "resnet10t", "encoder_layers": 1, "decoder_layers": 2, "hidden_dim": 32, "ffn_dim": 48},
    ),
}

ONLY_WHEN_NAMED = ("tiny", "tiny_encoder", "tiny_decoder")
"""Cases that test the benchmarks themselves; they run only if they are named."""


def deformable(config: TrainConfig) -> DeformableDETRConfig:
    """Settings of the network of one of our recipes, which is always a Deformable DETR."""
    assert isinstance(config.model, DeformableDETRConfig)
    return config.model
