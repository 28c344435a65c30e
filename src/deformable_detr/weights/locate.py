"""Sources of weights: paths, https addresses and names on huggingface.co, each made a local file or folder."""

import re
from pathlib import Path
from typing import NamedTuple

from deformable_detr.core.addresses import without_secrets
from deformable_detr.core.errors import CheckpointError, first_line
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.core.short_text import one_line, shown
from deformable_detr.weights import hub
from deformable_detr.weights.checkpoint import BEST_NAME, LAST_NAME
from deformable_detr.weights.download import download, hash_of

_HUB_NAME = re.compile(r"(?P<name>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?")
# The address of a model's page in a browser.
_HUB_PAGE = re.compile(r"https://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/tree/([\w.-]+))?/?")
# Names of models do not end so: these are paths, and one that does not exist is not looked up on the hub.
_FILE_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".json", ".zip", ".pkl"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Located(NamedTuple):
    """Local weights, and where they came from."""

    path: Path
    """Local file, or local folder with settings and weights."""
    origin: str
    """Origin for the provenance: an address, a name with its commit, or the name of the file and its folder."""


def locate(source: str | Path, *, sha256: str | None = None, reporter: Reporter | None = None) -> Located:
    """Local path of weights, which are downloaded and checked first where necessary.

    Args:
        source: a path, which is tried first; an https address, which may end in #sha256=...; or a name on
            huggingface.co, owner/name or owner/name@revision.
        sha256: SHA-256 that the weights file must have, in hexadecimal digits, wherever it comes from.
        reporter: receives the progress of a download.

    Raises:
        CheckpointError: the weights do not exist, cannot be downloaded, or have another SHA-256.
        OutputError: the download cannot be stored; the disk may be full.
    """
    reporter = reporter or Silence()
    text = str(source)
    text, sha256 = _with_hash(text, sha256)
    page = _HUB_PAGE.fullmatch(text)
    if page is not None:
        text = page[1] + (f"@{page[2]}" if page[2] else "")
    elif "://" in text:
        return Located(download(text, sha256=sha256, reporter=reporter), without_secrets(text))
    try:
        path = Path(text).expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long for the disk, or the home of nobody
        raise CheckpointError(f"no such checkpoint file: {one_line(text)} ({first_line(error)})") from error
    located = Located(path, _own_name(path)) if is_there else _on_the_hub(text, path, reporter)
    if sha256 is not None:
        _check_hash(located.path, sha256)
    return located


def weights_file(path: Path) -> Path | None:
    """File with the tensors: the path itself, or the weights file in a folder; None if the folder has none."""
    if not path.is_dir():
        return path
    places = [path / BEST_NAME, path / LAST_NAME, *(path / name for name in hub.WEIGHTS)]
    return next((place for place in places if place.is_file()), None)


def _with_hash(text: str, sha256: str | None) -> tuple[str, str | None]:
    address, mark, there = text.partition("#sha256=")
    hashes = {one.strip().lower() for one in (sha256, there if mark else None) if one is not None}
    for one in hashes:
        if not _SHA256.fullmatch(one):
            raise CheckpointError(f"{shown(one)} is no SHA-256; it has 64 hexadecimal digits")
    if len(hashes) > 1:
        raise CheckpointError(f"{address} has two SHA-256 that differ: {' and '.join(sorted(hashes))}")
    return address, next(iter(hashes), None)


def _on_the_hub(text: str, path: Path, reporter: Reporter) -> Located:
    name = _HUB_NAME.fullmatch(text)
    if name is None or path.suffix.lower() in _FILE_SUFFIXES:
        raise CheckpointError(f"no such checkpoint file: {path}")
    try:
        found = hub.fetch(name["name"], name["revision"], reporter=reporter)
    except CheckpointError as error:
        raise CheckpointError(f"no file or folder {path} is here, and as the name of a model: {error}") from error
    folder = found if found.is_dir() else found.parent
    return Located(found, f"{name['name']}@{folder.name}")


def _check_hash(path: Path, sha256: str) -> None:
    file = weights_file(path)
    if file is None:
        raise CheckpointError(f"{path} has no weights in it to compare with a SHA-256")
    found = hash_of(file)
    if found != sha256:
        raise CheckpointError(f"{file} is not the file that was meant: its SHA-256 is {found}, not {sha256}")


def _own_name(path: Path) -> str:
    """Name of the file and of its folder; the rest of the path tells about the user's disk, not about the weights."""
    return "/".join(path.absolute().parts[-2:])
