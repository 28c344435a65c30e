"""Reading and writing of checkpoints of the official code (`.pth`).

The official code is github.com/fundamentalvision/Deformable-DETR at 11169a60. A file of a training run holds "model",
"optimizer", "lr_scheduler", "epoch" and "args"; only "model", "epoch" and "args" are used. Files with "model" alone, or
with nothing but its tensors, are read as well.
"""

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError, listed
from deformable_detr.core.files import write_atomically
from deformable_detr.core.short_text import one_line
from deformable_detr.core.torch_files import check_memory, check_numbers, inner_table, is_plain, read_torch_file
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.checkpoint import (
    HEADER_ENTRY,
    Checkpoint,
    deformable_config,
    from_header,
    parse_header,
    sketch,
    to_header,
)
from deformable_detr.weights.coco_classes import COCO_CLASSES
from deformable_detr.weights.key_map import COUNTERS
from deformable_detr.weights.official.keys import from_official_keys, to_official_keys
from deformable_detr.weights.official.settings import has_size_tensors, most_like, settings_of, to_args
from deformable_detr.weights.recognise import foreign_model
from deformable_detr.weights.shared_heads import CLASS_HEADS_REMOVED, is_class_head

log = logging.getLogger(__name__)

_PARALLEL = "module."
_MOST_EPOCHS = 10**6
# Left by a tool that counts operations; the official code ignores them as well.
_LEFTOVERS = ("total_params", "total_ops", COUNTERS)


def read_official(path: Path, document: Any = None) -> Checkpoint:
    """Checkpoint from an official file; no code in the file is run.

    If another file of `torch.save` is given, the error says what it is, as far as that is known.

    Args:
        path: path of the file.
        document: content of the file, if it has been read already.

    Raises:
        CheckpointError: the file does not exist, is damaged, is of another kind or another model, or its settings and
            its tensors disagree.
    """
    # Tensors and settings of the file.
    document = read_torch_file(path) if document is None else document
    official = named_tensors(path, document)
    args = args_of(document)
    if not has_size_tensors(official):
        raise CheckpointError(_not_this_model(path, official, _names_and_shapes(path, most_like(official, args))))
    try:
        config, assumed = settings_of(official, args)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # The tensors must be exactly those of a model with these settings.
    expected = _names_and_shapes(path, config)
    if {name: tensor.shape for name, tensor in official.items()} != expected:
        raise CheckpointError(_not_this_model(path, official, expected))
    # The description of the checkpoint, with every setting that had to be assumed.
    check_memory(official, path)
    check_numbers(official, path)
    weights = _renamed(path, official, config)
    values = ", ".join(f"{name}={getattr(config, name)}" for name in assumed)
    if assumed:
        log.warning("%s does not tell all settings of its model; taken as in the published ones: %s", path, values)
    return from_header(path, _description(path, document, config, values), weights)


def write_official(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint for the official code (`main.py --resume FILE --eval`); `read_official` reads it, too.

    The file holds tensors and plain values only, so PyTorch loads it with `weights_only=True`. The official code uses
    channel i of the class heads for category id i, and has 91 channels unless its source is changed.

    Raises:
        CheckpointError: the official code has no such model; the message names the setting.
        OutputError: the file cannot be written.
    """
    try:
        model = deformable_config(checkpoint, "the official code")
        args = to_args(model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; write a .safetensors file, which holds every model") from error
    _warn_of_what_changes(checkpoint, path)
    # Copies: torch.save writes the whole storage of a tensor that is part of another one.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in checkpoint.weights.items()}
    document = {
        "model": to_official_keys(own, model),
        "args": args,
        # The official code ignores entries that it does not know.
        HEADER_ENTRY: json.dumps(to_header(checkpoint)),
    }
    write_atomically(path, lambda temporary: save_document(document, temporary))


def save_document(document: dict[str, Any], path: Path) -> None:
    """Write a document with `torch.save`.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:  # with a path, torch would write its name into the file
            torch.save(document, file)
    except RuntimeError as error:  # torch reports a full disk so
        raise OSError(str(error)) from error


def _warn_of_what_changes(checkpoint: Checkpoint, path: Path) -> None:
    config, standard = checkpoint.model, DeformableDETRConfig()
    if checkpoint.category_ids != tuple(range(config.num_classes)):
        log.warning(
            "%s: the official code takes channel i for category id i; number the categories of its data set from 0 "
            "in the order %s",
            path,
            listed(checkpoint.classes),
        )
    names = ("frozen_stages", "frozen_batch_norm", "backbone_weights")
    lost = [f"{name}={getattr(config, name)}" for name in names if getattr(config, name) != getattr(standard, name)]
    if lost:
        log.warning("%s: official files have no place for %s, which matter for training alone", path, ", ".join(lost))


def named_tensors(path: Path, document: Any) -> dict[str, Tensor]:
    """Tensors of the model in a document, by their names, without the prefix of a parallel run and without counters.

    Raises:
        CheckpointError: the document holds no table of named tensors.
    """
    table = inner_table(document)
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise CheckpointError(f"{path} holds no table of named tensors, but a {type(table).__name__}")
    if table and all(name.startswith(_PARALLEL) for name in table):
        table = {name.removeprefix(_PARALLEL): tensor for name, tensor in table.items()}
    kept = {name: tensor for name, tensor in table.items() if not name.endswith(_LEFTOVERS)}
    wrong = [name for name, tensor in kept.items() if not is_plain(tensor)]
    if wrong or not kept:
        raise CheckpointError(
            f"{path} holds no table of named tensors: {len(wrong)} of its {len(kept)} entries are something else"
            + f", {one_line(listed(wrong), 1000)}" * bool(wrong)
        )
    if len(kept) < len(table):
        log.info("%s: %d counters are not used", path, len(table) - len(kept))
    return kept


def args_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments in the document of a training run, as a table; None if there are none."""
    args = document.get("args")
    if isinstance(args, argparse.Namespace):
        return vars(args)
    # A settings object of its authors keeps its table in an attribute.
    args = getattr(args, "_cfg_dict", args)
    return args if isinstance(args, dict) else None


def _names_and_shapes(path: Path, config: DeformableDETRConfig) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in an official file of this model."""
    own = sketch(config, path).state_dict()
    return {name: tensor.shape for name, tensor in to_official_keys(own, config).items()}


def _not_this_model(path: Path, official: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> str:
    found = {
        "missing": [name for name in expected if name not in official],
        "unexpected": [name for name in official if name not in expected],
        "of another shape": [
            f"{name} is {list(official[name].shape)} there and {list(shape)} here"
            for name, shape in expected.items()
            if name in official and official[name].shape != shape
        ],
    }
    if all(is_class_head(name) for name in found["missing"]) and not found["unexpected"] + found["of another shape"]:
        return f"{path}: {CLASS_HEADS_REMOVED}"
    kind = foreign_model(official)
    looks = f"; it looks like {kind}" if kind else ""
    problems = [f"{len(names)} {what}: {one_line(listed(names), 1000)}" for what, names in found.items() if names]
    return (
        f"{path} is not an official Deformable DETR{looks}; "
        f"of the {len(expected)} tensors of such a model, {'; '.join(problems)}"
    )


def _description(path: Path, document: dict[str, Any], config: DeformableDETRConfig, assumed: str) -> dict[str, Any]:
    """Description of the checkpoint: ours if the file has one, else what is known of the published models."""
    ours = document.get(HEADER_ENTRY)
    if isinstance(ours, str):
        header = parse_header(path, ours)
    else:
        # The published models use COCO's category ids and have the licence of the official code.
        of_coco = config.num_classes == len(COCO_CLASSES)
        header = {
            "classes": COCO_CLASSES if of_coco else [f"class {i}" for i in range(config.num_classes)],
            "category_ids": list(range(config.num_classes)),
            "preprocessing": to_dict(Preprocessing()),
            "metrics": {},
            "provenance": {"source": f"official checkpoint {path.name}"},
            "licence": "Apache-2.0" if of_coco else "",
        }
        epoch = document.get("epoch")
        if isinstance(epoch, int) and 0 <= epoch < _MOST_EPOCHS:
            header["provenance"]["epochs"] = str(epoch + 1)
        if assumed:
            header["provenance"]["assumed"] = assumed
    return header | {"model": {"name": "deformable_detr", "config": to_dict(config)}}


def _renamed(path: Path, official: Mapping[str, Tensor], config: DeformableDETRConfig) -> dict[str, Tensor]:
    try:
        weights = from_official_keys(official, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # Copies, so that the file may be changed or deleted afterwards.
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
