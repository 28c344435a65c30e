"""Commands of `ddetr` and handling of errors: one line and exit code 1 for an error that a user can act on."""

import logging
import os
import sys
import time
from typing import Annotated

import typer

from deformable_detr.cli.check_data import check_data
from deformable_detr.cli.convert import convert
from deformable_detr.cli.convert_data import convert_data
from deformable_detr.cli.demo import demo
from deformable_detr.cli.doctor import doctor
from deformable_detr.cli.evaluate import evaluate
from deformable_detr.cli.predict import predict
from deformable_detr.cli.report import report
from deformable_detr.cli.train import train
from deformable_detr.core.errors import DeformableDetrError
from deformable_detr.core.version import __version__

_FIRST_SPEAKS_S = 5.0
"""How long an error of another process than the first waits, so that all of them do not say the same."""

app = typer.Typer(
    name="ddetr",
    help="Train, evaluate and run Deformable DETR on your own photos.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("report")(report)
app.command("predict")(predict)
app.command("convert")(convert)
app.command("check-data")(check_data)
app.command("convert-data")(convert_data)
app.command("demo")(demo)
app.command("doctor")(doctor)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"ddetr {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command `ddetr`.

    Exit codes: 0 done, 1 an error that a user can act on, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Without internet, the hub's client reports every attempt twice; the error at the end says it once.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.CRITICAL)
    try:
        app()
    except DeformableDetrError as error:
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            # What is wrong for all of them the first one says, too, and torchrun then stops this one.
            time.sleep(_FIRST_SPEAKS_S)
        origin = f" (process {rank})" if rank != "0" else ""
        sys.stderr.write(f"Error{origin}: {' '.join(str(error).split())}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has ended. Python would report that again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
