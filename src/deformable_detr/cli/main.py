"""Commands of `ddetr` and handling of errors: one line and exit code 1 for an error that a user can act on."""

import errno
import io
import logging
import os
import sys
import time
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deformable_detr.cli.check_data import check_data
from deformable_detr.cli.convert import convert
from deformable_detr.cli.convert_data import convert_data
from deformable_detr.cli.demo import demo
from deformable_detr.cli.doctor import doctor
from deformable_detr.cli.evaluate import evaluate
from deformable_detr.cli.explain import explain
from deformable_detr.cli.lines import give_up, tell
from deformable_detr.cli.predict import predict
from deformable_detr.cli.report import report
from deformable_detr.cli.train import train
from deformable_detr.core.errors import DeformableDetrError
from deformable_detr.core.short_text import LONGEST_LINE, printable, printable_line
from deformable_detr.core.version import __version__

_FIRST_SPEAKS_S = 5.0
"""How long an error of another process than the first waits, so that all of them do not say the same."""
# Wrong usage; Typer does not export it by name.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class _Commands(TyperGroup):
    """Group of the commands; what a wrong argument holds is shown with escapes, and cut."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        try:
            return super().make_context(*arguments, **settings)
        except _UsageError as error:
            raise _shown(error) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            raise _shown(error) from None


def _shown(error: Any) -> Exception:
    error.message = printable(error.message, LONGEST_LINE)
    return error


app = typer.Typer(
    name="ddetr",
    cls=_Commands,
    help="Train, evaluate and run Deformable DETR on your own photos.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("report")(report)
app.command("predict")(predict)
app.command("explain")(explain)
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

    Exit codes: 0 done, 1 an error that a user can act on, 2 wrong usage, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files may be no valid Unicode, or none that this terminal has letters for.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Pillow warns of pictures that are large, but not too large; those that are get an error.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    # Without internet, the hub's client reports every attempt twice; the error at the end says it once.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.CRITICAL)
    if not all(argument.strip() and "\0" not in argument for argument in sys.argv[1:]):
        # An empty path would stand for the current folder, where a variable of the shell was not set.
        _fail("an argument is empty, or holds a zero character; a name or a value is missing", code=2)
    try:
        app()
    except DeformableDetrError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has ended. Python would report that again when it closes stdout.
        give_up(sys.stdout)
        sys.exit(1)
    except OSError as error:
        _fail(_explained(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail("not enough memory; smaller images or fewer at a time need less")


def _fail(message: str, code: int = 1) -> None:
    """Print an error and exit."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        # What is wrong for all of them the first one says, too, and torchrun then stops this one.
        time.sleep(_FIRST_SPEAKS_S)
    origin = f" (process {printable_line(rank)})" if rank != "0" else ""
    tell(f"Error{origin}: {printable_line(message)}")
    sys.exit(code)


def _explained(error: OSError) -> str:
    """Reason of the system, with the file that it is about."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.EMFILE, errno.ENFILE):
        reason += "; `ulimit -n` shows and sets how many files a process may have open, and 1024 is usual"
    return f"{error.filename}: {reason}" if error.filename else reason


def _is_out_of_memory(error: BaseException) -> bool:
    # PyTorch is imported only by what needs it. For a GPU it has a type of its own, for the CPU a sentence.
    is_of_gpu = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or is_of_gpu or "can't allocate memory" in str(error)
