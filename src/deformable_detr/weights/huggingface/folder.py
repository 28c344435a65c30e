"""Folders of the library transformers, as on the Hugging Face hub, whatever detector they hold.

A folder holds config.json, preprocessor_config.json and weights, in the form that versions 4 and 5 read and write. The
library itself is not needed.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from deformable_detr.core.errors import CheckpointError, ConfigError, OutputError, listed
from deformable_detr.core.files import write_json
from deformable_detr.core.reading import read_file, read_json
from deformable_detr.core.short_text import one_line
from deformable_detr.core.torch_files import FLOATS, check_numbers, of_unusual_type, read_tensors, write_tensors
from deformable_detr.core.version import __version__
from deformable_detr.core.yaml_loader import YamlError, yaml_value
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import ModelConfig
from deformable_detr.weights.checkpoint import Checkpoint, check_fit, sketch
from deformable_detr.weights.description import short_fact, short_facts
from deformable_detr.weights.hub import CARD, CONFIG, PREPROCESSING, WEIGHTS
from deformable_detr.weights.huggingface import preprocessing as transformers_preprocessing
from deformable_detr.weights.huggingface.config_file import category_ids_from, classes_from
from deformable_detr.weights.key_map import COUNTERS
from deformable_detr.weights.shared_heads import CLASS_HEADS_REMOVED

# One file, or an index of the files that hold the parts; in order of preference.
_WEIGHTS_FILES = tuple(file for name in WEIGHTS for file in (name, f"{name}.index.json"))
_LONGEST_CARD = 1 << 24
# Licences that the hub has an identifier for; all others are "other" with a name.
_HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0")


class FolderFormat(NamedTuple):
    """Detector of transformers: how its config.json and its weights are read."""

    model_from: Callable[[Mapping[str, Any]], tuple[ModelConfig, list[str]]]
    """Settings of our network from the content of config.json, and the names of settings that are not known."""
    weights_from: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    """Weights by our names from theirs, for a network of these settings."""
    is_class_head: Callable[[str], bool]
    """Whether a name of theirs is that of a parameter of a class head."""


def read_folder(folder: Path, of: FolderFormat) -> Checkpoint:
    """Checkpoint from a folder that transformers can load.

    Category ids are those that this package wrote, else the numbers of the channels, as in the published models.
    Weights become float32. The provenance says what the folder did not tell, and which of its settings were ignored.

    Args:
        folder: the folder.
        of: the detector that it holds.

    Raises:
        CheckpointError: files are missing or damaged, are of another model, do not fit each other, or describe a model
            that this package cannot build.
    """
    # Settings, classes and preprocessing.
    settings = _read_json(folder / CONFIG)
    try:
        model, unknown = of.model_from(settings)
        classes = classes_from(settings)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    provenance = {"source": f"transformers folder {folder.name}"}
    version = settings.get("transformers_version")
    if isinstance(version, str) and version:
        provenance["transformers"] = version
    preprocessing, unknown_too = _read_preprocessing(folder, provenance)
    if unknown or unknown_too:
        provenance["settings left aside"] = ", ".join([*unknown, *unknown_too])
    # Weights, which must be exactly those of a model with these settings.
    path, held = _read_weights(folder)
    weights = _our_weights(path, held, model, of)
    try:
        category_ids = category_ids_from(settings, classes)
        return Checkpoint(
            weights=weights,
            model=model.portable(),
            classes=classes,
            category_ids=category_ids,
            preprocessing=preprocessing,
            provenance=short_facts(provenance),
            licence=_read_licence(folder),
        )
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    title: str,
    processor: str,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
) -> None:
    """Write a folder that transformers' `from_pretrained` loads without a network.

    The folder appears only when it is complete.

    Args:
        checkpoint: the checkpoint to write; its training state is left out.
        folder: a folder that does not exist or is empty.
        title: name of the model, for the model card.
        processor: class of transformers' image processor for this model.
        settings: content of config.json.
        weights: tensors by the names in files of transformers.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"output folder {folder} is not empty; name another")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    owned = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    # Everything is written to a temporary folder, which gets its final name at the end.
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_json(temporary / CONFIG, dict(settings))
        write_json(
            temporary / PREPROCESSING,
            transformers_preprocessing.processor_settings(checkpoint.preprocessing, processor),
        )
        (temporary / CARD).write_text(_card(checkpoint, title), encoding="utf-8")
        write_tensors(owned, temporary / WEIGHTS[0], {"format": "pt"})
        # safetensors makes its file private; the other files follow the user's umask.
        (temporary / WEIGHTS[0]).chmod((temporary / CONFIG).stat().st_mode)
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path.parent} is not a folder of transformers: it has no {path.name}")
    return read_json(path, error_type=CheckpointError)


def _read_preprocessing(folder: Path, provenance: dict[str, str]) -> tuple[Preprocessing, list[str]]:
    path = folder / PREPROCESSING
    if not path.exists():
        provenance["preprocessing"] = f"the paper's; the folder has no {PREPROCESSING}"
        return Preprocessing(), []
    try:
        return transformers_preprocessing.preprocessing_from(_read_json(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    path = next((folder / name for name in _WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds no weights: there is none of {', '.join(_WEIGHTS_FILES)}")
    return path, _read_parts(path) if path.suffix == ".json" else read_tensors(path)


def _read_parts(index: Path) -> dict[str, Tensor]:
    table = _read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(_is_file_name(name) for name in table.values()):
        raise CheckpointError(f"{index} has no weight_map that names files beside it")
    names = sorted(set(table.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        found = one_line(listed(missing), 1000)
        raise CheckpointError(f"{index} names {len(names)} files; {len(missing)} are not there: {found}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_tensors(index.parent / name)
    lost = [name for name in table if name not in tensors]
    if lost:
        found = one_line(listed(lost), 1000)
        raise CheckpointError(f"{index} names {len(lost)} tensors that its files do not hold: {found}")
    return tensors


def _is_file_name(name: object) -> bool:
    """Whether a value is the name of a file in the same folder."""
    if not isinstance(name, str) or Path(name).name != name:
        return False
    return "\0" not in name and len(name.encode(errors="replace")) < 256


def _our_weights(path: Path, held: Mapping[str, Tensor], model: ModelConfig, of: FolderFormat) -> dict[str, Tensor]:
    """Weights by our names, checked to be exactly those of `model`, and finite."""
    network = sketch(model, path)
    check_numbers(held, path)
    wrong = [name for name, tensor in held.items() if tensor.dtype not in FLOATS and not name.endswith(COUNTERS)]
    if wrong:
        raise CheckpointError(f"{path}: {of_unusual_type(wrong[0], held[wrong[0]])}")
    if not any(of.is_class_head(name) for name in held):
        raise CheckpointError(f"{path}: {CLASS_HEADS_REMOVED}")
    try:
        weights = of.weights_from({name: tensor.float() for name, tensor in held.items()}, model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for name, tensor in network.state_dict().items():
        if name.endswith(COUNTERS):  # counters of batch norm: not in their files, and no result needs them
            weights[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    check_fit(network, weights, str(path))
    return weights


def _read_licence(folder: Path) -> str:
    """Licence in the header of the model card; empty if there is no card, or no licence in it."""
    try:
        text = read_file(folder / CARD, most=_LONGEST_CARD).decode(errors="replace").replace("\r\n", "\n")
    except OSError:  # no card, or a pipe in its place
        return ""
    start, _, rest = text.partition("---\n")
    header, end, _ = rest.partition("\n---")
    if start.strip("\ufeff \n") or not end:
        return ""
    try:
        facts = yaml_value(header)
    except YamlError:
        return ""
    licence = facts.get("license") if isinstance(facts, dict) else None
    if licence == "other":
        licence = facts.get("license_name", licence)
    return short_fact(licence) if isinstance(licence, str) else ""


def _card(checkpoint: Checkpoint, title: str) -> str:
    facts: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "object-detection"}
    licence = checkpoint.licence
    if licence.lower() in _HUB_LICENCES:
        facts["license"] = licence.lower()
    elif licence:
        facts |= {"license": "other", "license_name": licence}
    lines = [
        "---",
        yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
    ]
    named = f"{len(checkpoint.classes)} classes, {checkpoint.model.describe()}"
    lines += [f"{named}. Written by deformable-detr {__version__}.", ""]
    lines += [f"- {name}: {value:.4f}" for name, value in checkpoint.metrics.items()]
    lines += [f"- {name}: {value}" for name, value in checkpoint.provenance.items()]
    return "\n".join(lines).rstrip() + "\n"
