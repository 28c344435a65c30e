"""Reading of files that strangers made: only files, of a limited size, and JSON of a limited depth.

A pipe waits for ever, a device never ends, and a value nested a thousand times exceeds Python's recursion limit in
whatever handles it later. Everything that reads what a user names goes through these functions.
"""

import errno
import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import ConfigError, DeformableDetrError

_DEEPEST = 100
_MEGABYTE = 1 << 20
_MOST_HOLDERS = 200_000
_MOST_SETTINGS = 16 * _MEGABYTE


def open_file(path: str | Path) -> BufferedReader:
    """Open a file to read its bytes.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
        ValueError: the name holds a zero character.
    """
    _refuse_what_is_no_file(os.stat(path), path)

    def without_waiting(name: str, flags: int) -> int:
        # Between the look above and now a pipe may have taken the place of the file; opening that would wait.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=without_waiting)  # noqa: SIM115 - the caller closes it
    try:
        _refuse_what_is_no_file(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def _refuse_what_is_no_file(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))


def read_file(path: str | Path, *, most: int) -> bytes:
    """Content of a file of at most so many bytes.

    Raises:
        OSError: as for `open_file`; or the file is larger.
        ValueError: the name holds a zero character.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
        if len(content) > most:
            size = max(os.fstat(file.fileno()).st_size, len(content))
            text = f"it has {size:,} bytes, and no such file has more than {most:,}"
            raise OSError(errno.EFBIG, text, str(path))
    return content


def json_value(
    text: str | bytes,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Value of a JSON text.

    Raises:
        ValueError: it is no JSON, or is nested too deeply; the message is one line.
    """
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        pass  # said below, without a traceback of a thousand frames as its cause
    raise ValueError("its values are nested too deeply")


def shallow(value: Any, *, shared: bool = True) -> bool:
    """Whether a value of lists and dicts is nested at most 100 deep, so that recursion over it is safe.

    Args:
        value: the value.
        shared: whether one list or dict may stand at many places, and even within itself, as in YAML. In JSON none
            does, and looking at it takes a tenth of the time and of the memory.
    """
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            one
            for holder in level
            for one in (holder.values() if isinstance(holder, dict) else holder if isinstance(holder, list) else ())
            if isinstance(one, dict | list) and one
        ]
        if shared:
            level = list({id(one): one for one in level}.values())
        if not level:
            return True
    return False


def settings_value(text: str | bytes) -> Any:
    """Value of a JSON text of settings, a header or a record, which is never nested deeply.

    Raises:
        ValueError: it is no JSON, is nested more than 100 deep, or has more than 200,000 lists and objects.
    """
    # Each takes thirty times the memory of its two letters, and millions of them make the garbage collection slow.
    count = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if count > _MOST_HOLDERS:
        raise ValueError(f"it has more than {_MOST_HOLDERS:,} lists and objects")
    value = json_value(text)
    if not shallow(value, shared=False):
        raise ValueError("its values are nested too deeply")
    return value


def read_json(path: Path, *, error_type: type[DeformableDetrError] = ConfigError) -> dict[str, Any]:
    """Content of a JSON file of settings.

    Raises:
        ConfigError: the file cannot be read or is not a JSON object; `error_type` names another class of error.
    """
    try:
        data = settings_value(read_file(path, most=_MOST_SETTINGS))
    except OSError as error:
        raise error_type(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise error_type(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise error_type(f"{path} holds a JSON {type(data).__name__}; settings need an object")
    return data
