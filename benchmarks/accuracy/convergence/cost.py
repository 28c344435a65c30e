"""Cost of dense and of deformable attention as pictures grow: multiply-adds and CPU time of encoder and decoder.

    python -m benchmarks.accuracy.convergence.cost

Five sizes of pictures. Deformable DETR has the tokens of strides 8, 16, 32 and 64; DETR those of stride 32, those of
stride 16 (DC5), and, to compare the attention alone, as many as Deformable DETR has, up to 20,000. Tokens are random,
there is no backbone. Multiply-adds are counted by the formulas of the layers; those of a bilinear sample are four for
each channel. Times are medians on one thread. Of our decoder, the sampling and the projection of the values are timed
and counted apart, too: the first does not depend on the size of the picture, the second is linear in it. The exponent p
of a growth with the number of tokens, cost ~ tokens^p, is the slope of a least-squares line through the logarithms. One
line of JSON goes to standard output, last.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.accuracy.convergence.significance import exponent
from benchmarks.report import aligned, machine, say
from deformable_detr.core.types import Memory, SpatialShapes
from deformable_detr.models import DETR, DeformableDETR, DeformableDETRConfig, DETRConfig, build, build_detr
from deformable_detr.models.layers.decoder import DecoderLayer
from deformable_detr.ops import multi_scale_deformable_attention_from_projection

SIZES_HW = ((128, 160), (256, 320), (512, 640), (640, 800), (864, 1120))
"""Height and width of the pictures, in pixels."""
LEVELS = 4
POINTS = 4
_CLASSES = 3


class Shape(NamedTuple):
    """Sizes of the networks."""

    dim: int = 128
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 3
    ffn: int = 512
    queries: int = 100


class Cost(NamedTuple):
    """Cost of one part at one number of tokens."""

    part: str
    tokens: int
    multiply_adds: int
    seconds: float


def pyramid_shapes(size_hw: tuple[int, int]) -> SpatialShapes:
    """Height and width of the levels of strides 8, 16, 32 and 64; each rounds up from the one before."""
    height, width = (-(-side // 8) for side in size_hw)
    shapes = [(height, width)]
    for _ in range(LEVELS - 1):
        height, width = -(-height // 2), -(-width // 2)
        shapes.append((height, width))
    return tuple(shapes)


def map_shape(size_hw: tuple[int, int], stride: int) -> SpatialShapes:
    """Height and width of one map of this stride."""
    return ((-(-size_hw[0] // stride), -(-size_hw[1] // stride)),)


def count(shapes: SpatialShapes) -> int:
    """Number of tokens."""
    return sum(height * width for height, width in shapes)


def dense_encoder(shape: Shape, tokens: int) -> int:
    """Multiply-adds of DETR's encoder: projections, the two products of all pairs of tokens, feed-forward."""
    layer = 4 * tokens * shape.dim**2 + 2 * tokens**2 * shape.dim + 2 * tokens * shape.dim * shape.ffn
    return shape.encoder_layers * layer


def deformable_encoder(shape: Shape, tokens: int) -> int:
    """Multiply-adds of Deformable DETR's encoder: values, offsets and weights, samples, output, feed-forward."""
    layer = tokens * shape.dim**2 + _deformable_queries(shape, tokens) + 2 * tokens * shape.dim * shape.ffn
    return shape.encoder_layers * layer


def dense_decoder(shape: Shape, tokens: int) -> int:
    """Multiply-adds of DETR's decoder with its heads, which predict after every layer."""
    across = 2 * shape.queries * shape.dim**2 + 2 * tokens * shape.dim**2 + 2 * shape.queries * tokens * shape.dim
    return shape.decoder_layers * (across + _queries(shape, _CLASSES + 1))


def deformable_decoder(shape: Shape, tokens: int) -> int:
    """Multiply-adds of Deformable DETR's decoder with its heads."""
    own = _deformable_queries(shape, shape.queries) + _queries(shape, _CLASSES)
    return values(shape, tokens) + shape.decoder_layers * own


def values(shape: Shape, tokens: int) -> int:
    """Multiply-adds of the projections of the values in Deformable DETR's decoder."""
    return shape.decoder_layers * tokens * shape.dim**2


def sampling(shape: Shape) -> int:
    """Multiply-adds of the samples in Deformable DETR's decoder."""
    return shape.decoder_layers * 4 * shape.queries * LEVELS * POINTS * shape.dim


def _deformable_queries(shape: Shape, queries: int) -> int:
    """Attention of one layer for so many queries: offsets and weights, samples, output; without the values."""
    samples = LEVELS * POINTS
    predicted = queries * shape.dim * 3 * shape.heads * samples
    return predicted + 4 * queries * samples * shape.dim + queries * shape.dim**2


def _queries(shape: Shape, rows: int) -> int:
    """Self-attention among queries, feed-forward, and heads with so many rows for classes, of one layer."""
    number, dim = shape.queries, shape.dim
    among = 4 * number * dim**2 + 2 * number**2 * dim
    return among + 2 * number * dim * shape.ffn + number * dim * rows + number * (2 * dim**2 + 4 * dim)


def networks(shape: Shape) -> tuple[DETR, DeformableDETR]:
    """Both networks; their backbones are not used."""
    common: dict[str, Any] = {
        "num_classes": _CLASSES,
        "backbone": "test_resnet",
        "backbone_weights": "none",
        "frozen_stages": 0,
        "frozen_batch_norm": False,
        "hidden_dim": shape.dim,
        "num_heads": shape.heads,
        "dropout": 0.0,
        "encoder_layers": shape.encoder_layers,
        "decoder_layers": shape.decoder_layers,
        "ffn_dim": shape.ffn,
        "num_queries": shape.queries,
    }
    torch.manual_seed(0)
    dense = build_detr(DETRConfig(**common))
    ours = build(DeformableDETRConfig(**common, num_levels=LEVELS, encoder_points=POINTS, decoder_points=POINTS))
    assert isinstance(dense, DETR)
    assert isinstance(ours, DeformableDETR)
    return dense.eval(), ours.eval()


def memory_of(shapes: SpatialShapes, dim: int) -> Memory:
    """Random tokens of one picture without padding."""
    generator = torch.Generator().manual_seed(1)
    tokens = count(shapes)
    return Memory(
        tokens=torch.randn(1, tokens, dim, generator=generator),
        position=torch.randn(1, tokens, dim, generator=generator),
        padding_mask=torch.zeros(1, tokens, dtype=torch.bool),
        valid_ratios=torch.ones(1, len(shapes), 2),
        spatial_shapes=shapes,
    )


def timed(call: Callable[[], object], seconds: float, fewest: int = 3) -> float:
    """Median CPU seconds of a call, of at least three."""
    call()
    found: list[float] = []
    while len(found) < fewest or sum(found) < seconds:
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return statistics.median(found)


def dense_costs(model: DETR, shape: Shape, shapes: SpatialShapes, name: str, seconds: float) -> list[Cost]:
    """Encoder and decoder of DETR at these tokens."""
    memory = memory_of(shapes, shape.dim)
    tokens, queries = count(shapes), model.queries.weight
    return [
        Cost(f"encoder, {name}", tokens, dense_encoder(shape, tokens), timed(lambda: model.encoder(memory), seconds)),
        Cost(
            f"decoder, {name}",
            tokens,
            dense_decoder(shape, tokens),
            timed(lambda: model.decoder(queries, memory), seconds),
        ),
    ]


def deformable_costs(model: DeformableDETR, shape: Shape, shapes: SpatialShapes, seconds: float) -> list[Cost]:
    """Encoder and decoder of Deformable DETR at these tokens, and two parts of the decoder."""
    memory = memory_of(shapes, shape.dim)
    tokens, name = count(shapes), "Deformable DETR"
    queries, _ = model.query_source(memory)
    layers = [layer.cross_attention for layer in model.decoder.layers if isinstance(layer, DecoderLayer)]
    projections: list[nn.Linear] = [layer.value_proj for layer in layers]
    value = memory.tokens.unflatten(-1, (shape.heads, -1))
    reference = queries.reference[:, :, None].expand(-1, -1, LEVELS, -1)
    offsets = torch.randn(
        1, shape.queries, 3 * shape.heads * LEVELS * POINTS, generator=torch.Generator().manual_seed(2)
    )

    def sample() -> list[Tensor]:
        return [
            multi_scale_deformable_attention_from_projection(value, shapes, reference, offsets, num_points=POINTS)
            for _ in layers
        ]

    calls: dict[str, tuple[int, Callable[[], object]]] = {
        f"encoder, {name}": (deformable_encoder(shape, tokens), lambda: model.encoder(memory)),
        f"decoder, {name}": (deformable_decoder(shape, tokens), lambda: model.decoder(queries, memory)),
        "decoder, values alone": (values(shape, tokens), lambda: [project(memory.tokens) for project in projections]),
        "decoder, samples alone": (sampling(shape), sample),
    }
    return [Cost(part, tokens, number, timed(call, seconds)) for part, (number, call) in calls.items()]


@torch.no_grad()
def measure(sizes_hw: Sequence[tuple[int, int]], shape: Shape, seconds: float) -> dict[tuple[int, int], list[Cost]]:
    """Costs of all parts by size of the picture."""
    dense, ours = networks(shape)
    found: dict[tuple[int, int], list[Cost]] = {}
    for size_hw in sizes_hw:
        shapes = pyramid_shapes(size_hw)
        own = deformable_costs(ours, shape, shapes, seconds)
        for stride, name in ((32, "DETR"), (16, "DETR-DC5")):
            own += dense_costs(dense, shape, map_shape(size_hw, stride), name, seconds)
        own += dense_costs(dense, shape, ((1, count(shapes)),), "DETR, as many tokens", seconds)
        found[size_hw] = own
        say(f"{size_hw[1]} x {size_hw[0]} done")
    return found


def growth(found: dict[tuple[int, int], list[Cost]]) -> dict[str, dict[str, float]]:
    """Exponents of multiply-adds and of seconds with the number of tokens, by part."""
    by_part: dict[str, list[Cost]] = {}
    for costs in found.values():
        for one in costs:
            by_part.setdefault(one.part, []).append(one)
    return {
        part: {
            "multiply_adds": exponent([one.tokens for one in own], [one.multiply_adds for one in own]),
            "seconds": exponent([one.tokens for one in own], [one.seconds for one in own]),
        }
        for part, own in by_part.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for the timing of each part at each size")
    parser.add_argument("--sizes", type=int, default=len(SIZES_HW), choices=range(2, len(SIZES_HW) + 1))
    parser.add_argument("--hidden-dim", type=int, default=Shape().dim)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = Shape(dim=given.hidden_dim)
    found = measure(SIZES_HW[: given.sizes], shape, given.seconds)
    rows = [
        (
            f"{width} x {height}",
            one.part,
            str(one.tokens),
            f"{one.multiply_adds / 1e6:.1f}",
            f"{1000 * one.seconds:.2f}",
        )
        for (height, width), costs in found.items()
        for one in costs
    ]
    say(aligned(("picture", "part", "tokens", "million multiply-adds", "median ms"), rows))
    exponents = growth(found)
    say(
        aligned(
            ("cost ~ tokens^p", "p of multiply-adds", "p of seconds"),
            [(part, f"{one['multiply_adds']:.2f}", f"{one['seconds']:.2f}") for part, one in exponents.items()],
        )
    )
    costs = [{"size_hw": size_hw, **one._asdict()} for size_hw, own in found.items() for one in own]
    print(json.dumps({"shape": shape._asdict(), "costs": costs, "exponents": exponents, **machine("cpu")}))


if __name__ == "__main__":
    main()
