"""Command `ddetr convert`: convert weights from one layout to another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deformable_detr.cli.lines import tell

if TYPE_CHECKING:
    from deformable_detr.weights.convert import Conversion


def convert(
    source: Annotated[
        str, typer.Argument(help="A file or folder, an https address, or OWNER/NAME on huggingface.co.", metavar="IN")
    ],
    output: Annotated[Path, typer.Argument(help="File to write, or folder with --to transformers.", metavar="OUT")],
    to: Annotated[
        Literal["ours", "official", "transformers"],
        typer.Option(help="ours: one .safetensors; official: a .pth for the authors' code; transformers: a folder."),
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 of the weights file of IN.")] = None,
) -> None:
    """Convert weights to another layout, read them back, and compare every tensor bit for bit."""
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.weights.convert import convert as convert_weights

    with TerminalReporter() as reporter:
        done = convert_weights(source, output, to=to, force=force, sha256=sha256, reporter=reporter)
    record = _json_record(done)
    tell(
        f"{done.output}: {record['model']}, {done.num_parameters:,} parameters, {record['classes']} classes, "
        f"licence {done.checkpoint.licence or 'not said'}; all {record['tensors']} tensors read back the same"
    )
    if done.lost:
        tell(f"lost, because the layout has no place for it: {', '.join(done.lost)}")
    typer.echo(json.dumps(record))


def _json_record(done: "Conversion") -> dict[str, object]:
    return {
        "output": str(done.output),
        "layout": done.layout,
        "model": done.checkpoint.model.describe(),
        "parameters": done.num_parameters,
        "tensors": len(done.checkpoint.weights),
        "classes": len(done.checkpoint.classes),
        "licence": done.checkpoint.licence,
        "lost": done.lost,
    }
