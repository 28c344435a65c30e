"""Checks that the settings of several networks have in common."""

import re
from collections.abc import Mapping
from typing import Any

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.short_text import shown

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
    "denoising_queries": 20_000,
}
"""Largest counts, far above any network that was ever trained: whoever asks for more has made a mistake, or wants to
fill the memory. The smallest is 1 for all but a few."""
_LONGEST_PATH = 4096
_MAY_BE_ZERO = ("encoder_layers", "frozen_stages", "denoising_queries")
_NOISE = {"box_noise": 10.0, "label_noise": 2.0}
# timm's names: of an architecture, and of weights for it. With a prefix or a path timm would go to the hub or to files.
_BACKBONE = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")


def check_counts(config: Any, largest: Mapping[str, int] = LARGEST) -> None:
    """Refuse counts out of range, and channels that heads and norms cannot share.

    Args:
        config: settings of a network with all settings in `largest`, and `dropout`.
        largest: largest count of each setting.

    Raises:
        ConfigError: a setting is out of range; the message names it.
    """
    for name, most in largest.items():
        value, least = getattr(config, name), 0 if name in _MAY_BE_ZERO else 1
        if value < least:
            raise ConfigError(f"{name} is {shown(value)}; it must be at least {least}")
        if value > most:
            raise ConfigError(f"{name} is {shown(value)}; it can be at most {most}")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"dropout is {config.dropout}; it must be in 0..1, 1 excluded")
    if config.hidden_dim % 32:
        raise ConfigError(f"hidden_dim is {config.hidden_dim}; it must be a multiple of 32 (groups of the norms)")
    if config.hidden_dim % config.num_heads:
        raise ConfigError(f"hidden_dim {config.hidden_dim} cannot be split over num_heads {config.num_heads}")


def check_backbone(config: Any) -> None:
    """Refuse names that cannot be those of a backbone or its weights, and random weights that would stay frozen.

    Args:
        config: settings with `backbone`, `backbone_weights`, `frozen_stages` and `frozen_batch_norm`.

    Raises:
        ConfigError: a name cannot be, or two settings exclude each other.
    """
    _check_names(config.backbone, config.backbone_weights)
    if config.backbone_weights == "none" and config.frozen_stages:
        raise ConfigError(
            f"frozen_stages is {config.frozen_stages}, but backbone_weights is 'none': stages that start from "
            "nothing cannot stay frozen; set frozen_stages=0 or give weights"
        )
    if config.backbone_weights == "none" and config.frozen_batch_norm:
        raise ConfigError(
            "frozen_batch_norm is true, but backbone_weights is 'none': batch norm that has seen nothing cannot "
            "stay frozen; set frozen_batch_norm=false or give weights"
        )


def check_noise(config: Any) -> None:
    """Refuse noise out of range, and noise without denoising.

    Args:
        config: settings with `denoising_queries`, `box_noise` and `label_noise`.

    Raises:
        ConfigError: a setting is out of range, or would have no effect.
    """
    for name, most in _NOISE.items():
        value = getattr(config, name)
        if not 0 <= value <= most:
            raise ConfigError(f"{name} is {value}; it must be in 0..{most:g}")
        if config.denoising_queries == 0 and value != type(config).__dataclass_fields__[name].default:
            raise ConfigError(
                f"{name}={value} has no meaning without denoising; set denoising_queries=100, or leave {name} out"
            )


def _check_names(backbone: str, backbone_weights: str) -> None:
    if not backbone or not backbone_weights:
        raise ConfigError("backbone and backbone_weights cannot be empty; say backbone_weights='none' for random")
    if not _BACKBONE.fullmatch(backbone):
        raise ConfigError(
            f"backbone is {shown(backbone)}; it must be a name that timm itself knows, such as resnet50.tv_in1k: no "
            "address, no path, no model of the hub; weights of your own go to backbone_weights"
        )
    if len(backbone_weights) > _LONGEST_PATH or any(ord(letter) < 32 for letter in backbone_weights):
        raise ConfigError(f"backbone_weights is {shown(backbone_weights)}, which cannot be the name of a file")
