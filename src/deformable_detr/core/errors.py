"""Situations a user can act on. Each message names the file or setting, what was found, and a way out.

    DeformableDetrError
    ├── ConfigError       a setting that does not exist, has the wrong type or contradicts another
    ├── DataError         a data set, annotation file or image that cannot be used
    ├── CheckpointError   a weights file that cannot be read, written or does not fit
    ├── BackendError      an operator backend that cannot run on this input
    ├── TrainingError     a run that cannot go on, such as a loss that is not finite
    └── OutputError       a folder or file that cannot be written

Python callers who pass tensors that disagree get a plain `ValueError`. A broken invariant of ours is an
`AssertionError`. The command line prints the first kind as one line and exits with 1; the others are bugs.
"""

from collections.abc import Sequence


class DeformableDetrError(Exception):
    """Base of every error a user can act on."""


class ConfigError(DeformableDetrError):
    """A setting does not exist, has the wrong type or contradicts another."""


class DataError(DeformableDetrError):
    """A data set, an annotation file or an image cannot be used as it is."""


class CheckpointError(DeformableDetrError):
    """A weights file cannot be read or written, or does not fit what it is loaded into."""


class BackendError(DeformableDetrError):
    """An operator backend was named that cannot run on this input; the message says why."""


class TrainingError(DeformableDetrError):
    """A training run cannot go on, and going on would only waste time."""


class OutputError(DeformableDetrError):
    """A file or folder the user asked for cannot be written."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, cut at 200 letters; its type where it has none. PyTorch's have many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names with commas between them, the first few of them and the number of the others: "a, b, c and 5 more"."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + others
