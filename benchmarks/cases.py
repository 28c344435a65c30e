"""Named cases: sizes that occur in real runs. A figure without the name of its case means nothing."""

from typing import NamedTuple

from deformable_detr.models import DeformableDETRConfig
from deformable_detr.runs.config import TrainConfig

Sizes = tuple[tuple[int, int], ...]


class OperatorCase(NamedTuple):
    """One call of the operator for each image; `queries` None means every position asks, as in the encoder."""

    spatial_shapes: Sizes
    queries: int | None
    heads: int
    head_dim: int
    points: int

    @property
    def num_positions(self) -> int:
        """Over all levels."""
        return sum(height * width for height, width in self.spatial_shapes)

    @property
    def num_queries(self) -> int:
        """Of each image."""
        return self.num_positions if self.queries is None else self.queries

    @property
    def num_samples(self) -> int:
        """Of each image, over all queries and heads."""
        return self.num_queries * self.heads * len(self.spatial_shapes) * self.points


class StepCase(NamedTuple):
    """One training step of a recipe: images of one size, so many objects in each."""

    recipe: str
    batch: int
    size_hw: tuple[int, int]
    objects: int
    classes: int


class ModelCase(NamedTuple):
    """A whole model: one image to look at, and a batch with so many objects in each image to learn from."""

    inference_hw: tuple[int, int]
    training_hw: tuple[int, int]
    batch: int
    objects: int
    settings: dict[str, str | int]
    """What differs from the paper's base model."""


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
"""Cases that check the benchmarks themselves; they run only if they are asked for."""


def deformable(config: TrainConfig) -> DeformableDETRConfig:
    """Settings of the network of a recipe of ours, all of which are of one class."""
    assert isinstance(config.model, DeformableDETRConfig)
    return config.model
