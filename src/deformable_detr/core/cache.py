"""Folder of what can be fetched or made again: downloads, and data sets unpacked from archives."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder of the cache: DEFORMABLE_DETR_CACHE, else deformable_detr in XDG_CACHE_HOME or in ~/.cache."""
    own = os.environ.get("DEFORMABLE_DETR_CACHE")
    if own:
        return Path(os.path.expanduser(own))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "deformable_detr"
