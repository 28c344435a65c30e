"""Explaining detections: why the network found what it found, and what it made of a place where it found nothing."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deformable_detr.core.boxes import cxcywh_to_xyxy
from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import DetectorOutput, SpatialShapes
from deformable_detr.data.preprocessing import to_model_input
from deformable_detr.inference.chained_map import chained_map
from deformable_detr.inference.detector import DEFAULT_THRESHOLD, Detector, check_numbers
from deformable_detr.inference.explanation import Explanation, LayerPoints, Proposal
from deformable_detr.inference.missed import nearest_query, smallest_at
from deformable_detr.inference.pictures import ImageLike, picture_of
from deformable_detr.inference.pixel_gradients import GradientKind, pixel_gradients
from deformable_detr.inference.point_effects import effects_by_reruns, last_layer_effects
from deformable_detr.models.interface import class_scores_of
from deformable_detr.models.layers.recording import Recording, recording
from deformable_detr.models.postprocess import to_detections

MOST_EXPLAINED = 20
"""Most detections that one explanation holds: with six layers of 128 points each, one takes 25 kB as JSON."""


def explain(
    detector: Detector,
    image: ImageLike,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    most: int = 5,
    at: tuple[float, float] | None = None,
    effects: Literal["last", "all", "none"] = "last",
    gradients: GradientKind | None = None,
) -> Explanation:
    """Explanation of the best detections in an image: where the network looked for them, and what that did.

    The sampling points are those that the network really used: features that no point touches, it did not read in that
    layer. A point reads four cells of a map, and each cell has seen more of the image through backbone and encoder. The
    weight of a point is not its importance, which `effects` measures. The network computes in float32, as it is.

    Args:
        detector: detector whose network has attention layers of this package.
        image: one image of any kind (see `ImageLike`).
        threshold: lowest score of the detections, in 0..1.
        most: largest number of detections that are explained, best first; at most 20.
        at: (x, y) in pixels of the image as displayed: only the smallest detection whose box holds this place, or if
            there is none, the query that came nearest, whatever its score (see `missed`).
        effects: decoder layers whose points are left out one by one, to see what each does to the class logit: the
            last, all (the decoder then runs again for each point of the others), or none.
        gradients: also take gradients in the pixels: "direct" or "total", see `pixel_gradients`.

    Raises:
        DataError: the image cannot be read.
        CheckpointError: the network's predictions are no numbers.
        ConfigError: the network has no attention layers of this package, or `most` or `at` are out of range.
    """
    if not 1 <= most <= MOST_EXPLAINED:
        raise ConfigError(f"{most} detections are to be explained; it must be 1 to {MOST_EXPLAINED}")
    picture = picture_of(image)
    width, height = picture.size
    if at is not None and not (0 <= at[0] <= width and 0 <= at[1] <= height):
        raise ConfigError(f"the place {at[0]:g},{at[1]:g} is outside the image, which has {width} x {height} pixels")
    network = detector.model.eval()
    pixels = to_model_input(picture, detector.preprocessing)[None].to(detector.device)
    no_padding = torch.zeros((1, *pixels.shape[2:]), dtype=torch.bool, device=pixels.device)
    with torch.no_grad(), recording(network) as record:
        output = network(pixels, no_padding)
    if not (record.decoder or record.dense_decoder):
        raise ConfigError(
            f"a {type(network).__name__} cannot be explained: it has no decoder layer of this package, whose attention "
            "could be read"
        )
    if record.memory is None or not hasattr(getattr(network, "decoder", None), "layers"):
        raise ConfigError(
            f"a {type(network).__name__} cannot be explained: its decoder layers are not in a decoder of this package "
            "that is named `decoder`"
        )
    check_numbers(output.final)
    found = _detections(detector, output, picture.size, threshold)
    chosen, missed = found[:most], None
    if at is not None:
        chosen = smallest_at(found, at)
        if not len(chosen):
            every = _detections(detector, output, picture.size, 0.0, best_class_alone=True)
            chosen, missed = nearest_query(every, found, at, threshold)
    queries, class_ids = chosen.query_ids.to(pixels.device), chosen.class_ids.to(pixels.device)
    shapes = record.memory.spatial_shapes
    layers = tuple(
        _layer_points(record, network, index, queries, class_ids, picture.size, effects)
        for index in range(len(record.decoder))
    )
    taken = None if gradients is None else pixel_gradients(network, pixels, queries, class_ids, kind=gradients).cpu()
    chained = chained_map(record, queries, shapes)
    return Explanation(
        detections=chosen,
        num_others=len(found) if missed is not None else len(found) - len(chosen),
        missed=missed,
        size_wh=picture.size,
        input_size_wh=(pixels.shape[3], pixels.shape[2]),
        spatial_shapes=shapes,
        layers=layers,
        dense_maps=tuple(
            call.weights(queries)[0].transpose(0, 1).unflatten(-1, shapes[0]).cpu() for call in record.dense_decoder
        ),
        path_xyxy=torch.stack([_to_pixels(layer.boxes[0, queries], picture.size) for layer in output.layers]),
        path_logits=torch.stack([layer.logits[0, queries, class_ids] for layer in output.layers]).cpu(),
        proposals=_origins(record, queries, shapes),
        attended_queries=tuple(call.weights(queries)[0].mean(0).cpu() for call in record.self_attention),
        chained=chained._replace(mass=chained.mass.cpu(), outside=chained.outside.cpu(), residue=chained.residue.cpu()),
        gradients=taken,
        gradient_kind=gradients,
    )


def _detections(
    detector: Detector,
    output: DetectorOutput,
    size_wh: tuple[int, int],
    threshold: float,
    *,
    best_class_alone: bool = False,
) -> Detections:
    """Detections of the only image, or every query with its best class, best score first."""
    final = output.final
    scores = class_scores_of(detector.model)
    if best_class_alone and scores == "sigmoid":
        best = final.logits.argmax(-1, keepdim=True)
        others = torch.full_like(final.logits, -torch.inf)
        final = final._replace(logits=others.scatter(-1, best, final.logits.gather(-1, best)))
    most = final.logits.shape[1] if best_class_alone else detector.max_detections
    (found,) = to_detections(final, [size_wh], max_detections=most, threshold=threshold, class_scores=scores)
    return found.cpu().with_classes(detector.classes, detector.category_ids)


@torch.no_grad()
def _layer_points(
    record: Recording,
    network: nn.Module,
    index: int,
    queries: Int[Tensor, "objects"],
    class_ids: Int[Tensor, "objects"],
    size_wh: tuple[int, int],
    effects: Literal["last", "all", "none"],
) -> LayerPoints:
    call = record.decoder[index]
    locations, every = (part[0] for part in call.sampling_points())
    weights, module = every.flatten(1), call.module
    samples = module.num_heads * module.num_levels * module.num_points
    offsets = module.project(call.query)[0, :, : 2 * samples]
    decoder = network.decoder
    assert isinstance(decoder, nn.Module)
    measured: Tensor | None = None
    if effects != "none" and index == len(record.decoder) - 1:
        measured = last_layer_effects(decoder, record, queries, class_ids)
    elif effects == "all":
        each = [
            effects_by_reruns(decoder, record, index, query, class_id)
            for query, class_id in zip(queries.tolist(), class_ids.tolist(), strict=True)
        ]
        measured = torch.stack(each) if each else every[queries]
    return LayerPoints(
        layer=index + 1,
        # One image alone has no padding, so that shares of the map are shares of the image.
        locations_px=(locations[queries] * locations.new_tensor(size_wh)).cpu(),
        weights=every[queries].cpu(),
        # The same in every level, as one image alone has no padding.
        reference_xyxy=_to_pixels(_as_box(call.reference[0, queries, 0]), size_wh),
        effects=None if measured is None else measured.cpu(),
        offset_variation=float(offsets.var(0, correction=0).mean() / offsets.square().mean().clamp(min=1e-30)),
        weight_variation=float((weights.std(0, correction=0) / weights.mean(0)).mean()),
    )


def _origins(record: Recording, queries: Int[Tensor, "objects"], shapes: SpatialShapes) -> tuple[Proposal, ...]:
    """Places of the proposals that became some queries; none for learned queries."""
    if record.queries is None or record.queries.positions is None:
        return ()
    return tuple(_place(position, shapes) for position in record.queries.positions[0, queries].tolist())


def _place(position: int, shapes: SpatialShapes) -> Proposal:
    for level, (height, width) in enumerate(shapes):
        if position < height * width:
            return Proposal(level, *divmod(position, width))
        position -= height * width
    raise AssertionError("a position beyond the last level")


def _as_box(reference: Float[Tensor, "objects coordinates"]) -> Float[Tensor, "objects 4"]:
    """Reference as a box cxcywh; that of a point has no size."""
    return torch.nn.functional.pad(reference, (0, 4 - reference.shape[-1]))


def _to_pixels(boxes: Float[Tensor, "objects 4"], size_wh: tuple[int, int]) -> Float[Tensor, "objects 4"]:
    return (cxcywh_to_xyxy(boxes) * boxes.new_tensor((*size_wh, *size_wh))).cpu()
