"""Parts of the network that a run leaves as they are: no gradient, no update, no dropout, no new batch statistics."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from deformable_detr.core.errors import ConfigError

# Every parameter lies in one part: the first whose start fits its name.
_PARTS = {
    "heads": ("decoder.class_heads.", "decoder.box_heads.", "query_source.class_head.", "query_source.box_head."),
    "backbone": ("pyramid.backbone.",),
    "projections": ("pyramid.projections.", "pyramid.level_embed"),
    "encoder": ("encoder.",),
    "queries": ("query_source.",),
    "decoder": ("decoder.layers.",),
}
_ALL_BUT_HEADS = "all_but_heads"


class Count(NamedTuple):
    """Numbers, not tensors, that a network learns and that it keeps."""

    trained: int
    frozen: int


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Take the parameters of these parts out of training, for good. Buffers follow with `to_training_mode`.

    Raises:
        ConfigError: nothing would be left to train.
    """
    parts = _parts(names)
    for name, parameter in model.named_parameters():
        if _part(name) in parts:
            parameter.requires_grad_(False)
    if count(model).trained == 0:
        raise ConfigError(f"freeze holds {', '.join(sorted(parts))}; nothing is left to train, leave one of them out")


def to_training_mode(model: nn.Module, names: Iterable[str]) -> None:
    """Put the network in training mode and these parts of it in evaluation mode.

    There nothing is dropped, and batch norm uses the statistics it has instead of those of the batch.
    """
    parts = _parts(names)
    model.train()
    for name, module in model.named_modules():
        if _part(f"{name}.") in parts:
            module.training = False


def count(model: nn.Module) -> Count:
    """How much of a network is trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return Count(trained, sum(size for size, _ in sizes) - trained)


def _parts(names: Iterable[str]) -> set[str]:
    chosen = set(names)
    return (chosen - {_ALL_BUT_HEADS}) | (_PARTS.keys() - {"heads"}) if _ALL_BUT_HEADS in chosen else chosen


def _part(name: str) -> str | None:
    """Where a parameter or, with a dot at the end of its path, a module lies; None for what only holds parts."""
    return next((part for part, starts in _PARTS.items() if name.startswith(starts)), None)
