"""`ddetr doctor`: what is installed, what runs on what, and whether it computes the right thing."""

from typing import Annotated

import typer


def doctor(
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time the operator; takes a second or two.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report versions, hardware and backends of the operator, and check it; exit code 1 if it computes nonsense."""
    import json

    from deformable_detr.ops.doctor import diagnose, render

    diagnosis = diagnose(timing=timing)
    # People get theirs on standard output, too: it is made to be redirected into a bug report.
    typer.echo(json.dumps(diagnosis.to_json()) if as_json else render(diagnosis))
    if not diagnosis.ok:
        raise typer.Exit(1)
