"""Settings of a training run as plain data, for config.json and for recipes in files."""

from collections.abc import Mapping
from typing import Any

from deformable_detr.core.config import from_dict, to_dict
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.version_1 import from_version_1, is_version_1

SCHEMA_VERSION = 2
"""Version of config.json. Files of version 1 had few groups, and neither their version nor the model's name."""


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Content of config.json for these settings."""
    return {"schema_version": SCHEMA_VERSION, **to_dict(config)}


def from_json(data: Mapping[str, Any], source: str) -> TrainConfig:
    """Settings from the content of a config.json of this or an earlier version.

    Args:
        data: content of the file.
        source: name of the file, for messages.

    Raises:
        ConfigError: a setting does not exist or has the wrong type, or the file is of a newer version.
    """
    data = dict(data)
    version = data.pop("schema_version", 1 if is_version_1(data) else SCHEMA_VERSION)
    if version == 1:
        return from_dict(TrainConfig, from_version_1(data))
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{source} has schema version {shown(version)}, and this version of deformable-detr reads up to "
            f"{SCHEMA_VERSION}"
        )
    return from_dict(TrainConfig, data)
