"""Command `ddetr eval`: evaluate a checkpoint on a data set."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deformable_detr.cli.lines import tell
from deformable_detr.cli.views import TTA_HELP, TTA_SET_HELP, tta_of
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.short_text import LONGEST_NAME, printable

if TYPE_CHECKING:
    from rich.table import Table

    from deformable_detr.evaluation.coco_metrics import Metrics
    from deformable_detr.evaluation.evaluate import EvaluationReport


def evaluate(
    weights: Annotated[
        str, typer.Argument(help="A checkpoint or run folder, an https address, or OWNER/NAME on huggingface.co.")
    ],
    data: Annotated[Path, typer.Option(help="Data set: a folder, an annotation file or a zip archive.")],
    split: Annotated[
        str | None, typer.Option(help="Split to evaluate on; if left out, val or, without splits, all.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; it does not change the result.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of backbone and encoder; bfloat16 is faster where the processor has instructions for it."),
    ] = "float32",
    tta: Annotated[bool, typer.Option("--tta", help=TTA_HELP)] = False,
    tta_set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=TTA_SET_HELP)] = None,
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 of the weights file.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2,
    format: Annotated[
        FormatName | None,
        typer.Option(help="Format of the data set; recognised automatically if left out."),
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(min=11, help="Also count N detections of an image, besides COCO's 100.", metavar="N"),
    ] = None,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave out and count images that cannot be read.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the metrics as JSON to standard output, 0..1.")
    ] = False,
) -> None:
    """Evaluate a checkpoint on a data set: AP and the rest of COCO's twelve numbers, and the AP of each class."""
    from deformable_detr.core.config import to_dict
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.data.archives import unpack
    from deformable_detr.data.crowding import MOST_EVALUATED
    from deformable_detr.evaluation import evaluate as evaluation
    from deformable_detr.inference.detector import Detector

    views = tta_of(tta, tta_set)
    counted = max_detections or MOST_EVALUATED
    with TerminalReporter() as reporter:
        # Before the network, which takes seconds to build.
        unpack(data, on_progress=partial(reporter.update, "unpacking, MB"))
        dataset = evaluation.opened(data, split, format, skip_bad_images, reporter)
        detector = Detector.load(weights, device=device, precision=precision, sha256=sha256, reporter=reporter)
        for sentence in evaluation.limits(detector, dataset, counted):
            reporter.say(f"warning: {sentence}")
        report = evaluation.evaluate(
            detector,
            dataset,
            batch_size=batch_size,
            num_workers=workers,
            max_detections=counted,
            skip_bad_images=skip_bad_images,
            tta=views or False,
            reporter=reporter,
        )
    for why in report.skipped.values():  # each names its file
        tell(f"skipped: {why}")
    if as_json:
        more = {"max_detections": counted, "tta": None if views is None else to_dict(views)}
        typer.echo(json.dumps(_record(report, weights) | more))
        return
    from rich.console import Console

    console = Console(stderr=True)
    skipped = f", {report.num_skipped} skipped" if report.num_skipped else ""
    objects = report.dataset.num_objects
    tell(f"{len(report.dataset)} images{skipped}, {objects} objects, {report.seconds:.1f} s")
    console.print(_summary_table(report.metrics, "COCO's numbers"))
    console.print(_class_table(report, report.metrics, "COCO's, by class"))
    if (own := report.metrics_at_n) is not None:
        console.print(_summary_table(own, f"Not COCO's: {_counted(own)}"))
        console.print(_class_table(report, own, f"Not COCO's, by class: {own.max_detections} detections of an image"))


def _record(report: "EvaluationReport", weights: str) -> dict[str, object]:
    return {
        "weights": weights,
        "data": report.dataset.source,
        "images": len(report.dataset),
        "objects": report.dataset.num_objects,
        "detections": sum(len(one.scores) for one in report.detections),
        "skipped_images": report.num_skipped,
        "seconds": round(report.seconds, 3),
        **_metrics_record(report.metrics),
        # Apart, and by names of their own: they are not COCO's.
        "at_max_detections": None if report.metrics_at_n is None else _metrics_record(report.metrics_at_n),
    }


def _metrics_record(metrics: "Metrics") -> dict[str, object]:
    return {
        "metrics": metrics.twelve(),
        "per_class": {name: one._asdict() for name, one in metrics.per_class.items()},
    }


def _counted(metrics: "Metrics") -> str:
    most = metrics.max_detections
    return f"{most} detections of an image (pycocotools: params.maxDets = [1, 10, {most}])"


def _summary_table(metrics: "Metrics", title: str) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from deformable_detr.core.progress import percent

    table = Table(title=Text(title), title_justify="left")
    table.add_column("metric")
    table.add_column("%", justify="right")
    for name, value in metrics.twelve().items():
        table.add_row(name, percent(value))
    return table


def _class_table(report: "EvaluationReport", metrics: "Metrics", title: str) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from deformable_detr.core.progress import percent

    table = Table(title=Text(title), title_justify="left")
    table.add_column("class")
    for heading in ("objects", "AP", "AP50", "AP75", "AR"):
        table.add_column(heading, justify="right")
    counts = report.dataset.objects_per_class().values()
    for count, (name, one) in zip(counts, metrics.per_class.items(), strict=True):
        table.add_row(
            Text(printable(name, LONGEST_NAME)),
            str(count),
            *(percent(value) for value in (one.ap, one.ap50, one.ap75, one.ar)),
        )
    return table
