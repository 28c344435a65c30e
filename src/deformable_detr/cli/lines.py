"""Lines for people on standard error; standard output is for programs."""

import sys
from contextlib import suppress

from deformable_detr.core.printing import LONGEST_LINE, printable


def tell(line: str) -> None:
    """Print a line on standard error, with escapes for what cannot be printed.

    A terminal that was closed, or a reader that has ended, is no error: nobody is there to be told.
    """
    with suppress(OSError):
        sys.stderr.write(printable(line, LONGEST_LINE) + "\n")
        sys.stderr.flush()
