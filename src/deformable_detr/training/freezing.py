"""Freezing of parts of a network: no gradient, no update, no dropout, no new batch norm statistics."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import interface_of

ALL_BUT_HEADS = "all_but_heads"
"""Name for all parts except "heads"."""


class ParameterCount(NamedTuple):
    """Numbers of parameters of a network, counted as single numbers and not as tensors."""

    trained: int
    """Parameters that are trained."""
    frozen: int
    """Parameters that are frozen."""


def check_parts(names: Iterable[str], parts: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse names of parts that the network does not have.

    Args:
        names: names to check.
        parts: parts of the network, see `DetectionModel`.

    Raises:
        ConfigError: a name is unknown; the message lists the known ones.
    """
    known = [*parts, *([ALL_BUT_HEADS] if "heads" in parts else [])]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"freeze holds {unknown[0]!r}; there are {', '.join(known) or 'no parts'}")


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze the parameters of these parts for the whole run; `to_training_mode` freezes their buffers.

    Raises:
        ConfigError: a part does not exist, or nothing would be left to train.
    """
    if names := tuple(names):
        parts = interface_of(model).parts
        check_parts(names, parts)
        frozen = _chosen(names, parts)
        for name, parameter in model.named_parameters():
            if part_of(name, parts) in frozen:
                parameter.requires_grad_(False)
    if count_parameters(model).trained == 0:
        raise ConfigError(f"freeze holds {', '.join(names)}; nothing is left to train, leave one of them out")


def to_training_mode(model: nn.Module, names: Iterable[str]) -> None:
    """Put the network in training mode, and its frozen parts in evaluation mode.

    In evaluation mode there is no dropout, and batch norm uses its own statistics instead of those of the batch.
    """
    model.train()
    if not (names := tuple(names)):
        return
    parts = interface_of(model).parts
    frozen = _chosen(names, parts)
    for name, module in model.named_modules():
        if part_of(f"{name}.", parts) in frozen:
            module.training = False


def part_of(name: str, parts: Mapping[str, tuple[str, ...]]) -> str | None:
    """Part that a parameter or module belongs to; None if it is outside all parts.

    Args:
        name: name of the parameter, or name of the module with a dot at its end.
        parts: parts of the network, see `DetectionModel`.
    """
    return next((part for part, starts in parts.items() if name.startswith(starts)), None)


def count_parameters(model: nn.Module) -> ParameterCount:
    """Numbers of trained and frozen parameters of a network."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return ParameterCount(trained, sum(size for size, _ in sizes) - trained)


def _chosen(names: Iterable[str], parts: Mapping[str, tuple[str, ...]]) -> set[str]:
    chosen = set(names)
    return (chosen - {ALL_BUT_HEADS}) | (parts.keys() - {"heads"}) if ALL_BUT_HEADS in chosen else chosen
