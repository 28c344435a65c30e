"""`ddetr report`: a run as one page to look at."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, as `ddetr train` leaves it.")],
    data: Annotated[Path | None, typer.Option(help="Where the data set is now; where it was if left out.")] = None,
    output: Annotated[Path | None, typer.Option(help="The page; RUN/report.html if left out.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    format: Annotated[
        Literal["coco", "yolo", "voc"] | None, typer.Option(help="Of the data set; what the run had if left out.")
    ] = None,
) -> None:
    """Show a run on one page: curves, accuracy, thresholds, confusion, kinds of errors and the worst mistakes.

    The page is one file without scripts, needs no network and may be sent to anybody.
    """
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.report import write_report

    with TerminalReporter() as reporter:
        path = write_report(run, data=data, output=output, format=format, device=device, reporter=reporter)
    typer.echo(path)
