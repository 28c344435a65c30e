"""Records of a run, the lines of its metrics.jsonl; lines that are no records are left out and counted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import DataError
from deformable_detr.core.reading import open_file, settings_value
from deformable_detr.runs.bounds import LARGEST_COUNT

_MOST_STEPS = 10**15
# The metrics of 100,000 classes, the most that a model has, take 13 MB.
_LONGEST_LINE = 1 << 24
_MOST_STRANGE = 10_000
_DEEPEST = 3
_KINDS = ("step", "epoch")
_GROUPS = ("terms", "train", "val", "val_per_class", "val_at_n", "val_at_n_per_class")
_BY_CLASS = ("val_per_class", "val_at_n_per_class")


@dataclass
class RecordReader:
    """Reader of the records of a metrics.jsonl, oldest first; none if there is no such file.

    A line that is no record, as a crash may leave one, or a strange hand, is left out.

    Raises:
        DataError: when it is iterated over, and the file exists and cannot be read, or has 10,000 such lines.
    """

    path: Path
    """File."""
    num_strange: int = 0
    """Number of lines left out by the last iteration."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.num_strange = 0
        try:
            with open_file(self.path) as file:
                while line := file.readline(_LONGEST_LINE):
                    if not line.strip():
                        continue
                    record = _record(line)
                    if record is not None:
                        yield record
                        continue
                    self.num_strange += 1
                    if self.num_strange == _MOST_STRANGE:
                        raise DataError(
                            f"{self.path}: {_MOST_STRANGE:,} lines are no records of a run, so this seems to be "
                            "another file; move it away to go on without the metrics so far"
                        )
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path}: cannot read the metrics of the run: {error.strerror}") from error

    def describe(self) -> str:
        """Sentence on the lines left out; empty if there are none."""
        if not self.num_strange:
            return ""
        lines = "1 line is no record" if self.num_strange == 1 else f"{self.num_strange} lines are no records"
        return f"{self.path.name}: {lines} of a run, and left out"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = settings_value(line)
    except ValueError:
        return None
    return value if is_record(value) else None


def is_record(value: object) -> bool:
    """Whether a value is a record of a step or an epoch as a run writes it, or of another kind that is ignored.

    A record has the epoch and the step, both from 1, and numbers, by themselves or in groups. Metrics are in 0..1, or
    -1 where they are undefined.
    """
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    if value["kind"] not in _KINDS:
        return "epoch" not in value and "step" not in value
    if not (_counts(value.get("epoch"), LARGEST_COUNT) and _counts(value.get("step"), _MOST_STEPS)):
        return False
    figures = {name: figure for name, figure in value.items() if name != "kind"}
    groups = [figures[name] for name in _GROUPS if name in figures]
    if not _are_numbers(figures, _DEEPEST) or not all(isinstance(group, dict) for group in groups):
        return False
    by_class = [group for name in _BY_CLASS for group in figures.get(name, {}).values()]
    if not all(isinstance(group, dict) for group in by_class):
        return False
    at_n = {name: metric for name, metric in figures.get("val_at_n", {}).items() if name != "max_detections"}
    metrics = [metric for group in (figures.get("val", {}), at_n, *by_class) for metric in group.values()]
    return all(isinstance(metric, int | float) and -1 <= metric <= 1 for metric in metrics)


def _counts(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _are_numbers(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_are_numbers(one, depth - 1) for one in value.values())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        # A norm may be infinite in half precision, but an integer of hundreds of digits is no figure.
        return math.isfinite(value) or isinstance(value, float)
    except OverflowError:
        return False
