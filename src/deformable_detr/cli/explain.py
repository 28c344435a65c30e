"""Command `ddetr explain`: show where the network looked for its detections, and what that did."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deformable_detr.cli.lines import tell

if TYPE_CHECKING:
    from deformable_detr.inference.explain_files import ExplainedImage


def explain(
    weights: Annotated[
        str, typer.Argument(help="A checkpoint or run folder, an https address, or OWNER/NAME on huggingface.co.")
    ],
    images: Annotated[
        list[str], typer.Argument(help='Files, folders (with all folders in them) and patterns such as "photos/*.jpg".')
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the pictures, and a JSON file for each image.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Lowest score of the detections that are explained.")
    ] = 0.5,
    top: Annotated[int, typer.Option(min=1, max=20, help="Most detections per image, best first.")] = 5,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y", help="Only what is at this pixel; if nothing is, why: the query that came nearest."
        ),
    ] = None,
    layer: Annotated[
        str, typer.Option(metavar="last|all|N", help="Decoder layers to draw, from 1, one picture each.")
    ] = "last",
    size: Annotated[
        Literal["auto", "effect", "weight"],
        typer.Option(
            help="What a dot's area means: the fall of the class logit without it, or its attention weight; auto is "
            "the effect in the last layer, and the weight in the others."
        ),
    ] = "auto",
    head: Annotated[int | None, typer.Option(min=0, help="Only this attention head, from 0.")] = None,
    level: Annotated[int | None, typer.Option(min=0, help="Only this level, from 0, the finest.")] = None,
    chained: Annotated[
        bool, typer.Option("--chained", help="Also a map of where attention of all layers leads, back to the pixels.")
    ] = False,
    gradients: Annotated[
        Literal["direct", "total"] | None,
        typer.Option(help="Also maps of the pixels that move box and class; total: by way of earlier boxes, too."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON per image on standard output, instead of words.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 of the weights file.")] = None,
) -> None:
    """Show where the network looked for each detection, and what that did: pictures, words and JSON.

    Without --output there are words only.
    """
    place, number = _place_of(at), _layer_of(layer)
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.inference.detector import Detector
    from deformable_detr.inference.explain_files import ExplainSettings, explain_files
    from deformable_detr.inference.files import find_images, passed_over

    paths = find_images(images)
    settings = ExplainSettings(
        threshold=threshold,
        top=top,
        at=place,
        layer=number,
        size=size,
        head=head,
        level=level,
        chained=chained,
        gradients=gradients,
    )
    with TerminalReporter() as reporter:
        if remark := passed_over(images):
            reporter.say(remark)
        detector = Detector.load(weights, device=device, sha256=sha256, reporter=reporter)
        count = 0
        for done, one in enumerate(explain_files(detector, paths, settings, output=output), start=1):
            reporter.update("explaining", done, len(paths))
            count += len(one.explanation.detections)
            for line in [json.dumps(one.record())] if as_json else _lines(one, number):
                typer.echo(line)
    tell(
        f"{count} detections of {len(paths)} images explained" + (f"; pictures and JSON in {output}" if output else "")
    )


def _lines(one: "ExplainedImage", layer: int | Literal["last", "all"]) -> list[str]:
    """Lines of text about an image, one for each detection."""
    from deformable_detr.core.errors import counted
    from deformable_detr.inference.explanation_words import in_words

    found = one.explanation
    place = layer - 1 if isinstance(layer, int) else -1
    lines = [
        f"{one.path}: {index + 1}: {in_words(found, index, layer=place)}" for index in range(len(found.detections))
    ]
    if not lines:
        lines.append(f"{one.path}: nothing found; a lower --threshold explains weaker detections, --at X,Y a place")
    if found.num_others and found.missed is None:
        lines.append(f"{one.path}: {counted(found.num_others, 'more detection')}, not explained")
    return lines


def _place_of(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--at is {text!r}; it must be two numbers, such as 320,240") from None
    if not (math.isfinite(x) and math.isfinite(y)):
        raise typer.BadParameter(f"--at is {text!r}; it must be two numbers, such as 320,240")
    return x, y


def _layer_of(text: str) -> int | Literal["last", "all"]:
    if text == "last":
        return "last"
    if text == "all":
        return "all"
    if not text.isascii() or not text.isdecimal() or not 1 <= len(text) <= 3 or int(text) < 1:
        raise typer.BadParameter(f"--layer is {text!r}; it must be last, all, or a number from 1 on")
    return int(text)
