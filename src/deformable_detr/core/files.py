"""Whole files: written beside their place and renamed into it, so that none is ever half there."""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import ConfigError, OutputError


def check_output_file(path: Path) -> None:
    """Make the folder of a file that is to be written later, and find out whether it can be: before the long work.

    Raises:
        OutputError: it cannot.
    """
    _refuse_what_is_no_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"cannot write {path}: it is no folder: {error.filename}") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _refuse_what_is_no_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # a device, say: whoever may rename over /dev/null has lost it
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise OutputError(f"cannot write {path}: it is {what}, and not a file that can be replaced; name a file")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one go, safely on disk.

    Raises:
        OutputError: the disk is full, the folder is gone or cannot be written, or what is at `path` is no file.
    """
    _refuse_what_is_no_file(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would make it private
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the folder is gone, or became read-only: said above
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk, where the system can say."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file for people to read, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of settings.

    Raises:
        ConfigError: it cannot be read or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a JSON {type(data).__name__}; settings need an object")
    return data
