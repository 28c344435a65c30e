"""Weights from one layout to another, read back and compared before the result gets its name."""

import os
import shutil
import tempfile
from collections.abc import Iterator
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
from deformable_detr.weights.checkpoint import TRAINING_PREFIX, Checkpoint, build_model, save
from deformable_detr.weights.huggingface.reader import write_transformers
from deformable_detr.weights.key_map import COUNTERS
from deformable_detr.weights.locate import locate
from deformable_detr.weights.official.reader import write_official
from deformable_detr.weights.read import read_recognised
from deformable_detr.weights.recognise import Layout, Recognised, recognise

_SUFFIXES: dict[Layout, tuple[str, ...]] = {"ours": (".safetensors",), "official": (".pth", ".pt"), "transformers": ()}
_HALVES = (torch.float16, torch.bfloat16)
_FILES = {".safetensors", ".pth", ".pt", ".bin"}


class Conversion(NamedTuple):
    """What was written."""

    output: Path
    layout: Layout
    checkpoint: Checkpoint
    """As it is read back from there."""
    num_parameters: int
    lost: tuple[str, ...]
    """What the source had and this layout has no place for."""


def convert(
    source: str | Path,
    output: Path,
    *,
    to: Layout,
    force: bool = False,
    sha256: str | None = None,
    reporter: Reporter | None = None,
) -> Conversion:
    """Write weights in another layout.

    The result is read back before it gets its name, and every tensor compared bit for bit. Licence, metrics and
    provenance go along where the layout has a place for them.

    Args:
        source: whatever `read` takes.
        output: a .safetensors file for ours, a .pth file for official, a folder for transformers.
        to: the layout.
        force: write over what is there. Of a folder, only files of the same names are replaced.
        sha256: what the source's weights file must hash to, in hex.
        reporter: told how far it is.

    Raises:
        CheckpointError: the source cannot be read, the layout has no such model, or what was written is not the same.
        OutputError: something is there already, or it cannot be written.
    """
    reporter = reporter or Silence()
    _check_output(output, to, force)
    located = locate(source, sha256=sha256, reporter=reporter)
    found = recognise(located.path)
    loaded = read_recognised(found)
    # Weights that do not fit their own settings stop here, before anything is written.
    model = build_model(loaded, located.path)
    lost = ["the state of training"] * _holds_training_state(found)
    loaded = replace(loaded, provenance=loaded.provenance | {"converted_from": located.origin})
    with _beside(output) as folder:
        made = folder / output.name
        try:
            _write_as(loaded, made, to)
        except (CheckpointError, OutputError) as error:
            # Nobody asked for the place where it is made.
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
    elif to == "official":
        write_official(checkpoint, path)
    else:
        write_transformers(checkpoint, path)


def _holds_training_state(found: Recognised) -> bool:
    if found.layout == "ours":
        with safe_open(found.path, framework="pt") as file:
            return any(name.startswith(TRAINING_PREFIX) for name in file.keys())  # noqa: SIM118
    if found.layout == "official":
        document = read_torch_file(found.path)
        return isinstance(document, dict) and "optimizer" in document
    return False


def _differences(before: Checkpoint, after: Checkpoint, output: Path) -> list[str]:
    """What is other than before and may be; tensors may not.

    Raises:
        CheckpointError: a tensor is missing, added, or not the same in every bit.
    """
    lost = []
    # Nothing depends on what batch norm counted, and not all layouts keep it.
    counters = [name for name in before.weights if name.endswith(COUNTERS)]
    if any(not _same(before.weights, after.weights, name) for name in counters):
        lost += [f"{len(counters)} counters of batch norm"]
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
    old, new = to_dict(before.model), to_dict(after.model)
    lost += [f"model.{name}={old[name]}" for name in old if old[name] != new[name]]
    kept = {field.name for field in fields(Checkpoint)} - {"weights", "model", "training", "provenance", "licence"}
    lost += sorted(name for name in kept if getattr(before, name) != getattr(after, name))
    # The hub writes licences in small letters.
    lost += ["licence"] * (before.licence.lower() != after.licence.lower())
    return lost + ["provenance"] * (not before.provenance.items() <= after.provenance.items())


def _same(before: dict[str, Tensor], after: dict[str, Tensor], name: str) -> bool:
    if name not in before or name not in after:
        return False
    one, other = before[name], after[name]
    if one.dtype in _HALVES and other.dtype == torch.float32:  # has every value of these, so nothing is lost
        one = one.float()
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    # As bytes, so that -0 is not 0, and what is not a number equals itself.
    flat = (tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*flat)


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A folder on the same disk that is gone afterwards, whatever happens."""
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
