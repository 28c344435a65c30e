"""Command `ddetr convert-data`: convert a data set from one format to another."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deformable_detr.core.format_names import FormatName, TargetName

if TYPE_CHECKING:
    from deformable_detr.data.convert import DataConversion


def convert_data(
    source: Annotated[Path, typer.Argument(help="Data set in any known format.", metavar="IN")],
    output: Annotated[Path, typer.Argument(help="Folder to write, empty or not there yet.", metavar="OUT")],
    to: Annotated[TargetName, typer.Option(help="Format to write.")],
    format: Annotated[
        FormatName | None,
        typer.Option(help="Format of IN; recognised automatically if left out."),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="Make links to the images of IN, or copies of them.")
    ] = False,
) -> None:
    """Convert a data set to another format: all splits, and a count of what that format cannot hold."""
    from deformable_detr.core.errors import counted
    from deformable_detr.core.progress import shown_progress, shown_wait
    from deformable_detr.data.convert import convert_dataset

    with ExitStack() as reading:
        reading.enter_context(shown_wait(f"reading the annotations of {source}"))
        with shown_progress("writing images") as on_progress:

            def on_image(done: int, total: int) -> None:
                reading.close()
                on_progress(done, total)

            done = convert_dataset(
                source,
                output,
                to=to,
                format=format,
                images="link" if link else "copy",
                on_progress=on_image,
            )
    splits = ", ".join(f"{one.name} with {one.images} images and {one.objects} objects" for one in done.splits)
    classes = counted(len(done.classes), "class", "classes")
    typer.echo(f"{output}: {done.source_format.upper()} as {done.to.upper()}, {classes}; {splits}", err=True)
    for problem in done.not_kept:
        typer.echo(f"not kept: {problem.where}: {problem.message}", err=True)
    if done.mended:
        mended = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(done.mended.items()))
        typer.echo(f"mended or remarked on: {mended}; `ddetr check-data {source}` lists them", err=True)
    typer.echo(json.dumps(_as_json(done, str(output))))


def _as_json(done: "DataConversion", output: str) -> dict[str, object]:
    return {
        "output": output,
        "to": done.to,
        "from": done.source_format,
        "classes": done.classes,
        "splits": [{"name": one.name, "images": one.images, "objects": one.objects} for one in done.splits],
        "not_kept": [{"where": problem.where, "message": problem.message} for problem in done.not_kept],
        "mended": done.mended,
    }
