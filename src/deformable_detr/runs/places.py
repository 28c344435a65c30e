"""Places of the images of a run, the content of its data.json."""

from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.reading import read_json
from deformable_detr.core.short_text import shown

_LONGEST_PATH = 4096


class DataPlaces(NamedTuple):
    """Places of the images of a run, for resuming and for the report."""

    path: str | None = None
    """Path of the data set; None if it was given in Python."""
    val_path: str | None = None
    """Path of the validation images, if they were given separately."""
    format: FormatName | None = None
    """Format of the data set, if it was given."""
    held_out: tuple[str, ...] = ()
    """Validation images that were held out of the training images, see `TrainingData.held_out`."""

    def record(self) -> dict[str, Any]:
        """Content of data.json."""
        return {**self._asdict(), "held_out": list(self.held_out)}


def read_places(file: Path) -> DataPlaces:
    """Places from a data.json.

    Raises:
        ConfigError: it cannot be read, is no JSON object, or a value in it has the wrong type.
    """
    data = read_json(file)
    for name in ("path", "val_path"):
        value = data.get(name)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= _LONGEST_PATH and "\0" not in value):
            raise ConfigError(f"{file}: {name} must be a path or null, not {shown(value)}")
    formats = get_args(FormatName)
    format_name = data.get("format")
    if format_name is not None and not (isinstance(format_name, str) and format_name in formats):
        raise ConfigError(f"{file}: format must be null or one of {', '.join(formats)}")
    held_out = data.get("held_out") or []
    if not isinstance(held_out, list) or not all(isinstance(name, str) for name in held_out):
        raise ConfigError(f"{file}: held_out must be a list of texts")
    return DataPlaces(data.get("path"), data.get("val_path"), cast("FormatName | None", format_name), tuple(held_out))
