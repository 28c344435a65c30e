"""Files of the published codes (`.pth`), whatever model they hold: their tensors, arguments and description.

A file of a training run holds "model", "optimizer", "lr_scheduler", "epoch" and "args"; only "model", "epoch" and
"args" are used. Averaged weights, in "ema_model", come before those in "model". Files with "model" alone, or with
nothing but its tensors, are read as well.
"""

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError, listed
from deformable_detr.core.files import write_atomically
from deformable_detr.core.short_text import one_line
from deformable_detr.core.torch_files import inner_table, is_plain
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import MODELS, ModelConfig
from deformable_detr.weights.checkpoint import HEADER_ENTRY, Checkpoint, parse_header, to_header
from deformable_detr.weights.coco_classes import CATEGORY_IDS, COCO_CLASSES
from deformable_detr.weights.key_map import COUNTERS

log = logging.getLogger(__name__)

_PARALLEL = "module."
_AVERAGED = "ema_model"
_MOST_EPOCHS = 10**6
# Left by a tool that counts operations; the official codes ignore them as well.
_LEFTOVERS = ("total_params", "total_ops", COUNTERS)


class FoundSettings(NamedTuple):
    """Settings of the model in a published file, and which of them are assumed."""

    config: Any
    """Settings of the model, of the class that it has for them."""
    assumed: tuple[str, ...]
    """Names of settings that the file does not tell; they have the values of the published models."""


def averaged_first(document: Any) -> Any:
    """Document with the averaged weights alone, in "model", if it has a table of them; else the document itself."""
    averaged = document.get(_AVERAGED) if isinstance(document, dict) else None
    if isinstance(averaged, dict) and averaged and all(isinstance(tensor, Tensor) for tensor in averaged.values()):
        return {"model": averaged}
    return document


def parameter_names(document: Any) -> set[str]:
    """Names of the tensors in a document, without the prefix of a parallel run; none if it holds no table of them."""
    table = inner_table(averaged_first(document))
    return {str(name).removeprefix(_PARALLEL) for name in table} if isinstance(table, dict) else set()


def official_tensors(path: Path, document: Any) -> dict[str, Tensor]:
    """Tensors of the model by official names, without the prefix of a parallel run and without counters.

    Averaged weights are taken where a file has them.

    Args:
        path: path of the file, for messages.
        document: content of the file.

    Raises:
        CheckpointError: there is no table of named tensors.
    """
    table = inner_table(averaged_first(document))
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


def arguments_of(document: Any) -> dict[str, Any] | None:
    """Arguments of the run that wrote a file; None if it has none."""
    args = document.get("args") if isinstance(document, dict) else None
    if isinstance(args, argparse.Namespace):
        return vars(args)
    # A settings object of DINO's authors keeps its table in an attribute.
    args = getattr(args, "_cfg_dict", args)
    return args if isinstance(args, dict) else None


def unlike(official: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> dict[str, list[str]]:
    """Names of tensors that are missing, unexpected, or of another shape, by these words.

    Args:
        official: tensors by official names.
        expected: shapes that a model of these settings has.
    """
    return {
        "missing": [name for name in expected if name not in official],
        "unexpected": [name for name in official if name not in expected],
        "of another shape": [
            f"{name} is {list(official[name].shape)} there and {list(shape)} here"
            for name, shape in expected.items()
            if name in official and official[name].shape != shape
        ],
    }


def counted(found: Mapping[str, list[str]]) -> str:
    """Line for people of what `unlike` has found."""
    problems = [f"{len(names)} {what}: {one_line(listed(names), 1000)}" for what, names in found.items() if names]
    return "; ".join(problems)


def description(
    path: Path, document: Any, config: ModelConfig, *, source: str, assumed: str, by_class: bool = False
) -> dict[str, Any]:
    """Description of the checkpoint: ours if the file has one, else what is known of the published models.

    Args:
        path: path of the file.
        document: content of the file.
        config: settings of the model.
        source: what the file is and whose, in words, for the provenance.
        assumed: settings that had to be assumed, in words.
        by_class: whether 80 channels are COCO's 80 classes. They are not where channel i is category id i.
    """
    ours = document.get(HEADER_ENTRY)
    if isinstance(ours, str):
        header = parse_header(path, ours)
    else:
        # The published models have COCO's channels and the licence of the code that they are of.
        of_coco = _coco_channels(config.num_classes, by_class=by_class)
        numbers = range(config.num_classes) if of_coco is None else of_coco
        header = {
            "classes": [f"class {i}" if of_coco is None else COCO_CLASSES[i] for i in numbers],
            "category_ids": list(numbers),
            "preprocessing": to_dict(Preprocessing()),
            "metrics": {},
            "provenance": {"source": source},
            "licence": "" if of_coco is None else "Apache-2.0",
        }
        epoch = document.get("epoch")
        if isinstance(epoch, int) and 0 <= epoch < _MOST_EPOCHS:
            header["provenance"]["epochs"] = str(epoch + 1)
        if averaged_first(document) is not document:
            header["provenance"]["averaged"] = f"the entry {_AVERAGED!r}"
        if assumed:
            header["provenance"]["assumed"] = assumed
    return header | {"model": {"name": MODELS.name_of(config), "config": to_dict(config)}}


def _coco_channels(num_classes: int, *, by_class: bool) -> Sequence[int] | None:
    """COCO's category id of each channel, if so many channels are those of a published model; else None."""
    if num_classes == len(COCO_CLASSES):
        return range(num_classes)
    return CATEGORY_IDS if by_class and num_classes == len(CATEGORY_IDS) else None


def assumed_values(path: Path, config: ModelConfig, assumed: Sequence[str]) -> str:
    """Settings that a file does not tell, with the values that were assumed, in words; there is a warning of them.

    Args:
        path: path of the file, for the warning.
        config: settings of the model.
        assumed: names of the settings that had to be assumed.
    """
    values = ", ".join(f"{name}={getattr(config, name)}" for name in assumed)
    if values:
        log.warning("%s does not tell all settings of its model; taken as in the published ones: %s", path, values)
    return values


def arguments_for(path: Path, config: Any, to_arguments: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Arguments of a published code for a model, for a file that is to be written.

    Args:
        path: path of the file, for messages.
        config: settings of the model.
        to_arguments: function that makes the arguments.

    Raises:
        CheckpointError: the code has no such model; the message names the file, the setting, and a way out.
    """
    try:
        return to_arguments(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; write a .safetensors file, which holds every model") from error


def owned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, each with memory of its own.

    The file that they come from may then be changed or deleted; and `torch.save` writes the whole storage of a tensor
    that is part of another one.
    """
    return {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }


def write_document(checkpoint: Checkpoint, official: Mapping[str, Tensor], args: Mapping[str, Any], path: Path) -> None:
    """Write a file of a published code, of tensors and plain values only, with our description of the checkpoint.

    Args:
        checkpoint: the checkpoint.
        official: its weights by official names, each with memory of its own.
        args: arguments of the official code for this model.
        path: path of the file.

    Raises:
        OutputError: the file cannot be written.
    """
    # The official codes ignore entries that they do not know.
    document = {"model": dict(official), "args": dict(args), HEADER_ENTRY: json.dumps(to_header(checkpoint))}
    write_atomically(path, lambda temporary: _save(document, temporary))


def warn_of_what_changes(checkpoint: Checkpoint, path: Path, standard: Any) -> None:
    """Warn of classes that the official code would number differently, and of settings that its files cannot hold.

    Args:
        checkpoint: the checkpoint that is written.
        path: path of the file.
        standard: settings of the published model.
    """
    config: Any = checkpoint.model
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


def _save(document: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:  # with a path, torch would write its name into the file
            torch.save(document, file)
    except RuntimeError as error:  # torch reports a full disk so
        raise OSError(str(error)) from error
