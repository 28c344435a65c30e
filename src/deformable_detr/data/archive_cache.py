"""Unpacked archives in the cache: which of them a process has in use, and which nobody needs any more.

Each archive has a folder, named by a key, with a note in it; beside it lie locks. Whoever unpacks or removes holds the
lock of the key. Whoever reads has a lock of its own for as long as its process lives: the system frees it however the
process ends. So a folder with a lock that is held is in use, on a disk that several machines share, too.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deformable_detr.core.cache import writing_to_cache
from deformable_detr.core.files import write_json
from deformable_detr.core.reading import read_file, settings_value

if TYPE_CHECKING:
    from filelock import FileLock

DAYS_KEPT = 30
"""Days since its last use after which an unpacked archive is removed."""

_NOTE = "unpacked.json"
_MOST_BYTES = 1 << 20
_DAY_S = 86_400
_KEY = re.compile(r"[0-9a-f]{24}")
# Locks of this process, by process, since a forked one has those of its parent here, and by folder.
_held: dict[tuple[int, Path], "FileLock"] = {}


def write_note(home: Path, place: Path, *, files: int, left: int) -> None:
    """Write the note of a folder, which says that it is complete.

    Args:
        home: folder of the archive.
        place: the archive.
        files: number of files that were unpacked.
        left: number of files that stayed in the archive.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(home / _NOTE, {"archive": str(place), "files": files, "left": left})


def read_note(home: Path) -> dict[str, Any] | None:
    """Note of a folder, empty if it cannot be read; None if there is none, so that the folder is not complete."""
    if not (home / _NOTE).is_file():
        return None
    try:
        note = settings_value(read_file(home / _NOTE, most=_MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


@contextmanager
def locked_key(home: Path) -> Iterator[None]:
    """Context in which no other process unpacks, removes or begins to use an archive; it waits for that.

    Raises:
        OutputError: the cache cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(home.with_name(f"{home.name}.lock"))
    with writing_to_cache(home.parent, "what is unpacked"):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def mark_in_use(home: Path) -> None:
    """Mark an archive as in use by this process as long as it lives, and as last used now; its key must be locked.

    Marks of processes that have ended are removed.
    """
    from filelock import FileLock

    with suppress(OSError):  # the cache may be another user's, and then nobody else removes it either
        os.utime(home / _NOTE)
    who = os.getpid(), home
    if who not in _held:
        _remove_free_marks(home)
        lock = FileLock(home.with_name(f"{home.name}.{secrets.token_hex(4)}.use.lock"), thread_local=False)
        with suppress(OSError, NotImplementedError):  # a file system without locks
            lock.acquire(timeout=0)
            _held[who] = lock


def remove_old(newest: Path, place: Path) -> None:
    """Remove archives that nobody uses: earlier versions of one, and those last used more than `DAYS_KEPT` days ago.

    What cannot be removed stays.

    Args:
        newest: folder that was just unpacked.
        place: its archive.
    """
    try:
        homes = [path for path in newest.parent.iterdir() if _KEY.fullmatch(path.name) and path != newest]
    except OSError:
        return
    for home in homes:
        if _is_old(home, place):
            with suppress(OSError, NotImplementedError):
                _remove(home)


def _is_old(home: Path, place: Path) -> bool:
    try:
        unused_s = time.time() - (home / _NOTE).stat().st_mtime
    except OSError:
        return False  # without a note it is of a process that unpacks, or was killed at it
    note = read_note(home)
    return unused_s > DAYS_KEPT * _DAY_S or (note is not None and note.get("archive") == str(place))


def _remove(home: Path) -> None:
    from filelock import FileLock, Timeout

    lock = FileLock(home.with_name(f"{home.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    try:
        if not _is_in_use(home):
            # First out of its place, so that nobody finds half of it.
            gone = home.with_name(f"{home.name}.{os.getpid()}.tmp")
            os.replace(home, gone)
            shutil.rmtree(gone, ignore_errors=True)
    finally:
        lock.release()


def _is_in_use(home: Path) -> bool:
    """Whether a process that lives has the archive in use."""
    return (os.getpid(), home) in _held or _remove_free_marks(home)


def _remove_free_marks(home: Path) -> bool:
    """Remove marks of processes that have ended, and say whether others are left.

    The key must be locked: a mark that was made a moment ago is not held yet.
    """
    from filelock import FileLock

    are_left = False
    for path in home.parent.glob(f"{home.name}.*.use.lock"):
        mark = FileLock(path)
        try:
            mark.acquire(timeout=0)
            mark.release()
            path.unlink(missing_ok=True)
        except (OSError, NotImplementedError):  # it is held (a timeout), or nobody can tell
            are_left = True
    return are_left
