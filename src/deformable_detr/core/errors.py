"""Errors that a user can act on. Each message names the file or setting, what was found, and a way out.

    DeformableDetrError
    ├── ConfigError       a setting that does not exist, has the wrong type or contradicts another
    ├── DataError         a data set, annotation file or image that cannot be used
    ├── CheckpointError   a weights file that cannot be read, written or does not fit
    ├── BackendError      an operator backend that cannot run on this input
    ├── TrainingError     a run that cannot go on, such as a loss that is not finite
    └── OutputError       a folder or file that cannot be written

Python callers who pass tensors that disagree get a plain `ValueError`. A broken invariant of this package is an
`AssertionError`. The command line prints a `DeformableDetrError` as one line and exits with 1; the others are bugs.
"""

from collections.abc import Sequence


class DeformableDetrError(Exception):
    """Base class of every error that a user can act on."""


class ConfigError(DeformableDetrError):
    """Error in a setting: it does not exist, has the wrong type or contradicts another."""


class DataError(DeformableDetrError):
    """Error in the data: a data set, an annotation file or an image cannot be used as it is."""


class CheckpointError(DeformableDetrError):
    """Error in a weights file: it cannot be read or written, or does not fit what it is loaded into."""


class BackendError(DeformableDetrError):
    """Error in the choice of a backend: the one that was named cannot run on this input; the message says why."""


class TrainingError(DeformableDetrError):
    """Error in a training run: it cannot go on, or going on would only waste time."""


class OutputError(DeformableDetrError):
    """Error in the output: a file or folder that the user asked for cannot be written."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, cut at 200 letters; the name of its type if the message is empty.

    Messages of PyTorch have many lines, and the first one says what is wrong.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def counted(number: int, one: str, several: str | None = None) -> str:
    """Number of things in words: "1 image", "3 images".

    Args:
        number: how many there are.
        one: name of one of them.
        several: name of several; left out if only an "s" is added.
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """First names of a list with commas between them, and the number of the others: "a, b, c and 5 more"."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + others
