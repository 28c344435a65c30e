"""Command `ddetr predict`: detect objects in images."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from deformable_detr.cli.lines import tell
from deformable_detr.cli.views import TTA_HELP, TTA_SET_HELP, tta_of


def predict(
    weights: Annotated[
        str, typer.Argument(help="A checkpoint or run folder, an https address, or OWNER/NAME on huggingface.co.")
    ],
    images: Annotated[
        list[str], typer.Argument(help='Files, folders (with all folders in them) and patterns such as "photos/*.jpg".')
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for pictures with boxes and detections.json (COCO).")
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Lowest score to report; higher: fewer detections."),
    ] = 0.5,
    max_detections: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most detections per image; if left out, 100, or as many as the model has queries if more."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; it does not change the result.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of backbone and encoder; bfloat16 is faster where the processor has instructions for it."),
    ] = "float32",
    processes: Annotated[
        str,
        typer.Option(help="Processes on a CPU, or auto: one for each core where many images are done sooner that way."),
    ] = "auto",
    tta: Annotated[bool, typer.Option("--tta", help=TTA_HELP)] = False,
    tta_set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=TTA_SET_HELP)] = None,
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 of the weights file.")] = None,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave out and count images that cannot be read.")
    ] = False,
) -> None:
    """Detect objects in images, with one line of JSON per image on standard output.

    Boxes are x1, y1, x2, y2 in pixels of the image. With --output there are also pictures with the boxes drawn in.
    """
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.inference.detector import Detector
    from deformable_detr.inference.files import find_images, passed_over, predict_files

    number = _number_of(processes)
    views = tta_of(tta, tta_set)
    paths = find_images(images)
    with TerminalReporter() as reporter:
        if remark := passed_over(images):
            reporter.say(remark)
        detector = Detector.load(weights, device=device, precision=precision, sha256=sha256, reporter=reporter)
        skipped = 0
        for done, result in enumerate(
            predict_files(
                detector,
                paths,
                output=output,
                threshold=threshold,
                max_detections=max_detections,
                batch_size=batch_size,
                skip_bad_images=skip_bad_images,
                processes=number,
                reporter=reporter,
                tta=views or False,
            ),
            start=1,
        ):
            reporter.update("predicting", done, len(paths))
            if result.error is not None:
                skipped += 1
                reporter.say(f"skipped: {result.error}")
            else:
                typer.echo(json.dumps(result.record()))
    found = f"{len(paths) - skipped} images done" + (f", {skipped} skipped" if skipped else "")
    tell(found + (f"; pictures and detections.json in {output}" if output else ""))


def _number_of(processes: str) -> int | Literal["auto"]:
    if processes == "auto":
        return "auto"
    if not processes.isascii() or not processes.isdecimal() or not 1 <= len(processes) <= 3 or int(processes) < 1:
        raise typer.BadParameter(f"--processes is {processes!r}; it must be a number in 1..256, or auto")
    return int(processes)
