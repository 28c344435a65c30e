"""Checks of settings that the models have in common: ranges of counts, the backbone, and what would stay frozen."""

import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.short_text import shown

_LONGEST_PATH = 4096
# timm's names: of an architecture, and of weights for it. With a prefix or a path timm would go to the hub or to files.
_BACKBONE = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")


@runtime_checkable
class BackboneSettings(Protocol):
    """Settings of a network that begins with a backbone."""

    @property
    def backbone(self) -> str:
        """Backbone by timm's own name."""
        ...

    @property
    def backbone_weights(self) -> str:
        """Initial weights: "hub", a path, or "none"."""
        ...

    @property
    def frozen_stages(self) -> int:
        """Number of stages that are not trained."""
        ...

    @property
    def frozen_batch_norm(self) -> bool:
        """Whether batch norm keeps its statistics, scale and shift."""
        ...


def check_counts_of(settings: object, largest: Mapping[str, int], may_be_zero: tuple[str, ...]) -> None:
    """Refuse counts out of range.

    Args:
        settings: settings of a network.
        largest: largest value of each count, far above any network that was ever trained: whoever asks for more has
            made a mistake, or wants to fill the memory.
        may_be_zero: names of counts that may be 0; the others are at least 1.

    Raises:
        ConfigError: a count is too small or too large.
    """
    for name, most in largest.items():
        value, least = getattr(settings, name), 0 if name in may_be_zero else 1
        if value < least:
            raise ConfigError(f"{name} is {shown(value)}; it must be at least {least}")
        if value > most:
            raise ConfigError(f"{name} is {shown(value)}; it can be at most {most}")


def check_attention(dim: int, num_heads: int, dropout: float) -> None:
    """Refuse channels that the attention heads cannot share, and a dropout that would drop everything.

    Raises:
        ConfigError: `num_heads` does not divide `dim`, or `dropout` is outside 0..1, 1 excluded.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout is {dropout}; it must be in 0..1, 1 excluded")
    if dim % num_heads:
        raise ConfigError(f"hidden_dim {dim} cannot be split over num_heads {num_heads}")


def check_backbone(settings: BackboneSettings) -> None:
    """Refuse names that are none of timm's, and parts that would stay frozen with random weights.

    Raises:
        ConfigError: a name cannot be, or stages or batch norm are frozen though `backbone_weights` is "none".
    """
    backbone, backbone_weights = settings.backbone, settings.backbone_weights
    if not backbone or not backbone_weights:
        raise ConfigError("backbone and backbone_weights cannot be empty; say backbone_weights='none' for random")
    if not _BACKBONE.fullmatch(backbone):
        raise ConfigError(
            f"backbone is {shown(backbone)}; it must be a name that timm itself knows, such as resnet50.tv_in1k: no "
            "address, no path, no model of the hub; weights of your own go to backbone_weights"
        )
    if len(backbone_weights) > _LONGEST_PATH or any(ord(letter) < 32 for letter in backbone_weights):
        raise ConfigError(f"backbone_weights is {shown(backbone_weights)}, which cannot be the name of a file")
    if backbone_weights == "none" and settings.frozen_stages:
        raise ConfigError(
            f"frozen_stages is {settings.frozen_stages}, but backbone_weights is 'none': stages that start from "
            "nothing cannot stay frozen; set frozen_stages=0 or give weights"
        )
    if backbone_weights == "none" and settings.frozen_batch_norm:
        raise ConfigError(
            "frozen_batch_norm is true, but backbone_weights is 'none': batch norm that has seen nothing cannot "
            "stay frozen; set frozen_batch_norm=false or give weights"
        )
