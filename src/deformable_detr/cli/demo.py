"""Command `ddetr demo`: train and evaluate on drawn scenes, without internet or photos."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deformable_detr.cli.lines import tell


def demo(
    output: Annotated[Path, typer.Option(help="Folder for pictures, report and summary.")] = Path("demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs to train; fewer are faster and less accurate.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes and of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw scenes, train a small model on them, and test it on new scenes.

    It needs no photos and no internet, and takes about ten minutes.
    """
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.runs.recipes import demo as recipe
    from deformable_detr.training import demo as demonstration

    config = recipe().with_settings(seed=seed)
    if epochs is not None:
        config = config.with_settings(epochs=epochs)
    with TerminalReporter() as reporter:
        result = demonstration.demo(output, config=config, device=device, reporter=reporter)
    if result is None:
        tell(f"stopped; the files so far are in {output}")
        raise typer.Exit(130)
    for line in result.summary.splitlines():
        tell(line)
    record = {"folder": str(result.folder), "metrics": result.metrics.twelve()}
    typer.echo(json.dumps(record))
