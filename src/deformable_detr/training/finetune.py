"""Fine-tuning: start from the weights of a detector, with its structure; known classes keep their rows in the heads."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.core.addresses import without_secrets
from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError, ConfigError, listed
from deformable_detr.core.progress import Reporter
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import MODELS, interface_of
from deformable_detr.models.interface import ClassRows, GivenModelConfig, training_tensors_of
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import with_image_size
from deformable_detr.training.freezing import check_parts
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint, load_weights
from deformable_detr.weights.coco_classes import COCO_CLASSES, UNUSED

_HOLES = frozenset(name for name in COCO_CLASSES if name.startswith(UNUSED))
# Separators between two words: not at the ends, where a hyphen may be a sign, and not between two digits, because
# "level 1-1" is not "level 11".
_JOINT = re.compile(r"(?<=[^\W_])(?:(?<!\d)[\s_-]+|[\s_-]+(?!\d))(?=[^\W_])")
_JOINT_OF_DIGITS = re.compile(r"(?<=\d)[\s_-]+(?=\d)")
_NAMED = 8


class Source(NamedTuple):
    """Source of weights to start from."""

    name: str
    """Name of the file or folder without its path, or the address as it was given."""
    checkpoint: Checkpoint
    """Weights, with the structure and preprocessing that the run takes over."""


class Origin(NamedTuple):
    """Origin of the weights that a run started from, as its checkpoints name it; empty if it started from none."""

    weights: str = ""
    """Name of the weights, and what is known about how they were made."""
    licence: str = ""
    """Licence of the weights; empty if it is not known."""


class Transfer(NamedTuple):
    """Transfer of classes: which class of the weights each class of the run continues."""

    source: Source
    """Weights to start from."""
    classes: tuple[str, ...]
    """Names of the run's classes, by class id."""
    rows: tuple[int | None, ...]
    """Class id in the weights for each class of the run; None for a class that starts from its initial values."""
    class_rows: ClassRows
    """Names of the tensors of the network that have a row for each class or channel."""

    @property
    def kept(self) -> dict[str, str]:
        """Classes that the weights know: names in the weights by names in the run."""
        known = self.source.checkpoint.classes
        return {name: known[row] for name, row in zip(self.classes, self.rows, strict=True) if row is not None}

    @property
    def fresh(self) -> list[str]:
        """Names of the run's classes that the weights do not know."""
        return [name for name, row in zip(self.classes, self.rows, strict=True) if row is None]

    @property
    def not_needed(self) -> list[str]:
        """Names of classes that only the weights know; unused category ids of COCO do not count."""
        known = self.source.checkpoint.classes
        return [name for row, name in enumerate(known) if row not in self.rows and name not in _HOLES]

    @property
    def origin(self) -> Origin:
        """Origin of the weights: their name, what is known about how they were made, and their licence."""
        checkpoint = self.source.checkpoint
        made = [checkpoint.provenance[key] for key in ("recipe", "data") if checkpoint.provenance.get(key)]
        made += [f"from {earlier}" for earlier in [checkpoint.provenance.get("weights")] if earlier]
        return Origin(self.source.name + (f" ({', '.join(made)})" if made else ""), checkpoint.licence)

    def heads(self) -> tuple[list[str], list[str]]:
        """Names of tensors with a row for each class, and of tensors with a row for each channel of the proposals."""
        names, rows = self.source.checkpoint.weights, self.class_rows
        by_class = [name for name in names if name.startswith(rows.by_class)]
        return by_class, [name for name in names if name.startswith(rows.by_channel)]

    def describe(self) -> str:
        """Line for people: how many tensors are taken over, and which classes are kept, fresh or not needed."""
        by_class, by_channel = self.heads()
        total = len(self.source.checkpoint.weights)
        renamed = [name if name == old else f"{name} <- {old}" for name, old in self.kept.items()]
        line = (
            f"weights: {total - len(by_class) - len(by_channel)} of {total} tensors of {self.origin.weights} as they "
            f"are; {len(by_class)} of the class heads by class: {_counted(len(renamed), 'kept', renamed)}, "
            f"{_counted(len(self.fresh), 'fresh', self.fresh)}, "
            f"{_counted(len(self.not_needed), 'not needed', self.not_needed)}"
        )
        if by_channel:
            line += f"; {len(by_channel)} of the proposals' class head by channel, channel 0 asking for any object"
        return line + (f"; licence {self.origin.licence}" if self.origin.licence else "")

    def record(self) -> dict[str, Any]:
        """Content of transfer.json: the transfer in full."""
        by_class, by_channel = self.heads()
        return {
            "weights": self.origin.weights,
            "licence": self.origin.licence,
            "tensors": len(self.source.checkpoint.weights),
            "tensors_by_class": by_class,
            "tensors_by_channel": by_channel,
            "classes": {name: self.kept.get(name) for name in self.classes},
            "classes_not_needed": self.not_needed,
        }


def read_source(weights: str | Path | Source, *, reporter: Reporter | None = None) -> Source:
    """Source of weights, read by `deformable_detr.weights.read`.

    Args:
        weights: a file, a folder, an address, or a source, which is returned as it is.
        reporter: receives messages and the progress of a download.

    Raises:
        CheckpointError: the weights are missing, damaged or not of a detector.
    """
    if isinstance(weights, Source):
        return weights
    path = Path(weights)
    name = path.resolve().name if path.exists() else without_secrets(str(weights))
    return Source(name, read(weights, reporter=reporter))


def start_from(config: TrainConfig, source: Source | None) -> TrainConfig:
    """Config of a run that starts from `source`, or, without a source, at most from the weights of a backbone.

    With a source, `model` and the preprocessing are those of the source. Only the image size stays that of the config,
    unless `preprocessing` is "weights". If `preprocessing` is "auto", it is chosen later, with the mean and standard
    deviation of the source.

    Raises:
        ConfigError: the recipe needs a source, or parts with random weights would be frozen.
    """
    if config.run.freeze and not isinstance(config.model, GivenModelConfig):
        model = config.model if source is None else source.checkpoint.model
        check_parts(config.run.freeze, MODELS.parts(model))
    if source is not None:
        theirs, ours = source.checkpoint.preprocessing, config.preprocessing
        if ours == "weights":
            config = replace(with_image_size(config, theirs.short_side), preprocessing=theirs)
        elif isinstance(ours, Preprocessing):
            sized = replace(theirs, short_side=ours.short_side, max_side=ours.max_side)
            config = replace(config, preprocessing=sized)
        if not isinstance(config.model, GivenModelConfig):
            config = replace(config, model=source.checkpoint.model)
        return replace(config, run=replace(config.run, start="weights"))
    if config.run.start == "weights":
        raise ConfigError(
            f"{config.name} starts from the weights of a whole detector; name them with --weights "
            "(in Python, with weights=...)"
        )
    random = [name for name in config.run.freeze if name not in config.model.pretrained_parts]
    if random:
        raise ConfigError(
            f"freeze holds {', '.join(random)}, which would keep random weights: "
            "name weights of a whole detector with --weights, or leave that out"
        )
    return config


def changed(source: Source, config: TrainConfig) -> Source:
    """Source with the free settings of the model and the preprocessing of `config`.

    A setting of the model is free if the shape and meaning of no tensor depend on it, such as dropout.

    Raises:
        ConfigError: the config has another structure than the source.
    """
    ours, checkpoint = config.model, source.checkpoint
    theirs = checkpoint.model
    if type(ours) is not type(theirs):
        raise ConfigError(
            f"model.name is {MODELS.name_of(ours)}, and {source.name} is of a {MODELS.name_of(theirs)}: "
            "a run that starts from weights takes their structure"
        )
    for name in [name for name in to_dict(theirs) if name not in theirs.free_settings]:
        wanted, there = getattr(ours, name), getattr(theirs, name)
        if wanted != there:
            raise ConfigError(
                f"model.{name} is set to {wanted!r}, and {source.name} has {there!r}: "
                "a run that starts from weights takes their structure; leave the setting out"
            )
    preprocessing = config.preprocessing
    if isinstance(preprocessing, str):
        preprocessing = checkpoint.preprocessing
    return source._replace(checkpoint=replace(checkpoint, model=ours, preprocessing=preprocessing))


def plan(
    source: Source, classes: Sequence[str], freeze: Iterable[str] = (), model: nn.Module | None = None
) -> Transfer:
    """Plan the transfer of weights to a run with these classes.

    Args:
        source: the weights to start from.
        classes: names of the run's classes, by class id.
        freeze: names of the parts that are frozen.
        model: a network of one's own; that of the source if left out.

    Raises:
        ConfigError: `freeze` holds the heads, and there are classes that the weights do not know.
    """
    known = source.checkpoint
    class_rows = MODELS.class_rows(known.model) if model is None else interface_of(model).class_rows
    transfer = Transfer(source, tuple(classes), match_classes(classes, known.classes), class_rows)
    if "heads" in freeze and transfer.fresh:
        raise ConfigError(
            f"freeze holds heads, but {source.name} does not know {listed(transfer.fresh, _NAMED)}; "
            "frozen heads would never learn what the weights do not know"
        )
    return transfer


def match_classes(wanted: Sequence[str], known: Sequence[str]) -> tuple[int | None, ...]:
    """Match classes by name.

    Equal names are matched first, then names that differ only in case or in how their words are joined: "Hot_dog",
    "hot dog" and "hotdog" are one class. A name that matches two classes is matched to none. No known class is matched
    twice, and unused category ids of COCO are never matched.

    Returns:
        Position in `known` for each class in `wanted`; None for a new class.
    """
    found: dict[int, int] = {}
    for key in (str, _plain):
        given = set(found.values())
        left = _by_name((i, key(name)) for i, name in enumerate(wanted) if i not in found and name not in _HOLES)
        free = _by_name((i, key(name)) for i, name in enumerate(known) if i not in given and name not in _HOLES)
        found |= {left[name]: free[name] for name in left.keys() & free.keys()}
    return tuple(found.get(i) for i in range(len(wanted)))


def fill(model: nn.Module, transfer: Transfer) -> None:
    """Load the weights into a network of the same structure that is initialised for the classes of the run.

    In every class head, rows of known classes are taken from the weights, and the others keep their initial values. The
    class head of the proposals is different: its channel 0 stands for an object of any class, and its other channels
    are trained as background. So its channels are taken over one by one, whatever the classes are. Rows after those of
    the classes, such as that of "no object", are taken over, too.

    Tensors that training alone needs keep their initial values where the weights lack them or have others, and are left
    out where the network does not need them.

    Args:
        model: network to change.
        transfer: weights and classes, from `plan`.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; the number of rows in class heads may
            differ.
    """
    checkpoint = transfer.source.checkpoint
    own, weights = model.state_dict(), dict(checkpoint.weights)
    by_class, by_channel = transfer.heads()
    ours, theirs = len(transfer.classes), len(checkpoint.classes)
    kept = [(new, old) for new, old in enumerate(transfer.rows) if old is not None]
    for name in (*by_class, *by_channel):
        if name not in own or own[name].shape[1:] != weights[name].shape[1:]:
            continue  # refused below, unless training alone needs it
        if name in by_channel:
            pairs = [(channel, channel) for channel in range(min(len(own[name]), len(weights[name])))]
        else:
            # Rows after those of the classes, such as that of "no object", are of no class and taken over.
            further = len(own[name]) - ours
            if len(weights[name]) - theirs != further:
                raise CheckpointError(
                    f"{transfer.source.name}: {name} has {len(weights[name])} rows for {theirs} classes"
                    + f" and not {theirs + further}" * (further > 0)
                )
            pairs = kept + [(ours + row, theirs + row) for row in range(further)]
        weights[name] = _rows(own[name], weights[name], pairs)
    optional = training_tensors_of(model)
    for name in [name for name in weights if name.startswith(optional)]:
        if name not in own or own[name].shape != weights[name].shape:
            del weights[name]
    weights |= {name: own[name] for name in own.keys() - weights.keys() if name.startswith(optional)}
    load_weights(model, weights, transfer.source.name)


def _rows(fresh: Tensor, old: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Copy of `fresh` with some rows of `old`; `pairs` are positions of a row in `fresh` and in `old`."""
    rows = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    mixed = fresh.clone()
    mixed[rows[:, 0]] = old[rows[:, 1]].to(mixed)
    return mixed


def _by_name(numbered: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Numbers by name, without names that occur more than once."""
    pairs = list(numbered)
    counts = Counter(name for _, name in pairs)
    return {name: number for number, name in pairs if counts[name] == 1}


def _plain(name: str) -> str:
    return _JOINT_OF_DIGITS.sub(" ", _JOINT.sub("", name.casefold().strip()))


def _counted(number: int, what: str, names: Sequence[str]) -> str:
    return f"{number} {what} ({listed(names, _NAMED)})" if names else f"none {what}"
