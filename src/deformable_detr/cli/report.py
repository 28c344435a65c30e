"""Command `ddetr report`: write the report of a run."""

from pathlib import Path
from typing import Annotated

import typer

from deformable_detr.core.format_names import FormatName
from deformable_detr.core.short_text import printable


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, as `ddetr train` leaves it.")],
    data: Annotated[
        Path | None, typer.Option(help="New path of the data set, if it has moved since the training.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File of the page; RUN/report.html if left out.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    format: Annotated[
        FormatName | None,
        typer.Option(help="Format of the data set; as in the training if left out."),
    ] = None,
) -> None:
    """Write the report of a run: one page with curves, accuracy, thresholds, confusion and the worst mistakes.

    The page is one file without scripts. It needs no internet and can be sent to anybody.
    """
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.report import write_report

    with TerminalReporter() as reporter:
        path = write_report(run, data=data, output=output, format=format, device=device, reporter=reporter)
    typer.echo(printable(str(path)))
