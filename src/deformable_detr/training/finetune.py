"""Fine-tuning: start from another detector's weights, in its structure, each class from the rows of its own name."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError, ConfigError, listed
from deformable_detr.core.progress import Reporter
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import MODELS, interface_of
from deformable_detr.models.interface import ClassRows, GivenModelConfig
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import with_image_size
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint, load_weights
from deformable_detr.weights.coco_classes import COCO_CLASSES, UNUSED
from deformable_detr.weights.download import shown

_HOLES = frozenset(name for name in COCO_CLASSES if name.startswith(UNUSED))
# Not at the ends, where a hyphen may be a sign, and not between digits: level 1-1 is not level 11.
_JOINT = re.compile(r"(?<=[^\W_])(?:(?<!\d)[\s_-]+|[\s_-]+(?!\d))(?=[^\W_])")
_JOINT_OF_DIGITS = re.compile(r"(?<=\d)[\s_-]+(?=\d)")
_NAMED = 8


class Source(NamedTuple):
    """Weights to start from. Its model and preprocessing are what a run takes over."""

    name: str
    """Of a file or folder, without the path to it; of anything else as it was asked for."""
    checkpoint: Checkpoint


class Origin(NamedTuple):
    """Origin of the weights that a run started from, as new checkpoints name it; empty where it started from none."""

    weights: str = ""
    licence: str = ""


class Transfer(NamedTuple):
    """Which class of a run goes on from which class of the weights."""

    source: Source
    classes: tuple[str, ...]
    """The run's, by class id."""
    rows: tuple[int | None, ...]
    """Class id that each had in the weights; None starts fresh."""
    class_rows: ClassRows
    """Tensors of the network with rows that mean something of their own."""

    @property
    def kept(self) -> dict[str, str]:
        """Names of classes that go on, and their names in the weights."""
        known = self.source.checkpoint.classes
        return {name: known[row] for name, row in zip(self.classes, self.rows, strict=True) if row is not None}

    @property
    def fresh(self) -> list[str]:
        """Names of classes that the weights do not know."""
        return [name for name, row in zip(self.classes, self.rows, strict=True) if row is None]

    @property
    def not_needed(self) -> list[str]:
        """Names of classes that only the weights know; COCO's holes are no classes."""
        known = self.source.checkpoint.classes
        return [name for row, name in enumerate(known) if row not in self.rows and name not in _HOLES]

    @property
    def origin(self) -> Origin:
        """The weights' name, what is known of how they were made, and their licence."""
        checkpoint = self.source.checkpoint
        made = [checkpoint.provenance[key] for key in ("recipe", "data") if checkpoint.provenance.get(key)]
        made += [f"from {earlier}" for earlier in [checkpoint.provenance.get("weights")] if earlier]
        return Origin(self.source.name + (f" ({', '.join(made)})" if made else ""), checkpoint.licence)

    def heads(self) -> tuple[list[str], list[str]]:
        """Names of tensors with a row for each class, and of those with a row for each channel of the proposals."""
        names, rows = self.source.checkpoint.weights, self.class_rows
        by_class = [name for name in names if name.startswith(rows.by_class)]
        return by_class, [name for name in names if name.startswith(rows.by_channel)]

    def describe(self) -> str:
        """One line for people: what came from where, what did not, and what starts fresh."""
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
        """The same as data, with nothing left out, as transfer.json holds it."""
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
    """Weights from wherever `deformable_detr.weights.read` finds them.

    Raises:
        CheckpointError: they are missing, damaged or not of a detector.
    """
    if isinstance(weights, Source):
        return weights
    path = Path(weights)
    name = path.resolve().name if path.exists() else shown(str(weights))
    return Source(name, read(weights, reporter=reporter))


def start_from(config: TrainConfig, source: Source | None) -> TrainConfig:
    """Config of a run that starts from `source`, or from the weights of a backbone at most.

    With a source, the whole of `model` is the source's and so is the preprocessing, but for the size of the images:
    that stays the config's, unless `preprocessing` is "weights". Where it is "auto", mean and standard deviation are
    the source's when it is chosen.

    Raises:
        ConfigError: the recipe needs a source, or parts would be frozen that have learnt nothing.
    """
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
            f"freeze holds {', '.join(random)}, which would keep random values: "
            "name weights of a whole detector with --weights, or leave that out"
        )
    return config


def changed(source: Source, config: TrainConfig) -> Source:
    """Weights with the settings that they leave free, and the preprocessing, as `config` has them.

    Free are those settings of the model on which no tensor depends, such as dropout.

    Raises:
        ConfigError: the config wants another structure.
    """
    ours, checkpoint = config.model, source.checkpoint
    theirs = checkpoint.model
    if type(ours) is not type(theirs):
        raise ConfigError(
            f"model.name is {MODELS.name_of(ours)}, and {source.name} is of a {MODELS.name_of(theirs)}: "
            "who starts from weights takes their structure"
        )
    for name in [name for name in to_dict(theirs) if name not in theirs.free_settings]:
        wanted, there = getattr(ours, name), getattr(theirs, name)
        if wanted != there:
            raise ConfigError(
                f"model.{name} is set to {wanted!r}, and {source.name} has {there!r}: "
                "who starts from weights takes their structure; leave the setting out"
            )
    preprocessing = config.preprocessing
    if isinstance(preprocessing, str):
        preprocessing = checkpoint.preprocessing
    return source._replace(checkpoint=replace(checkpoint, model=ours, preprocessing=preprocessing))


def plan(
    source: Source, classes: Sequence[str], freeze: Iterable[str] = (), model: nn.Module | None = None
) -> Transfer:
    """Transfer to a run with these classes: which of them the weights know.

    Args:
        source: the weights.
        classes: of the run.
        freeze: parts that will not learn.
        model: the network, if it is one of somebody's own.

    Raises:
        ConfigError: `freeze` holds the heads, and there are classes for them to learn.
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
    """For each class wanted, which of the known ones it is; None for one that is new.

    The same name comes first, then one that differs only in case or in how its words are joined: "Hot_dog", "hot dog"
    and "hotdog" are one. A name that could be two is neither, no known class is given twice, and the holes among
    COCO's category ids are nobody's.
    """
    found: dict[int, int] = {}
    for key in (str, _plain):
        given = set(found.values())
        left = _by_name((i, key(name)) for i, name in enumerate(wanted) if i not in found and name not in _HOLES)
        free = _by_name((i, key(name)) for i, name in enumerate(known) if i not in given and name not in _HOLES)
        found |= {left[name]: free[name] for name in left.keys() & free.keys()}
    return tuple(found.get(i) for i in range(len(wanted)))


def fill(model: nn.Module, transfer: Transfer) -> None:
    """Put the weights into a network of their structure that is initialised for the run's classes.

    In every class head, rows of classes that go on are the weights', and the others stay as they are. The proposals'
    class head asks for objects of any class in its channel 0 and trains its others as background: its channels stay
    where they are, whatever the classes are.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape, class heads not counted.
    """
    checkpoint = transfer.source.checkpoint
    own, weights = model.state_dict(), dict(checkpoint.weights)
    by_class, by_channel = transfer.heads()
    for name in by_class:
        if len(weights[name]) != len(checkpoint.classes):
            raise CheckpointError(
                f"{transfer.source.name}: {name} has {len(weights[name])} rows for {len(checkpoint.classes)} classes"
            )
    kept = [(new, old) for new, old in enumerate(transfer.rows) if old is not None]
    for name in (*by_class, *by_channel):
        if name in own and own[name].shape[1:] == weights[name].shape[1:]:
            in_place = [(channel, channel) for channel in range(min(len(own[name]), len(weights[name])))]
            weights[name] = _rows(own[name], weights[name], kept if name in by_class else in_place)
    load_weights(model, weights, transfer.source.name)


def _rows(fresh: Tensor, old: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """`fresh` with the rows of the first numbers taken from `old` at the second."""
    rows = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    mixed = fresh.clone()
    mixed[rows[:, 0]] = old[rows[:, 1]].to(mixed)
    return mixed


def _by_name(numbered: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Numbers by name, without the names that occur more than once."""
    pairs = list(numbered)
    counts = Counter(name for _, name in pairs)
    return {name: number for number, name in pairs if counts[name] == 1}


def _plain(name: str) -> str:
    return _JOINT_OF_DIGITS.sub(" ", _JOINT.sub("", name.casefold().strip()))


def _counted(number: int, what: str, names: Sequence[str]) -> str:
    return f"{number} {what} ({listed(names, _NAMED)})" if names else f"none {what}"
