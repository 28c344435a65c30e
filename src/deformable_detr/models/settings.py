"""Settings that the models have in common: the backbone, and checks of counts, channels, noise and more queries."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.models.layers.backbone import Backbone

LARGEST = {
    "num_classes": 100_000,
    "num_levels": 8,
    "hidden_dim": 2048,
    "num_heads": 64,
    "encoder_layers": 48,
    "decoder_layers": 48,
    "encoder_points": 32,
    "decoder_points": 32,
    "ffn_dim": 16_384,
    "num_queries": 20_000,
    "frozen_stages": 48,
    "deformable_stages": 48,
    "hybrid_queries": 20_000,
    "hybrid_repeats": 100,
    "query_groups": 50,
    "denoising_queries": 20_000,
}
"""Largest value of each count, far above any network that was ever trained: whoever asks for more has made a mistake,
or wants to fill the memory."""
SMALLEST = {
    "encoder_layers": 0,
    "frozen_stages": 0,
    "deformable_stages": 0,
    "hybrid_queries": 0,
    "hybrid_repeats": 2,
    "denoising_queries": 0,
}
"""Smallest value of each count that is not 1."""
_MOST_NOISE = {"box_noise": 10.0, "label_noise": 2.0}
_LONGEST_PATH = 4096
# timm's names: of an architecture, and of weights for it. With a prefix or a path timm would go to the hub or to files.
_BACKBONE = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")


Own = TypeVar("Own", bound="BackboneSettings")


class BackboneSettings:
    """Settings of a network that begins with a backbone: what follows from them is the same for all such networks.

    The settings themselves are fields of each network's dataclass, where their defaults are.
    """

    num_classes: int
    """Number of classes."""
    backbone: str
    """Backbone by timm's own name."""
    backbone_weights: str
    """Initial weights: "hub", a path, or "none"."""
    frozen_stages: int
    """Number of stages that are not trained."""
    frozen_batch_norm: bool
    """Whether batch norm keeps its statistics, scale and shift."""
    dilation: bool
    """Whether the last stage is dilated."""

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """Parts that start from pre-trained weights: the backbone, unless its weights are random."""
        return ("backbone",) if self.backbone_weights != "none" else ()

    @property
    def downloads(self) -> str:
        """Downloads that building needs, in words: the backbone's weights if they come from timm's hub, else empty."""
        return f"weights of {self.backbone}" if self.backbone_weights == "hub" else ""

    def with_classes(self: Own, num_classes: int) -> Own:
        """Settings for another number of classes."""
        return _changed(self, num_classes=num_classes)

    def portable(self: Own) -> Own:
        """Settings without a folder of this machine: of a file of backbone weights, only the name stays."""
        return _changed(self, backbone_weights=Path(self.backbone_weights).name)

    def build_backbone(self, num_maps: int, *, load_weights: bool, deformable_stages: int = 0) -> Backbone:
        """Backbone for these settings.

        Args:
            num_maps: number of feature maps, counted from the coarsest.
            load_weights: False where a checkpoint brings all weights afterwards.
            deformable_stages: number of stages with deformable convolutions, counted from the coarsest.

        Raises:
            ConfigError: the backbone does not exist or does not fit the other settings.
            CheckpointError: its weights cannot be downloaded or read, or do not fit.
        """
        backbone = Backbone(
            self.backbone,
            num_maps=num_maps,
            dilation=self.dilation,
            frozen_stages=self.frozen_stages,
            frozen_batch_norm=self.frozen_batch_norm,
            deformable_stages=deformable_stages,
        )
        if load_weights and self.backbone_weights != "none":
            backbone.load_weights(self.backbone_weights)
        return backbone


@runtime_checkable
class DenoisingSettings(Protocol):
    """Settings of a network that may learn from noisy copies of the objects."""

    @property
    def denoising_queries(self) -> int:
        """Number of positive copies for one image; 0 is without denoising."""
        ...

    @property
    def box_noise(self) -> float:
        """Noise of the boxes."""
        ...

    @property
    def label_noise(self) -> float:
        """Noise of the labels."""
        ...


@runtime_checkable
class BranchSettings(Protocol):
    """Settings of a network that may have more queries in training than in prediction."""

    @property
    def num_queries(self) -> int:
        """Number of queries in prediction."""
        ...

    @property
    def hybrid_queries(self) -> int:
        """Number of additional queries that are matched several to one."""
        ...

    @property
    def hybrid_repeats(self) -> int:
        """Number of those that each object is matched to."""
        ...

    @property
    def query_groups(self) -> int:
        """Number of groups of queries."""
        ...


def _changed(settings: Own, **changes: Any) -> Own:
    own: Any = settings  # a dataclass in every network
    changed: Own = replace(own, **changes)
    return changed


def check_counts(settings: Any) -> None:
    """Refuse counts out of range.

    Args:
        settings: settings of a network, as a dataclass; all its counts that are in `LARGEST` are checked.

    Raises:
        ConfigError: a count is too small or too large.
    """
    for name in (field.name for field in fields(settings) if field.name in LARGEST):
        value, least, most = getattr(settings, name), SMALLEST.get(name, 1), LARGEST[name]
        if value < least:
            raise ConfigError(f"{name} is {shown(value)}; it must be at least {least}")
        if value > most:
            raise ConfigError(f"{name} is {shown(value)}; it can be at most {most}")


def check_noise(settings: DenoisingSettings) -> None:
    """Refuse noise out of range, and noise without denoising.

    Raises:
        ConfigError: a setting is out of range, or would have no effect.
    """
    for name, most in _MOST_NOISE.items():
        value = getattr(settings, name)
        if not 0 <= value <= most:
            raise ConfigError(f"{name} is {value}; it must be in 0..{most:g}")
        if settings.denoising_queries == 0 and value != getattr(type(settings), name):
            raise ConfigError(
                f"{name}={value} has no meaning without denoising; set denoising_queries=100, or leave {name} out"
            )


def check_branches(settings: BranchSettings) -> None:
    """Refuse additional queries in training that exclude each other, are too many, or have no effect.

    Raises:
        ConfigError: one of these.
    """
    hybrid, groups = settings.hybrid_queries, settings.query_groups
    if hybrid and groups > 1:
        raise ConfigError(
            f"hybrid_queries is {hybrid} and query_groups {groups}: only one of them can add queries in training; "
            "set hybrid_queries=0 or query_groups=1"
        )
    total, most = settings.num_queries * groups + hybrid, LARGEST["num_queries"]
    if total > most:
        raise ConfigError(
            f"with query_groups={groups} and hybrid_queries={hybrid}, training has {total} queries; it can have at "
            f"most {most}"
        )
    name = "hybrid_repeats"
    repeats = getattr(settings, name)
    if not hybrid and repeats != getattr(type(settings), name):
        raise ConfigError(
            f"hybrid_repeats={repeats} has no meaning without hybrid queries; set hybrid_queries=1500 or another "
            "number, too"
        )


def check_groups_of_norms(dim: int) -> None:
    """Refuse channels that the group norms of a pyramid cannot share.

    Raises:
        ConfigError: `dim` is no multiple of 32.
    """
    if dim % 32:
        raise ConfigError(f"hidden_dim is {dim}; it must be a multiple of 32 (groups of the norms)")


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
