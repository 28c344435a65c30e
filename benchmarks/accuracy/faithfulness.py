"""Faithfulness of pictures of where a detector looked: what becomes of a detection without the pixels they point at.

    python -m benchmarks.accuracy.faithfulness WEIGHTS --data bccd --detections 100

For detections that hit an object of the test split, every kind of map orders blocks of pixels. Deletion blurs the
blocks of the highest values first, insertion shows them first; what counts is the area under the curve of what is left
of the detection, the best of IoU times score of its class, as a share of that on the whole picture (after RISE, Petsiuk
et al., BMVC 2018, and D-RISE, Petsiuk et al., CVPR 2021). The pointing game asks whether the highest value lies in the
object's box, energy which share of the map does. Two maps know nothing of the model: a Gaussian in the detection's box,
and smoothed noise. The table goes to standard error; one line of JSON goes to standard output, last.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from benchmarks.report import aligned, machine, say
from deformable_detr.core.boxes import cxcywh_to_xyxy, overlap_ratio
from deformable_detr.core.types import DetectorOutput
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.images import load_image
from deformable_detr.data.open import open_dataset
from deformable_detr.data.preprocessing import to_model_input
from deformable_detr.inference.chained_map import ChainedMap, carried_back, carried_to_points, chained_map
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.pixel_gradients import pixel_gradients
from deformable_detr.inference.point_effects import last_layer_effects, last_layer_logits
from deformable_detr.inference.prepare import prepare
from deformable_detr.models.layers.recording import Recording, recording

FRACTIONS = (0.0, 0.01, 0.03, 0.06, 0.1, 0.16, 0.25, 0.4, 0.7, 1.0)
"""Shares of the blocks that are deleted, or shown."""
BASELINE = "Gaussian in the box (no model)"
BLOCK = 8
_BLUR_PX = 16.0
_SMOOTH_PX = 4.0
_HIT_IOU = 0.5
_PER_IMAGE = 3
_HEAD = ("map", "deletion", "insertion", "pointing", "energy", "deletion - box", "insertion - box")


class Hit(NamedTuple):
    """Detection that hits an object, in the pixels of what the network sees."""

    query: int
    class_id: int
    box_xyxy: Tensor
    truth_xyxy: Tensor


class Scores(NamedTuple):
    """Scores of one map of one detection."""

    deletion: float
    insertion: float
    pointing: float
    energy: float


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Pictures (..., height, width) smoothed by a Gaussian of this standard deviation, in pixels."""
    size = 2 * min(int(3 * sigma), (min(maps.shape[-2:]) - 1) // 2) + 1
    blurred: Tensor = gaussian_blur(maps, [size, size], [sigma, sigma])
    return blurred


def gaussian_in(box_xyxy: Tensor, height: int, width: int) -> Tensor:
    """Gaussian around the centre of a box, its standard deviations a quarter of the box's sides."""
    left, top, right, bottom = box_xyxy.tolist()
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    rows = torch.exp(-0.5 * ((y - (top + bottom) / 2) / max((bottom - top) / 4, 1)) ** 2)
    columns = torch.exp(-0.5 * ((x - (left + right) / 2) / max((right - left) / 4, 1)) ** 2)
    return rows[:, None] * columns


def maps_of(network: nn.Module, record: Recording, pixels: Tensor, hits: Sequence[Hit]) -> dict[str, Tensor]:
    """Maps (hits, height, width) of every kind, not negative."""
    assert record.memory is not None
    shapes, size_hw = record.memory.spatial_shapes, (pixels.shape[2], pixels.shape[3])
    queries = torch.tensor([hit.query for hit in hits])
    classes = torch.tensor([hit.class_id for hit in hits])
    nothing = torch.zeros(len(hits))

    def on_pixels(mass: Tensor) -> Tensor:
        return ChainedMap(mass, nothing, nothing, shapes).pixels(size_hw)

    calls = record.decoder or record.dense_decoder
    share = nn.functional.one_hot(queries, calls[0].query.shape[1]).float()
    each = [carried_back(call, share) for call in calls]
    maps = {"points of the last layer, by weight": on_pixels(each[-1])}
    maps["points of all decoder layers, by weight"] = on_pixels(torch.stack(each).mean(0))
    if record.decoder:
        decoder: Any = network.decoder
        last, own = record.decoder[-1], torch.eye(len(hits))
        locations = last.sampling_points(queries).locations[0]
        for label, effects in (
            ("points of the last layer, by effect", last_layer_effects(decoder, record, queries, classes)),
            ("points of the last layer, by first-order effect", first_order_effects(decoder, record, queries, classes)),
        ):
            maps[label] = on_pixels(carried_to_points(last, own, locations, effects.clamp(min=0)))
    maps["chained through decoder and encoder"] = on_pixels(chained_map(record, queries, shapes).mass)
    gradients = pixel_gradients(network, pixels, queries, classes)[:, 0]
    maps["gradient of the class logit, smoothed"] = smoothed(gradients, _SMOOTH_PX)
    maps[BASELINE] = torch.stack([gaussian_in(hit.box_xyxy, *size_hw) for hit in hits])
    noise = torch.rand(len(hits), *size_hw, generator=torch.Generator().manual_seed(0))
    maps["smoothed noise (no model)"] = smoothed(noise, _BLUR_PX)
    return maps


def first_order_effects(
    decoder: nn.Module, record: Recording, queries: Int[Tensor, "objects"], class_ids: Int[Tensor, "objects"]
) -> Float[Tensor, "objects heads levels points"]:
    """Tangents of the last layer's effects: each weight times the derivative of the class logit with respect to it.

    What a point of small weight does they say well, what one of large weight does badly: use `last_layer_effects`.

    Args:
        decoder: as for `last_layer_effects`.
        record: recording of one image.
        queries: query of each object.
        class_ids: class of each object.
    """
    weights = record.decoder[-1].sampling_points(queries).weights[0]
    with torch.enable_grad():
        leaf = weights[:, None].clone().requires_grad_(True)
        logits = last_layer_logits(decoder, record, queries, class_ids, leaf)
        (slope,) = torch.autograd.grad(logits.sum(), leaf)
    found: Tensor = weights * slope[:, 0]
    return found


def in_order(one: Tensor) -> Tensor:
    """Rank of every pixel's block, from 0 for the highest value to 1, (height, width)."""
    height, width = one.shape
    blocks = nn.functional.avg_pool2d(one[None, None], BLOCK, ceil_mode=True, count_include_pad=False)[0, 0]
    order = blocks.flatten().argsort(descending=True, stable=True)
    ranks = torch.empty(len(order))
    ranks[order] = torch.arange(len(order), dtype=torch.float32) / len(order)
    return ranks.view_as(blocks).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:height, :width]


def left_of(run: Callable[[Tensor], DetectorOutput], images: Tensor, hit: Hit) -> Tensor:
    """What is left of a detection on each image: the best product of IoU and score of its class over all queries."""
    height, width = images.shape[2:]
    final = run(images).final
    boxes = cxcywh_to_xyxy(final.boxes) * torch.tensor([width, height, width, height])
    overlaps = overlap_ratio(boxes, hit.box_xyxy)
    return (overlaps * final.logits[..., hit.class_id].sigmoid()).amax(1)


def area(values: Tensor) -> float:
    """Area under values at `FRACTIONS`, straight between them."""
    return float(torch.trapezoid(values, torch.tensor(FRACTIONS)))


def judge(run: Callable[[Tensor], DetectorOutput], pixels: Tensor, blurred: Tensor, one: Tensor, hit: Hit) -> Scores:
    """Scores of a map of a detection."""
    ranks = in_order(one)
    steps = torch.tensor(FRACTIONS)[:, None, None, None]
    chosen = ranks[None, None] < steps
    deleted, shown = torch.where(chosen, blurred, pixels), torch.where(chosen, pixels, blurred)
    left = left_of(run, torch.cat([deleted, shown]), hit)
    whole = left[0].clamp(min=1e-6)
    row, column = divmod(int(one.argmax()), one.shape[1])
    x1, y1, x2, y2 = hit.truth_xyxy.tolist()
    y, x = torch.arange(one.shape[0]) + 0.5, torch.arange(one.shape[1]) + 0.5
    within = ((y > y1) & (y < y2))[:, None] & ((x > x1) & (x < x2))
    return Scores(
        deletion=area(left[: len(FRACTIONS)] / whole),
        insertion=area(left[len(FRACTIONS) :] / whole),
        pointing=float(within[row, column]),
        energy=float((one * within).sum() / one.sum().clamp(min=1e-12)),
    )


def hits_of(output: DetectorOutput, truth_xyxy: Tensor, truth_classes: Tensor, size_wh: tuple[int, int]) -> list[Hit]:
    """Detections with a score of at least a half that hit an object of their class; at most three, best first.

    Args:
        output: predictions for one image.
        truth_xyxy: annotated boxes in pixels of the network's input.
        truth_classes: their classes.
        size_wh: width and height of the input.
    """
    final = output.final
    scores, classes = final.logits[0].sigmoid().max(-1)
    boxes = cxcywh_to_xyxy(final.boxes[0]) * torch.tensor([*size_wh, *size_wh])
    found = []
    for query in scores.argsort(descending=True).tolist():
        of_class = truth_classes == classes[query]
        if scores[query] < 0.5 or not of_class.any():
            continue
        overlaps = overlap_ratio(boxes[query], truth_xyxy[of_class])
        if overlaps.max() >= _HIT_IOU:
            found.append(Hit(query, int(classes[query]), boxes[query], truth_xyxy[of_class][overlaps.argmax()]))
    return found[:_PER_IMAGE]


def measure(detector: Detector, dataset: DetectionDataset, count: int) -> dict[str, list[Scores]]:
    """Scores of every kind of map, for at least `count` detections if the data set has as many hits."""
    network, fast = detector.model.eval(), prepare(detector.model)
    scores: dict[str, list[Scores]] = {}

    @torch.no_grad()
    def run(images: Tensor) -> DetectorOutput:
        output: DetectorOutput = fast(images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool))
        return output

    for sample in dataset.samples:
        pixels = to_model_input(load_image(sample.path), detector.preprocessing)[None]
        height, width = pixels.shape[2:]
        with torch.no_grad(), recording(network) as record:
            output = network(pixels, torch.zeros(1, height, width, dtype=torch.bool))
        scale = torch.tensor([width / sample.size_wh[0], height / sample.size_wh[1]]).repeat(2)
        real = ~torch.as_tensor(sample.is_crowd)
        truth = torch.as_tensor(sample.boxes_xyxy)[real].float() * scale
        hits = hits_of(output, truth, torch.as_tensor(sample.class_ids)[real], (width, height))
        if not hits:
            continue
        blurred = smoothed(pixels, _BLUR_PX)
        for label, maps in maps_of(network, record, pixels, hits).items():
            own = [judge(run, pixels, blurred, one, hit) for one, hit in zip(maps, hits, strict=True)]
            scores.setdefault(label, []).extend(own)
        done = len(scores[BASELINE])
        say(f"{done} detections")
        if done >= count:
            break
    return scores


def summary(scores: dict[str, list[Scores]]) -> dict[str, dict[str, Any]]:
    """Means of every kind of map, and its paired differences from the Gaussian in the box with standard errors."""
    base = scores[BASELINE]
    found: dict[str, dict[str, Any]] = {}
    for label, rows in scores.items():
        means = {name: statistics.mean(getattr(row, name) for row in rows) for name in Scores._fields}
        against = {}
        for name in ("deletion", "insertion"):
            pairs = [getattr(row, name) - getattr(other, name) for row, other in zip(rows, base, strict=True)]
            error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else 0.0
            against[name] = {"difference": statistics.mean(pairs), "standard_error": error}
        found[label] = {**means, "against_box": against}
    return found


def table(found: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table: deletion should be low, the others high."""
    rows: list[tuple[str, ...]] = []
    for label, one in found.items():
        against = [one["against_box"][name] for name in ("deletion", "insertion")]
        rows.append(
            (
                label,
                *(f"{one[name]:.3f}" for name in Scores._fields),
                *(f"{pair['difference']:+.3f} ± {pair['standard_error']:.3f}" for pair in against),
            )
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, then the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a trained detector")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--detections", type=int, default=100, help="at least so many, if there are as many hits")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    detector = Detector.load(given.weights, device="cpu")
    scores = measure(detector, open_dataset(given.data, split=given.split), given.detections)
    if not scores:
        raise SystemExit(f"{given.weights} hits nothing in the {given.split} split of {given.data}")
    found = summary(scores)
    say(aligned(_HEAD, table(found)))
    number = len(scores[BASELINE])
    record = {"benchmark": "faithfulness", **machine("cpu"), "data": given.data.name, "detections": number}
    print(json.dumps({**record, "maps": found}))


if __name__ == "__main__":
    main()
