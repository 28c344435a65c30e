"""`ddetr check-data`: look a data set through before training on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

_SILENT_S = 2.0


def check_data(
    path: Annotated[Path, typer.Argument(help="A folder, a COCO json or a YOLO data.yaml.")],
    format: Annotated[
        Literal["coco", "yolo", "voc"] | None,
        typer.Option(help="Of the data set; recognised by itself if left out."),
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Decode every image to find damaged ones.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON to standard output.")] = False,
) -> None:
    """Report what a data set holds and what is wrong with it; exit code 1 if something would stop training."""
    import json

    from rich.console import Console

    from deformable_detr.inspection import check_dataset, render

    console = Console(stderr=True)
    with _progress(console) as on_progress:
        report = check_dataset(path, format=format, decode=decode, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=True))
    else:
        console.print(render(report))
    if not report.ok:
        raise typer.Exit(1)


@contextmanager
def _progress(console: "Console") -> Iterator[Callable[[int, int], None]]:
    """A bar that appears once decoding has taken longer than a person likes to wait without one."""
    import time

    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("decoding images")
    began = time.monotonic()
    shown = False

    def on_progress(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - began > _SILENT_S:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield on_progress
    finally:
        if shown:
            bar.stop()
