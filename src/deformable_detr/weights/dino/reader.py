"""Reading of published checkpoints of DINO, and writing of those of its authors (`.pth`).

The authors' files hold "model", perhaps averaged weights in "ema_model", "epoch" and "args"; those of detrex "model",
those of OpenMMLab "state_dict" and "meta". No published file of detrex or OpenMMLab could be opened when this was
written: their names were taken from their code.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.torch_files import check_memory, check_numbers
from deformable_detr.models import DINOConfig
from deformable_detr.weights.checkpoint import Checkpoint, from_header, sketch
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
    dino_settings,
    shares_told_by_authors,
    to_authors_args,
    told_by_authors,
    told_by_openmmlab,
)
from deformable_detr.weights.key_map import COUNTERS
from deformable_detr.weights.official.document import (
    FoundSettings,
    arguments_for,
    arguments_of,
    assumed_values,
    counted,
    description,
    official_tensors,
    owned,
    unlike,
    warn_of_what_changes,
    write_document,
)
from deformable_detr.weights.shared_heads import CLASS_HEADS_REMOVED

_LAYER = re.compile(r"(?:transformer\.)?decoder\.layers\.([0-9]{1,6})\.")
_MAP = re.compile(r"neck\.convs\.([0-9]{1,6})\.conv\.weight")
_CODE = {"authors": "its authors", "detrex": "detrex", "openmmlab": "OpenMMLab"}


def dino_from_document(path: Path, document: Any) -> Checkpoint:
    """Checkpoint from the content of a published file of a DINO.

    Averaged weights are taken where a file has them.

    Args:
        path: path of the file, for messages.
        document: content of the file, as `read_torch_file` gives it.

    Raises:
        CheckpointError: it is of another model, or its settings and its tensors disagree; the message
            names tensors that are unknown, missing or of another shape.
    """
    theirs = official_tensors(path, document)
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
    values = assumed_values(path, found.config, found.assumed)
    words = f"checkpoint {path.name} of DINO, as of {_CODE[source]}"
    header = description(path, document, found.config, source=words, assumed=values, by_class=True)
    return from_header(path, header, owned(weights))


def write_dino(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint for the authors' code (`main.py --resume FILE --eval`); it is read here, too.

    Raises:
        CheckpointError: the authors' code has no such model; the message names the setting.
        OutputError: the file cannot be written.
    """
    config = checkpoint.model
    assert isinstance(config, DINOConfig)
    args = arguments_for(path, config, to_authors_args)
    warn_of_what_changes(checkpoint, path, DINOConfig())
    write_document(checkpoint, to_authors_keys(owned(checkpoint.weights), config), args, path)


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
        args = arguments_of(entries) or {}
        told = told_by_authors(args)
        shares = shares_told_by_authors(args)
        # Heads of their own are equal, too, before any training.
        shared = shares_heads(theirs, len(layers)) if shares is None else shares
    else:
        num_maps = sum(_MAP.fullmatch(name) is not None for name in theirs)
        told = told_by_openmmlab(entries.get("meta")) if source == "openmmlab" else {}
    weights = to_our_keys(theirs, source, Sizes(len(layers), num_maps, shared))
    if not any(name.startswith("decoder.class_heads.") for name in weights):
        raise CheckpointError(CLASS_HEADS_REMOVED)
    return dino_settings(weights, source, told, shared_heads=shared), weights


def _check_shapes(path: Path, weights: Mapping[str, Tensor], config: DINOConfig, source: Source) -> None:
    """Check that the tensors are exactly those of a model with these settings."""
    names = key_map(source, sizes_of(config))
    own = {name: one for name, one in sketch(config, path).state_dict().items() if not name.endswith(COUNTERS)}
    expected = {names.to_theirs(name) or name: one.shape for name, one in own.items()}
    problems = counted(unlike({names.to_theirs(name) or name: one for name, one in weights.items()}, expected))
    if problems:
        raise CheckpointError(
            f"{path} is not a DINO as of {_CODE[source]}; of the {len(expected)} tensors of such a model, {problems}"
        )
