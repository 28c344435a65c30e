"""Explanations of many image files: pictures of each detection, and a JSON file for each image."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from deformable_detr.core.errors import ConfigError, OutputError, listed
from deformable_detr.core.files import write_atomically, write_text
from deformable_detr.data.images import load_image
from deformable_detr.inference.detector import DEFAULT_THRESHOLD, Detector
from deformable_detr.inference.explain import MOST_EXPLAINED, explain
from deformable_detr.inference.explanation import Explanation
from deformable_detr.inference.file_names import FreeStems
from deformable_detr.inference.pixel_gradients import GradientKind
from deformable_detr.models.layers.decoder import DecoderLayer
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.dense_decoder import DenseDecoderLayer


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Settings of explanations of image files."""

    threshold: float = DEFAULT_THRESHOLD
    """Lowest score of the detections, in 0..1."""
    top: int = 5
    """Largest number of detections of an image that are explained, best first."""
    at: tuple[float, float] | None = None
    """(x, y) in pixels of the image: only what is there, or the query that came nearest; see `explain`."""
    layer: int | Literal["last", "all"] = "last"
    """Decoder layer that is drawn, from 1."""
    size: Literal["auto", "effect", "weight"] = "auto"
    """Meaning of the dots' areas; "auto" is the effect in the last layer, and the weight in the others."""
    head: int | None = None
    """Only the points of this attention head, from 0."""
    level: int | None = None
    """Only the points of this level, from 0, finest first."""
    chained: bool = False
    """Also draw the chained map."""
    gradients: GradientKind | None = None
    """Also draw the gradients in the pixels: "direct" or "total"."""


@dataclass(frozen=True, kw_only=True)
class ExplainedImage:
    """Explanation of one image file, with the pictures of it that were written."""

    path: Path
    """Path of the image file."""
    explanation: Explanation
    """Explanation of its detections."""
    pictures: tuple[tuple[Path, ...], ...]
    """Pictures of each explained detection; empty without an output folder."""

    def record(self) -> dict[str, Any]:
        """Record as plain data, for JSON: that of the explanation, with the paths of image and pictures."""
        record = {"image": str(self.path), **self.explanation.record()}
        for one, pictures in zip(record["detections"], self.pictures, strict=bool(self.pictures)):
            one["pictures"] = [picture.name for picture in pictures]
        return record


def explain_files(
    detector: Detector, paths: Sequence[Path], settings: ExplainSettings, *, output: Path | None = None
) -> Iterator[ExplainedImage]:
    """Explanations of image files, one at a time, in their order.

    Args:
        detector: detector whose network has attention layers of this package.
        paths: image files.
        settings: what is explained, and how it is drawn.
        output: folder for the pictures, named after image, number of the detection and layer, and for one JSON file
            for each image; None writes nothing.

    Raises:
        ConfigError: a setting is out of range, or the network cannot be explained.
        DataError: a file cannot be read.
        OutputError: the folder cannot be written, or it holds the images themselves.
    """
    _check(detector, settings, drawn=output is not None)
    if output is not None:
        if os.path.realpath(output) in {os.path.dirname(os.path.realpath(path)) for path in paths}:
            raise OutputError(f"{output} holds the images themselves; name another folder for the explanations")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to the output folder {output}: {error.strerror}") from error
    stems = FreeStems()
    for path in paths:
        image = load_image(path)
        try:
            found = explain(
                detector,
                image,
                threshold=settings.threshold,
                most=settings.top,
                at=settings.at,
                effects=_effects(detector, settings),
                gradients=settings.gradients,
            )
        except ConfigError as error:  # a place outside of one of the images
            raise ConfigError(f"{path}: {error}") from error
        if output is None:
            yield ExplainedImage(path=path, explanation=found, pictures=())
            continue
        stem = stems.take(path.stem)
        pictures = tuple(
            tuple(_draw(output, f"{stem}_{index + 1}", image, found, index, settings))
            for index in range(len(found.detections))
        )
        explained = ExplainedImage(path=path, explanation=found, pictures=pictures)
        write_text(output / f"{stem}.json", json.dumps(explained.record()) + "\n")
        yield explained


def _check(detector: Detector, settings: ExplainSettings, *, drawn: bool) -> None:
    """Refuse settings that fit no image, or without pictures do nothing, before the first is read."""
    if not 1 <= settings.top <= MOST_EXPLAINED:
        raise ConfigError(f"{settings.top} detections are to be explained; it must be 1 to {MOST_EXPLAINED}")
    layers = [layer for layer in detector.model.modules() if isinstance(layer, DecoderLayer | DenseDecoderLayer)]
    if not layers:
        return  # `explain` says that this network cannot be explained
    attention = layers[0].cross_attention
    if isinstance(settings.layer, int) and not 1 <= settings.layer <= len(layers):
        raise ConfigError(f"there is no decoder layer {settings.layer}: this network has layers 1 to {len(layers)}")
    counts = [("head", settings.head, attention.num_heads)]
    if isinstance(attention, DeformableAttention):
        counts.append(("level", settings.level, attention.num_levels))
    elif settings.size != "auto" or settings.level is not None:
        raise ConfigError(
            f"a {type(detector.model).__name__} has no sampling points, whose size or level could be chosen: its "
            "pictures are maps of the weights; leave both out"
        )
    for name, value, count in counts:
        if value is not None and not 0 <= value < count:
            raise ConfigError(f"there is no {name} {value}: this network has {name}s 0 to {count - 1}")
    of_pictures = {
        "--head": settings.head is not None,
        "--level": settings.level is not None,
        "--chained": settings.chained,
        "--gradients": settings.gradients is not None,
    }
    if not drawn and any(of_pictures.values()):
        named = listed([name for name, given in of_pictures.items() if given])
        raise ConfigError(f"{named} choose what is drawn, and nothing is: give a folder with --output")


def _effects(detector: Detector, settings: ExplainSettings) -> Literal["last", "all", "none"]:
    if settings.size == "weight":
        return "none"
    last = sum(isinstance(layer, DecoderLayer) for layer in detector.model.modules())
    return "all" if settings.size == "effect" and settings.layer not in ("last", last) else "last"


def _draw(
    output: Path, stem: str, image: Image.Image, found: Explanation, index: int, settings: ExplainSettings
) -> Iterator[Path]:
    """Write the pictures of one detection; gives their paths."""
    # Only who asks for pictures needs what draws them.
    from deformable_detr.inference.explanation_drawing import draw_points
    from deformable_detr.inference.explanation_maps import draw_chained, draw_gradients

    count = len(found.layers or found.dense_maps)
    numbers = range(1, count + 1) if settings.layer == "all" else [settings.layer]
    for number in numbers:
        layer = count if number == "last" else int(number)
        size = None if settings.size == "auto" else settings.size
        drawn = draw_points(image, found, index, layer=layer - 1, size=size, head=settings.head, level=settings.level)
        yield _saved(drawn, output / f"{stem}_layer{layer}.jpg")
    if settings.chained:
        yield _saved(draw_chained(image, found, index), output / f"{stem}_chained.jpg")
    if settings.gradients is not None:
        yield _saved(draw_gradients(image, found, index), output / f"{stem}_gradients.jpg")


def _saved(picture: Image.Image, path: Path) -> Path:
    # Thin coloured lines need their colours whole.
    write_atomically(path, lambda place: picture.save(place, "JPEG", quality=90, subsampling=0), durable=False)
    return path
