"""`ddetr check-data`: look a data set through before training on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from deformable_detr.runs.config import TrainConfig

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
    augmented: Annotated[
        int | None, typer.Option(min=1, help="Also draw so many training images as the model will see them.")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="How those are varied, as for train; the recipe's way if left out.", metavar="NAME"),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="For those: a recipe, or a config.json of a run; small if left out.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to draw those; augmented.png if left out.")] = None,
) -> None:
    """Report what a data set holds and what is wrong with it; exit code 1 if something would stop training."""
    if augmented is None and (augment or recipe or output):
        raise typer.BadParameter("--augment, --recipe and --output are for the picture; say how many: --augmented 12")
    import json

    from rich.console import Console

    from deformable_detr.core.files import check_output_file
    from deformable_detr.data.check import check_dataset, render

    picture = output or Path("augmented.png")
    config = None
    if augmented is not None:
        config = _config(recipe or "small", augment)
        check_output_file(picture)
    console = Console(stderr=True)
    with _progress(console) as on_progress:
        report = check_dataset(path, format=format, decode=decode, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=True))
    else:
        console.print(render(report))
    if not report.ok:
        if augmented is not None:
            typer.echo("no picture: nothing can be trained on this data set as it is", err=True)
        raise typer.Exit(1)
    if augmented is not None and config is not None:
        from deformable_detr.training.preview import save_preview

        with _progress(console, "drawing images") as on_progress:
            save_preview(picture, path, config, augmented, format=format, on_progress=on_progress)
        typer.echo(f"{augmented} training images as the model sees them: {picture}", err=True)


def _config(recipe: str, augment: str | None) -> "TrainConfig":
    from deformable_detr.runs.recipes import find_recipe, with_augmentation

    config = find_recipe(recipe)
    return config if augment is None else with_augmentation(config, augment)


@contextmanager
def _progress(console: "Console", doing: str = "decoding images") -> Iterator[Callable[[int, int], None]]:
    """A bar that appears once something has taken longer than a person likes to wait without one."""
    import time

    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task(doing)
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
