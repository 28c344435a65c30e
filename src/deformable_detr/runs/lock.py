"""Lock of a run folder: one process trains in it at a time.

The kernel holds the lock, and frees it when the process ends, however it ends: a run that was killed can be resumed at
once. It is a lock of the process and not of an open file, because processes that read images inherit open files from
the one that trains, and may outlive it by some seconds.
"""

import errno
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deformable_detr.core.errors import OutputError
from deformable_detr.core.reading import read_file
from deformable_detr.core.short_text import printable

NAME = ".lock"
"""Name of the file in a run folder that is locked; it is there as long as the run lives, or after it was killed."""

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_MOST_BYTES = 1000
_MOST_TRIES = 10
# On Windows a locked byte cannot be read by others. This one lies behind all that is written.
_LOCKED_BYTE = 1 << 30
# A process is never refused a lock that it has itself, so these files are known here, by device and number.
_ours: set[tuple[int, int]] = set()
# Two threads must not both find that the file is not yet among these.
_one_thread = threading.Lock()


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Context in which no other process, and no other thread of this one, can train in a run folder.

    Args:
        folder: the run folder.
        say: receives a message if the file system of the folder has no locks; the run goes on without.

    Raises:
        OutputError: another process trains in the folder, or the file of the lock cannot be made.
    """
    path = folder / NAME
    with _one_thread:
        handle = _acquired(path, folder, say)
        if handle is not None:
            identity = _identity(os.fstat(handle))
            _ours.add(identity)
    if handle is None:
        yield
        return
    try:
        _write(handle)
        yield
    finally:
        with _one_thread:
            # Removed while it is still locked, so that nobody locks it in between; on Windows an open file stays.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(handle)
            _ours.discard(identity)
        if sys.platform == "win32":
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _acquired(path: Path, folder: Path, say: Callable[[str], None]) -> int | None:
    """Handle of the locked file; None if locks do not exist here."""
    for _ in range(_MOST_TRIES):
        with suppress(OSError):
            # To open the file once more and close it would free the lock that this process has.
            if _identity(os.lstat(path)) in _ours:
                raise _in_use(folder, "this process")
        handle = _opened(path)
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            if error.errno in _HELD_BY_ANOTHER:
                raise _in_use(folder, _holder(path)) from error
            say(
                f"{folder}: this file system has no locks ({error.strerror}), so nothing stops a second process from "
                "training in the same run folder"
            )
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        # The run before may have removed the file between its opening and its locking; then another one is there.
        with suppress(OSError):
            if _identity(os.lstat(path)) == _identity(os.fstat(handle)):
                return handle
        os.close(handle)
    raise OutputError(f"cannot lock {path}: other processes keep replacing it")


def _opened(path: Path) -> int:
    # Neither follow a link nor wait for a pipe that somebody has put there.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OutputError(f"cannot write {path}: it is a pipe or a device, not a file")
    return handle


if sys.platform == "win32":

    def _lock(handle: int) -> None:
        import msvcrt

        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:

    def _lock(handle: int) -> None:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _write(handle: int) -> None:
    """Write who holds the lock, for the message to others; a full disk is no reason to stop."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(errors="replace"))


def _holder(path: Path) -> str:
    try:
        who = printable(read_file(path, most=_MOST_BYTES).decode(errors="replace").strip(), 100)
    except OSError:  # it has just ended
        who = ""
    return who or "another process"


def _in_use(folder: Path, who: str) -> OutputError:
    return OutputError(f"{folder} is in use: {who} trains in it; wait for its end, or stop it first")
