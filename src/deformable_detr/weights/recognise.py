"""Recognition of checkpoint layouts by the content of a file or folder, with precise errors for everything else."""

import re
import struct
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.file_kinds import kind_of
from deformable_detr.core.reading import open_file, read_json, settings_value
from deformable_detr.core.short_text import shown
from deformable_detr.weights.checkpoint import BEST_NAME, HEADER_ENTRY, LAST_NAME
from deformable_detr.weights.detr.settings import looks_like_detr
from deformable_detr.weights.dino.keys import looks_like_dino
from deformable_detr.weights.hub import CONFIG, WEIGHTS
from deformable_detr.weights.official.settings import has_size_tensors

Layout = Literal["ours", "official", "transformers"]

TRANSFORMERS_TYPES = ("deformable_detr", "detr")
"""Values of "model_type" in the config.json of transformers' models that are read."""
PublishedModel = Literal["DETR", "DINO", "Deformable DETR"]
"""Model of a published code whose files are read."""
# What tells their parameter names. The first that fits decides: a DINO has all names that tell a Deformable DETR.
_PUBLISHED: dict[PublishedModel, Callable[[Collection[str]], bool]] = {
    "DETR": looks_like_detr,
    "DINO": looks_like_dino,
    "Deformable DETR": has_size_tensors,
}
# The format allows three times as much; a hundred thousand tensors need half of it.
_LONGEST_HEADER = 1 << 25
# The first pattern that fits a parameter name decides, so the closest relatives come first.
_MODELS_OF_OTHERS = (
    (r"detr\.|mask_head\.|bbox_attention\.", "a DETR with a segmentation head; there is none here"),
    (r"backbone\.1\.(row|col)_embed", "Deformable DETR with learned position embeddings; only those of sines are here"),
    (r"bbox_head\.|rpn_head\.|roi_head\.", "a model of mmdetection; mmdetection reads it"),
    (r"label_enc\.|transformer\.tgt_embed\.|tgt_embed\.", "DINO or DN-DETR; IDEA-Research's code reads it"),
    (r"transformer\.decoder\.ref_point_head\.", "DAB-DETR or a relative; IDEA-Research's code reads it"),
    (r"transformer\..*\.attentions\.\d+\.|neck\.convs\.", "a model of detrex; detrex reads it"),
    (r"model\.(encoder|decoder)\.layers\.", "a model of transformers; keep config.json beside it and name the folder"),
    (r"class_embed\.(weight|bias)", "a relative of DETR with dense attention; its authors' code reads it"),
    (r"roi_heads\.|proposal_generator\.|backbone\.bottom_up\.", "a model of detectron2; detectron2 reads it"),
    (r"model\.\d+\.", "a YOLO of ultralytics; ultralytics reads it"),
    (r"layer1\.0\.conv1\.weight", "a ResNet alone; train with --backbone-weights FILE to start from it"),
)


class Recognised(NamedTuple):
    """Checkpoint that was recognised: its layout and the file or folder to read."""

    layout: Layout
    path: Path


def recognise(path: Path) -> Recognised:
    """Layout of a file or folder, by its content.

    In a run folder best.safetensors is taken, or last.safetensors as long as there is no best.

    Raises:
        CheckpointError: it is no checkpoint that can be read; the message says what it is and what reads it, as far as
            that is known.
    """
    if path.is_dir():
        return _folder(path)
    kind = kind_of(path)
    if kind.is_torch:
        beside = path.name in WEIGHTS and transformers_type(path.parent)
        return _of_transformers(path.parent, beside) if beside else Recognised("official", path)
    if kind.format == "safetensors":
        return _safetensors(path)
    raise CheckpointError(f"{path} {kind.description}")


def _folder(path: Path) -> Recognised:
    for own in (path / BEST_NAME, path / LAST_NAME):
        if own.is_file():
            return Recognised("ours", own)
    model_type = transformers_type(path)
    if model_type:
        return _of_transformers(path, model_type)
    alone = path / WEIGHTS[0]
    if alone.is_file():
        return recognise(alone)
    if (path / CONFIG).is_file():
        raise CheckpointError(f"{path} is the folder of a run that has no weights yet: it has no {BEST_NAME}")
    raise CheckpointError(
        f"{path} is a folder without weights: neither a run's ({BEST_NAME}) nor one of transformers "
        f"({CONFIG} and {WEIGHTS[0]})"
    )


def _of_transformers(folder: Path, model_type: str) -> Recognised:
    if model_type not in TRANSFORMERS_TYPES:
        raise CheckpointError(
            f"{folder} holds a model of another kind, {shown(model_type)}; transformers reads it, "
            f"here there are {', '.join(map(repr, TRANSFORMERS_TYPES))}"
        )
    return Recognised("transformers", folder)


def transformers_type(folder: Path) -> str:
    """Model type in the config.json of transformers; empty if there is no such file, or it is that of a run."""
    if not (folder / CONFIG).exists():
        return ""
    model_type = read_json(folder / CONFIG, error_type=CheckpointError).get("model_type")
    return model_type if isinstance(model_type, str) else ""


def _safetensors(path: Path) -> Recognised:
    header = _raw_header(path)
    about = header.get("__metadata__")
    if isinstance(about, dict) and HEADER_ENTRY in about:
        return Recognised("ours", path)
    model_type = transformers_type(path.parent) if path.name in WEIGHTS else ""
    if model_type:
        return _of_transformers(path.parent, model_type)
    names = [name for name in header if name != "__metadata__"]
    model = published_model(names)
    if model is not None:
        raise CheckpointError(
            f"{path} holds a published {model}, which is read from .pth files: "
            'torch.save({"model": safetensors.torch.load_file(FILE)}, "model.pth") makes one'
        )
    kind = foreign_model(names)
    raise CheckpointError(
        f"{path} is a safetensors file, but not a checkpoint of deformable-detr: "
        + (f"it looks like {kind}" if kind else "it does not say what model it is of")
        + "; weights of a backbone go to --backbone-weights" * (kind is None)
    )


def published_model(names: Collection[str]) -> PublishedModel | None:
    """Model of a published code that has these parameter names; None if none of them has."""
    return next((model for model, is_of in _PUBLISHED.items() if is_of(names)), None)


def _raw_header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with open_file(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise CheckpointError(
                f"{path} is not a whole safetensors file: it has {size} bytes, its header alone should have {length}"
            )
        if length > _LONGEST_HEADER:
            raise CheckpointError(f"{path} has a header of {length:,} bytes; no weights need {_LONGEST_HEADER:,}")
        try:
            header = settings_value(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: its header cannot be read") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a whole safetensors file: its header is no table")
    return header


def foreign_model(names: Iterable[str]) -> str | None:
    """Model that these parameter names look like, and the software that reads it; None if they are not known."""
    known = list(names)
    for pattern, kind in _MODELS_OF_OTHERS:
        start = re.compile(pattern)
        if any(start.match(name) for name in known):
            return kind
    return None
