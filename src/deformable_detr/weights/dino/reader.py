"""Reading of published checkpoints of DINO, and writing of those of its authors (`.pth`).

The authors' files hold "model", perhaps averaged weights in "ema_model", "epoch" and "args"; those of detrex "model",
those of OpenMMLab "state_dict" and "meta". No published file of detrex or OpenMMLab could be opened when this was
written: their names were taken from their code.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError, listed
from deformable_detr.core.files import write_atomically
from deformable_detr.core.short_text import one_line
from deformable_detr.core.torch_files import check_memory, check_numbers, inner_table, read_torch_file
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DINOConfig
from deformable_detr.weights.checkpoint import (
    HEADER_ENTRY,
    Checkpoint,
    from_header,
    parse_header,
    sketch,
    to_header,
)
from deformable_detr.weights.coco_classes import COCO_CLASSES, UNUSED
from deformable_detr.weights.dino.keys import (
    Sizes,
    Source,
    key_map,
    shares_heads,
    sizes_of,
    source_of,
    to_authors_keys,
    to_our_keys,
)
from deformable_detr.weights.dino.settings import (
    FoundSettings,
    dino_settings,
    to_authors_args,
    told_by_authors,
    told_by_openmmlab,
)
from deformable_detr.weights.key_map import COUNTERS
from deformable_detr.weights.official.reader import args_of, named_tensors, save_document

log = logging.getLogger(__name__)

_AVERAGED = "ema_model"
_MOST_EPOCHS = 10**6
_LAYER = re.compile(r"(?:transformer\.)?decoder\.layers\.([0-9]{1,6})\.")
_MAP = re.compile(r"neck\.convs\.([0-9]{1,6})\.conv\.weight")
_CODE = {"authors": "its authors", "detrex": "detrex", "openmmlab": "OpenMMLab"}
_COCO_IDS = tuple(number for number, name in enumerate(COCO_CLASSES) if not name.startswith(UNUSED))


def is_dino(document: Any) -> bool:
    """Whether a document of `torch.save` has weights of a DINO, as its authors, detrex or OpenMMLab name them."""
    table = inner_table(_averaged(document))
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        return False
    return source_of({name.removeprefix("module."): None for name in table}) is not None


def read_dino(path: Path, document: Any = None) -> Checkpoint:
    """Checkpoint from a published file of a DINO; no code in the file is run.

    Averaged weights are taken where a file has them.

    Args:
        path: path of the file.
        document: content of the file, if it has been read already.

    Raises:
        CheckpointError: the file is damaged, of another model, or its settings and its tensors disagree; the message
            names tensors that are unknown, missing or of another shape.
    """
    document = read_torch_file(path) if document is None else document
    theirs = named_tensors(path, _averaged(document))
    source = source_of(theirs)
    if source is None:
        raise CheckpointError(f"{path} has no weights of a DINO")
    try:
        found, weights = _settings_and_weights(theirs, source, document)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _check_shapes(path, weights, found.config, source)
    check_memory(theirs, path)
    check_numbers(weights, path)
    values = ", ".join(f"{name}={getattr(found.config, name)}" for name in found.assumed)
    if values:
        log.warning("%s does not tell all settings of its model; taken as in the published ones: %s", path, values)
    # Copies, so that the file may be changed or deleted afterwards.
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    return from_header(path, _description(path, document, found.config, source, values), own)


def write_dino(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint for the authors' code (`main.py --resume FILE --eval`); `read_dino` reads it, too.

    Raises:
        CheckpointError: the authors' code has no such model; the message names the setting.
        OutputError: the file cannot be written.
    """
    config = checkpoint.model
    assert isinstance(config, DINOConfig)
    try:
        args = to_authors_args(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; write a .safetensors file, which holds every model") from error
    if checkpoint.category_ids != tuple(range(config.num_classes)):
        log.warning(
            "%s: the authors' code takes channel i for category id i; number the categories of its data set from 0 in "
            "the order %s",
            path,
            listed(checkpoint.classes),
        )
    # Copies: torch.save writes the whole storage of a tensor that is part of another one.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in checkpoint.weights.items()}
    document = {
        "model": to_authors_keys(own, config),
        "args": args,
        # The authors' code ignores entries that it does not know.
        HEADER_ENTRY: json.dumps(to_header(checkpoint)),
    }
    write_atomically(path, lambda temporary: save_document(document, temporary))


def _averaged(document: Any) -> Any:
    """Document whose weights are the averaged ones, if it has them."""
    if isinstance(document, dict) and isinstance(document.get(_AVERAGED), dict) and document[_AVERAGED]:
        return {"model": document[_AVERAGED]}
    return document


def _settings_and_weights(
    theirs: Mapping[str, Tensor], source: Source, document: Any
) -> tuple[FoundSettings, dict[str, Tensor]]:
    if any("relative_position_bias_table" in name for name in theirs):
        raise CheckpointError("its backbone is a Swin transformer; here there are ResNets alone")
    layers = {match[1] for name in theirs if (match := _LAYER.match(name))}
    entries = document if isinstance(document, dict) else {}
    told: dict[str, Any] = {}
    shared, num_maps = False, 0
    if source == "authors":
        args = args_of(entries) or {}
        told = told_by_authors(args)
        shares = [args.get(f"dec_pred_{kind}_embed_share") for kind in ("class", "bbox")]
        # Heads of their own are equal, too, before any training.
        shared = all(shares) if None not in shares else shares_heads(theirs, len(layers))
    else:
        num_maps = sum(_MAP.fullmatch(name) is not None for name in theirs)
        told = told_by_openmmlab(entries.get("meta")) if source == "openmmlab" else {}
    weights = to_our_keys(theirs, source, Sizes(len(layers), num_maps, shared))
    return dino_settings(weights, source, told, shared_heads=shared), weights


def _check_shapes(path: Path, weights: Mapping[str, Tensor], config: DINOConfig, source: Source) -> None:
    """Check that the tensors are exactly those of a model with these settings."""
    expected = {name: one.shape for name, one in sketch(config, path).state_dict().items() if COUNTERS not in name}
    names = key_map(source, sizes_of(config))
    found = {
        "missing": [names.to_theirs(name) or name for name in expected if name not in weights],
        "unexpected": [names.to_theirs(name) or name for name in weights if name not in expected],
        "of another shape": [
            f"{names.to_theirs(name)} is {list(weights[name].shape)} there and {list(shape)} here"
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        ],
    }
    problems = [f"{len(each)} {what}: {one_line(listed(each), 1000)}" for what, each in found.items() if each]
    if problems:
        raise CheckpointError(
            f"{path} is not a DINO as of {_CODE[source]}; of the {len(expected)} tensors of such a model, "
            f"{'; '.join(problems)}"
        )


def _description(path: Path, document: Any, config: DINOConfig, source: Source, assumed: str) -> dict[str, Any]:
    """Description of the checkpoint: ours if the file has one, else what is known of the published models."""
    ours = document.get(HEADER_ENTRY) if isinstance(document, dict) else None
    if isinstance(ours, str):
        header = parse_header(path, ours)
    else:
        classes, ids = _classes(config.num_classes)
        header = {
            "classes": classes,
            "category_ids": ids,
            "preprocessing": to_dict(Preprocessing()),
            "metrics": {},
            "provenance": {"source": f"checkpoint {path.name} of DINO, as of {_CODE[source]}"},
            "licence": "Apache-2.0" if config.num_classes in (len(COCO_CLASSES), len(_COCO_IDS)) else "",
        }
        epoch = document.get("epoch") if isinstance(document, dict) else None
        if isinstance(epoch, int) and 0 <= epoch < _MOST_EPOCHS:
            header["provenance"]["epochs"] = str(epoch + 1)
        if _averaged(document) is not document:
            header["provenance"]["averaged"] = f"the entry {_AVERAGED!r}"
        if assumed:
            header["provenance"]["assumed"] = assumed
    return header | {"model": {"name": "dino", "config": to_dict(config)}}


def _classes(num_classes: int) -> tuple[list[str], list[int]]:
    """Class names and category ids: all of COCO's ids, as the authors have them, COCO's 80 classes, or numbers."""
    if num_classes == len(COCO_CLASSES):
        return list(COCO_CLASSES), list(range(num_classes))
    if num_classes == len(_COCO_IDS):
        return [COCO_CLASSES[number] for number in _COCO_IDS], list(_COCO_IDS)
    return [f"class {number}" for number in range(num_classes)], list(range(num_classes))
