"""Named cases: sizes that occur in real runs. A figure without the name of its case means nothing."""

from typing import NamedTuple

Sizes = tuple[tuple[int, int], ...]


class OperatorCase(NamedTuple):
    """One call of the operator; `queries` None means every position asks, as in the encoder."""

    batch: int
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


class StepCase(NamedTuple):
    """One training step of a recipe: images of one size, so many objects in each."""

    recipe: str
    batch: int
    size_hw: tuple[int, int]
    objects: int
    classes: int


# Levels of strides 8, 16, 32 and 64 for an image of that size.
_FULL = ((100, 134), (50, 67), (25, 34), (13, 17))
_SMALL = ((32, 43), (16, 22), (8, 11), (4, 6))

OPERATOR_CASES = {
    "encoder_800x1066": OperatorCase(1, _FULL, None, heads=8, head_dim=32, points=4),
    "decoder_300": OperatorCase(1, _FULL, 300, heads=8, head_dim=32, points=4),
    "small_encoder_256x341": OperatorCase(4, _SMALL, None, heads=4, head_dim=32, points=4),
    "small_decoder_100": OperatorCase(4, _SMALL, 100, heads=4, head_dim=32, points=4),
    "tiny": OperatorCase(2, ((7, 5), (4, 3)), 11, heads=3, head_dim=8, points=2),
}

STEP_CASES = {
    "small_256x341": StepCase("small", 4, (256, 341), objects=12, classes=3),
    "demo_144x192": StepCase("demo", 8, (144, 192), objects=4, classes=6),
    "tiny": StepCase("demo", 2, (64, 96), objects=3, classes=2),
}

ONLY_WHEN_NAMED = ("tiny",)
"""Cases that check the benchmarks themselves; they run only if they are asked for."""
