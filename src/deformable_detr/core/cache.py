"""Folder of what can be fetched or made again: downloads, and data sets unpacked from archives."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deformable_detr.core.errors import OutputError


def cache_folder() -> Path:
    """Folder of the cache: DEFORMABLE_DETR_CACHE, else deformable_detr in XDG_CACHE_HOME or in ~/.cache."""
    own = os.environ.get("DEFORMABLE_DETR_CACHE")
    if own:
        return Path(os.path.expanduser(own))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "deformable_detr"


@contextmanager
def writing_to_cache(place: Path, content: str) -> Iterator[None]:
    """Context in which an error of the disk becomes one line with a way out.

    Args:
        place: file or folder of the cache.
        content: words for what is kept there, such as "downloads".

    Raises:
        OutputError: the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {place}: {error.strerror or error}; DEFORMABLE_DETR_CACHE names another folder for {content}"
        ) from error
