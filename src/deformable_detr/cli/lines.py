"""Lines for people on standard error; standard output is for programs."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from deformable_detr.core.short_text import LONGEST_LINE, printable


def tell(line: str) -> None:
    """Print a line on standard error, with escapes for what cannot be printed.

    A terminal that was closed, or a reader that has ended, is no error: nobody is there to be told.
    """
    try:
        sys.stderr.write(printable(line, LONGEST_LINE) + "\n")
        sys.stderr.flush()
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO | io.TextIOBase) -> None:
    """Let a stream that takes nothing more lead nowhere; Python would try again at its exit, and report that."""
    with suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
