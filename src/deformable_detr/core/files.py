"""Atomic writes: a file is written beside its place and renamed into it, so that none is ever half there."""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from deformable_detr.core.errors import OutputError


def check_folder(path: Path) -> None:
    """Check that files can be made in a folder.

    Only making one shows it: permissions, quotas and read-only mounts all count.

    Raises:
        OSError: no file can be made there.
    """
    with tempfile.NamedTemporaryFile(dir=path):
        pass


def check_output_file(path: Path) -> None:
    """Make the folder of a file to be written later, and check that it can be written, before the long work begins.

    Raises:
        OutputError: it cannot be written.
    """
    _refuse_what_is_no_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_folder(path.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"cannot write {path}: it is no folder: {error.filename}") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _refuse_what_is_no_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # renaming over a device such as /dev/null would replace the device
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise OutputError(f"cannot write {path}: it is {what}, and not a file that can be replaced; name a file")


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, or make a link of it, then rename it to `path`.

    Args:
        path: the file.
        write: called with the path of the temporary file, which exists and is empty.
        durable: return only when the file is on the disk, so that a crash of the machine loses nothing. That takes
            milliseconds; thousands of files that can be made again do not need it.

    Raises:
        OutputError: the disk is full, the folder is gone or cannot be written, or something that is no file lies at
            `path`.
    """
    _refuse_what_is_no_file(path)
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")  # names have 255 bytes at most
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # from the user's umask; safetensors would make the file private
        write(temporary)
        if not temporary.is_symlink():  # else the mode of the link's target would change
            temporary.chmod(mode)
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the folder is gone, or became read-only: said above
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk, where the system can tell."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(
    path: Path, text: str, *, durable: bool = True, errors: Literal["strict", "backslashreplace"] = "strict"
) -> None:
    """Write a text file atomically, as UTF-8 with a line feed after each line on every system.

    Args:
        path: the file.
        text: its content.
        durable: see `write_atomically`.
        errors: how to treat file names in the text that are not valid Unicode: refuse them, or write their bytes as
            escapes.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        content = text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise OutputError(f"cannot write {path}: a name in it is not valid Unicode") from error
    write_atomically(path, lambda temporary: temporary.write_bytes(content), durable=durable)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file atomically, indented for people to read.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, json.dumps(data, indent=2) + "\n")
