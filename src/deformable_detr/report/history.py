"""How a run went: what its metrics.jsonl says, as lines to draw."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from deformable_detr.report.charts import Series

_STAGE = re.compile(r"decoder\.(\d+)/")


class History(NamedTuple):
    """Steps and epochs of a run."""

    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]

    @property
    def judged(self) -> list[dict[str, Any]]:
        """The epochs that were evaluated."""
        return [row for row in self.epochs if row.get("val")]

    @property
    def seconds(self) -> float:
        """Training and evaluation of the epochs that were completed."""
        return math.fsum(row.get("train_seconds", 0.0) + row.get("val_seconds", 0.0) for row in self.epochs)

    def best(self, by: str = "ap") -> dict[str, Any] | None:
        """The epoch with the highest metric, of equals the latest, as best.safetensors is chosen.

        Args:
            by: as `TrainConfig.best_by`: one of the twelve, or of one class as "cat/ap".
        """
        class_name, _, metric = by.rpartition("/")

        def value(row: dict[str, Any]) -> float:
            metrics = row.get("val_per_class", {}).get(class_name, {}) if class_name else row["val"]
            return float(metrics.get(metric, -1.0))

        return max(reversed(self.judged), key=value, default=None)

    def loss(self) -> list[Series]:
        """Averages of the epochs, and the logged steps."""
        averages = [row for row in self.epochs if row.get("train")]
        steps = [row.get("loss") for row in self.steps]
        return [
            Series("average of the epoch", _epochs(averages), _numbers(row["train"].get("loss") for row in averages)),
            Series("logged steps", self._places(), _numbers(steps), faint=True),
        ]

    def terms(self) -> dict[str, list[Series]]:
        """Loss terms before weighting, averages of the epochs: those of the last decoder layer and of other stages."""
        rows = [row for row in self.epochs if row.get("train")]
        names = list(dict.fromkeys(name for row in rows for name in row["train"] if "/" in name))
        layers = [int(match.group(1)) for name in names if (match := _STAGE.match(name))]
        stages: dict[str, list[Series]] = {}
        for name in names:
            stage, term = name.split("/", 1)
            if _STAGE.match(name) and stage != f"decoder.{max(layers)}":
                continue
            values = _numbers(row["train"].get(name) for row in rows)
            stages.setdefault(stage, []).append(Series(term, _epochs(rows), values))
        return stages

    def precision(self) -> list[Series]:
        """AP, AP50 and AP75 on the validation images, in percent."""
        names = {"ap50": "AP50", "ap": "AP", "ap75": "AP75"}
        judged = self.judged
        return [
            Series(label, _epochs(judged), _percent(row["val"].get(name) for row in judged))
            for name, label in names.items()
        ]

    def class_precision(self) -> list[Series]:
        """AP of each class on the validation images, in percent."""
        judged = self.judged
        names = list(dict.fromkeys(name for row in judged for name in row.get("val_per_class", {})))
        return [
            Series(
                name,
                _epochs(judged),
                _percent(row.get("val_per_class", {}).get(name, {}).get("ap") for row in judged),
            )
            for name in names
        ]

    def learning_rate(self) -> list[Series]:
        """Of the logged steps."""
        return [Series("learning rate", self._places(), _numbers(row.get("lr") for row in self.steps))]

    def _places(self) -> list[float]:
        """Logged steps as fractions of epochs: an epoch's average stands at its end.

        Where an epoch ends only its own line says: not every step is logged. Steps are numbered as if all epochs had
        been as long as the one they are in, in a run resumed with other data, too, so that a step's number over that
        length is its place.
        """
        lengths = {row["epoch"]: row["step"] / row["epoch"] for row in self.epochs}
        newest = max(lengths, default=0)
        # The epoch under way is taken to be as long as the one before, or longer if it is so already.
        under_way = [row["step"] / row["epoch"] for row in self.steps if row["epoch"] > newest]
        expected = max(lengths.get(newest, 0.0), *under_way, 1.0)
        places = []
        for row in self.steps:
            epoch, place = row["epoch"], row["step"] / lengths.get(row["epoch"], expected)
            places.append(min(max(epoch - 1.0, place), float(epoch)))
        return places


def history_of(records: Iterable[dict[str, Any]]) -> History:
    """Sort the lines of a metrics.jsonl; lines of other kinds, and those without a place in the run, are left out."""
    placed = [row for row in records if all(isinstance(row.get(k), int) and row[k] > 0 for k in ("epoch", "step"))]
    return History(
        [row for row in placed if row.get("kind") == "step"], [row for row in placed if row.get("kind") == "epoch"]
    )


def _epochs(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [float(row["epoch"]) for row in rows]


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _percent(values: Iterable[float | None]) -> list[float]:
    """What is undefined, COCO's -1 too, leaves a gap."""
    return [math.nan if value is None or value < 0 else 100 * value for value in values]
