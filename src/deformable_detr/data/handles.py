"""Open files that processes which read images need: enough of them, or an error before the work begins.

With too few, PyTorch's processes wait for each other for ever, or fill the terminal with errors.
"""

import os
import sys

from deformable_detr.core.errors import DataError

_USUAL = 1024
# For a loader, as measured, and for what is opened for a moment: images, checkpoints, the report.
_OF_LOADER, _OF_PROCESS, _IN_BETWEEN = 10, 4, 12
_OPEN_AT_START = 32


def check_handles(num_workers: int, *, num_loaders: int) -> None:
    """Check that this process may have enough files open, and ask the system for more if that is allowed.

    Args:
        num_workers: processes that read images, for each loader.
        num_loaders: loaders that are open at the same time.

    Raises:
        DataError: the limit is too low and cannot be raised; the message has both numbers.
    """
    if num_workers == 0 or sys.platform == "win32":
        return
    import resource

    needed = _open_now() + num_loaders * (_OF_LOADER + _OF_PROCESS * num_workers) + _IN_BETWEEN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = max(needed, _USUAL) if hard == resource.RLIM_INFINITY else min(hard, max(needed, _USUAL))
    if most < needed:
        raise DataError(
            f"{num_workers} processes that read images need {needed} open files, and {hard} are allowed here; "
            f"`ulimit -n {_USUAL}` allows more, and --workers 0 needs none"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _open_now() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return _OPEN_AT_START
