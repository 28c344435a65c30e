"""Conversion of checkpoints between layouts; the result is read back and compared before it gets its final name."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.core.torch_files import read_torch_file
from deformable_detr.models import DeformableDETRConfig, DETRConfig, DINOConfig
from deformable_detr.weights.checkpoint import TRAINING_PREFIX, Checkpoint, build_model, no_such_model, save
from deformable_detr.weights.detr.folder import write_detr_folder
from deformable_detr.weights.detr.reader import write_official_detr
from deformable_detr.weights.dino.reader import write_dino
from deformable_detr.weights.huggingface.reader import write_transformers
from deformable_detr.weights.key_map import COUNTERS
from deformable_detr.weights.locate import locate
from deformable_detr.weights.official.reader import write_official
from deformable_detr.weights.read import read_recognised
from deformable_detr.weights.recognise import Layout, Recognised, recognise

_SUFFIXES: dict[Layout, tuple[str, ...]] = {"ours": (".safetensors",), "official": (".pth", ".pt"), "transformers": ()}
# Writers of the published layouts, by the settings of the models that they are for.
_WRITERS: dict[Layout, dict[type, Callable[[Checkpoint, Path], None]]] = {
    "official": {
        DeformableDETRConfig: write_official,
        DETRConfig: write_official_detr,
        DINOConfig: write_dino,
    },
    "transformers": {DeformableDETRConfig: write_transformers, DETRConfig: write_detr_folder},
}
_LAYOUT_NAMES: dict[Layout, str] = {"official": "the official code", "transformers": "transformers"}
_HALVES = (torch.float16, torch.bfloat16)
_FILES = {".safetensors", ".pth", ".pt", ".bin"}


class Conversion(NamedTuple):
    """Result of a conversion."""

    output: Path
    """File or folder that was written."""
    layout: Layout
    """Layout of `output`."""
    checkpoint: Checkpoint
    """Checkpoint as read back from `output`."""
    num_parameters: int
    """Number of parameters of the network, without buffers."""
    lost: tuple[str, ...]
    """Contents of the source that this layout cannot hold, in words."""


def convert(
    source: str | Path,
    output: Path,
    *,
    to: Layout,
    force: bool = False,
    sha256: str | None = None,
    reporter: Reporter | None = None,
) -> Conversion:
    """Convert a checkpoint to another layout.

    The result is read back before it gets its final name, and every tensor is compared bit for bit. Licence, metrics
    and provenance are kept where the layout can hold them.

    Args:
        source: every source that `deformable_detr.weights.read` takes.
        output: a .safetensors file for "ours", a .pth file for "official", a folder for "transformers".
        to: layout of the output.
        force: replace an existing output. In a folder, only files of the same names are replaced.
        sha256: SHA-256 that the weights file of the source must have, in hexadecimal digits.
        reporter: receives the progress.

    Returns:
        The output, its checkpoint as read back, and a list of what was lost.

    Raises:
        CheckpointError: the source cannot be read, the layout cannot hold its model, or the result read back differs.
        OutputError: the output exists already, or cannot be written.
    """
    reporter = reporter or Silence()
    _check_output(output, to, force)
    located = locate(source, sha256=sha256, reporter=reporter)
    found = recognise(located.path)
    loaded = read_recognised(found)
    # Weights that do not fit their own settings are refused here, before anything is written.
    model = build_model(loaded, located.path)
    lost = ["the state of training"] * _holds_training_state(found)
    loaded = replace(loaded, provenance=loaded.provenance | {"converted_from": located.origin})
    # The result is written to a temporary folder, compared, and only then moved to its final name.
    with _beside(output) as folder:
        made = folder / output.name
        try:
            _write_as(loaded, made, to)
        except (CheckpointError, OutputError) as error:
            # The message names the output that the caller knows, not the temporary one.
            raise type(error)(str(error).replace(str(made), str(output))) from error
        reporter.say(f"comparing {len(loaded.weights)} tensors")
        back = read_recognised(Recognised(to, made))
        lost += _differences(loaded, back, output)
        _put_in_place(made, output)
    count = sum(parameter.numel() for parameter in model.parameters())
    return Conversion(output, to, back, count, tuple(lost))


def _check_output(output: Path, to: Layout, force: bool) -> None:
    suffixes = _SUFFIXES[to]
    if suffixes and output.suffix.lower() not in suffixes:
        raise OutputError(f"{output}: a file of this layout ends in {suffixes[0]}; name it {output.name}{suffixes[0]}")
    if not suffixes and (output.is_file() or output.suffix.lower() in _FILES):
        raise OutputError(f"{output}: this layout is a folder of several files; name a folder")
    if suffixes and output.is_dir():
        raise OutputError(f"{output} is a folder; name a file")
    is_there = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if is_there and not force:
        raise OutputError(f"{output} is there already; name another, or write over it with --force")


def _write_as(checkpoint: Checkpoint, path: Path, to: Layout) -> None:
    if to == "ours":
        save(checkpoint, path)
        return
    write = _WRITERS[to].get(type(checkpoint.model))
    if write is None:
        raise no_such_model(checkpoint, _LAYOUT_NAMES[to])
    write(checkpoint, path)


def _holds_training_state(found: Recognised) -> bool:
    if found.layout == "ours":
        with safe_open(found.path, framework="pt") as file:
            return any(name.startswith(TRAINING_PREFIX) for name in file.keys())  # noqa: SIM118
    if found.layout == "official":
        document = read_torch_file(found.path)
        return isinstance(document, dict) and "optimizer" in document
    return False


def _differences(before: Checkpoint, after: Checkpoint, output: Path) -> list[str]:
    """Differences that are allowed after a conversion, in words; differences between tensors are not.

    Raises:
        CheckpointError: a tensor is missing, added, or differs in a bit.
    """
    lost = []
    # No result depends on the counters of batch norm, and not all layouts hold them.
    counters = [name for name in before.weights if name.endswith(COUNTERS)]
    if any(not _same(before.weights, after.weights, name) for name in counters):
        lost += [f"{len(counters)} counters of batch norm"]
    # Tensors must be equal; only half precision may become float32 of the same values.
    compared = {name for name in before.weights.keys() | after.weights.keys() if not name.endswith(COUNTERS)}
    wrong = [name for name in compared if not _same(before.weights, after.weights, name)]
    widened = {str(tensor.dtype) for tensor in before.weights.values()} - {
        str(tensor.dtype) for tensor in after.weights.values()
    }
    lost += [f"{name.removeprefix('torch.')}, written as float32 of the same values" for name in sorted(widened)]
    if wrong:
        raise CheckpointError(
            f"{output} was not written: read back, {len(wrong)} of {len(compared)} tensors are not the same in every "
            f"bit, {min(wrong)} among them; this is a defect of deformable-detr, please report it"
        )
    # Settings and descriptions may be lost, but are reported.
    old, new = to_dict(before.model), to_dict(after.model)
    lost += [f"model.{name}={old[name]}" for name in old if old[name] != new[name]]
    kept = {field.name for field in fields(Checkpoint)} - {"weights", "model", "training", "provenance", "licence"}
    lost += sorted(name for name in kept if getattr(before, name) != getattr(after, name))
    # The hub writes licences in lower case.
    lost += ["licence"] * (before.licence.lower() != after.licence.lower())
    return lost + ["provenance"] * (not before.provenance.items() <= after.provenance.items())


def _same(before: dict[str, Tensor], after: dict[str, Tensor], name: str) -> bool:
    if name not in before or name not in after:
        return False
    one, other = before[name], after[name]
    if one.dtype in _HALVES and other.dtype == torch.float32:  # float32 has every value of half precision
        one = one.float()
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    # Compared as bytes: -0 differs from 0, and NaN equals itself.
    flat = (tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*flat)


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """Temporary folder on the disk of the output; it is always deleted at the end."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(made: Path, output: Path) -> None:
    try:
        if made.is_dir() and output.is_dir():
            for file in made.iterdir():
                os.replace(file, output / file.name)
        else:
            os.replace(made, output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
