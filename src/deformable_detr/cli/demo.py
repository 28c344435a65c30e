"""`ddetr demo`: the whole way on drawn scenes, without network or photos."""

import json
from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Folder for pictures, report and summary.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Fewer are faster and worse.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides scenes and training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw scenes, train a small model on them, and see what it finds in scenes it has not seen."""
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.runs.recipes import demo as recipe
    from deformable_detr.training import demo as demonstration

    config = recipe().with_settings(seed=seed)
    if epochs is not None:
        config = config.with_settings(epochs=epochs)
    with TerminalReporter() as reporter:
        result = demonstration.demo(output, config=config, device=device, reporter=reporter)
    if result is None:
        typer.echo(f"stopped; what is there is in {output}", err=True)
        raise typer.Exit(130)
    typer.echo(result.summary, err=True)
    record = {"folder": str(result.folder), "metrics": result.metrics.twelve()}
    typer.echo(json.dumps(record))
