"""Start from the weights of another detector: its structure, and for every class of the same name its own rows."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.core.errors import CheckpointError, ConfigError, listed
from deformable_detr.core.progress import Reporter
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import with_image_size
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint, load_weights
from deformable_detr.weights.coco_classes import COCO_CLASSES, UNUSED
from deformable_detr.weights.download import shown

# Settings of the model that may differ from those the weights were trained with: no tensor depends on them.
_FREE = ("dropout", "frozen_stages", "features", "proposals")
_CLASS_HEADS = "decoder.class_heads."
_PROPOSAL_HEAD = "query_source.class_head."
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
    """What new checkpoints say about the weights that a run started from; empty where it started from none."""

    weights: str = ""
    licence: str = ""


class Transfer(NamedTuple):
    """Which class of a run goes on from which class of the weights."""

    source: Source
    classes: tuple[str, ...]
    """The run's, by class id."""
    rows: tuple[int | None, ...]
    """Of each, the class id it had in the weights; None starts fresh."""

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

    def describe(self) -> str:
        """One line for people: what came from where, what did not, and what starts fresh."""
        by_class, by_channel = _heads(self.source.checkpoint.weights)
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
        by_class, by_channel = _heads(self.source.checkpoint.weights)
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


def settle(config: TrainConfig, source: Source | None) -> TrainConfig:
    """The config of a run that starts from `source`, or from the weights of a backbone at most.

    With a source, the whole of `model` is the source's and so is the preprocessing, but for the size of the images:
    that stays the config's, unless `size_by` is "weights".

    Raises:
        ConfigError: the recipe needs a source, or parts would be frozen that have learnt nothing.
    """
    if source is not None:
        theirs = source.checkpoint.preprocessing
        if config.size_by == "weights":
            config = replace(with_image_size(config, theirs.short_side), preprocessing=theirs)
        ours = config.preprocessing
        preprocessing = replace(theirs, short_side=ours.short_side, max_side=ours.max_side)
        return replace(config, model=source.checkpoint.model, preprocessing=preprocessing, start="weights")
    if config.start == "weights":
        raise ConfigError(
            f"{config.name} starts from the weights of a whole detector; name them with --weights "
            "(in Python, with weights=...)"
        )
    learnt = {"backbone"} if config.model.backbone_weights != "none" else set()
    random = [name for name in config.freeze if name not in learnt]
    if random:
        raise ConfigError(
            f"freeze holds {', '.join(random)}, which would keep random values: "
            "name weights of a whole detector with --weights, or leave that out"
        )
    return config


def changed(source: Source, config: TrainConfig) -> Source:
    """The weights with those settings of the model that they leave free, and the preprocessing, as `config` has them.

    Free are dropout, frozen stages, how padding and proposals are treated, and in two-stage the number of queries.

    Raises:
        ConfigError: the config wants another structure.
    """
    ours, theirs = config.model, source.checkpoint.model
    free = {*_FREE, "num_queries"} if theirs.variant == "two_stage" else {*_FREE}
    for name in (field.name for field in fields(theirs) if field.name not in free):
        wanted, there = getattr(ours, name), getattr(theirs, name)
        if wanted != there:
            raise ConfigError(
                f"model.{name} is set to {wanted!r}, and {source.name} has {there!r}: "
                "who starts from weights takes their structure; leave the setting out"
            )
    return source._replace(checkpoint=replace(source.checkpoint, model=ours, preprocessing=config.preprocessing))


def plan(source: Source, classes: Sequence[str], freeze: Iterable[str] = ()) -> Transfer:
    """Which of these classes the weights know.

    Raises:
        ConfigError: `freeze` holds the heads, and there are classes for them to learn.
    """
    transfer = Transfer(source, tuple(classes), match_classes(classes, source.checkpoint.classes))
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
    by_class, by_channel = _heads(weights)
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


def _heads(weights: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of tensors with a row for each class, and of those with a row for each channel of the proposals."""
    names = list(weights)
    by_class = [name for name in names if name.startswith(_CLASS_HEADS)]
    return by_class, [name for name in names if name.startswith(_PROPOSAL_HEAD)]


def _by_name(numbered: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Numbers by name, without the names that occur more than once."""
    pairs = list(numbered)
    counts = Counter(name for _, name in pairs)
    return {name: number for number, name in pairs if counts[name] == 1}


def _plain(name: str) -> str:
    return _JOINT_OF_DIGITS.sub(" ", _JOINT.sub("", name.casefold().strip()))


def _counted(number: int, what: str, names: Sequence[str]) -> str:
    return f"{number} {what} ({listed(names, _NAMED)})" if names else f"none {what}"
