"""History of a run: the lines of its metrics.jsonl, as series for charts."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from deformable_detr.data.crowding import MOST_EVALUATED
from deformable_detr.evaluation.coco_metrics import AT_QUERIES
from deformable_detr.report.charts import Series
from deformable_detr.runs.records import is_record

# Figures above cannot be drawn to any scale; they leave a gap.
_HIGHEST = 1e30
_STAGE = re.compile(r"decoder\.(\d+)/")


class History(NamedTuple):
    """Records of the steps and epochs of a run."""

    steps: list[dict[str, Any]]
    """Records of the logged steps, oldest first."""
    epochs: list[dict[str, Any]]
    """Records of the completed epochs, oldest first."""

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """Records of the epochs that were evaluated."""
        return [row for row in self.epochs if row.get("val")]

    @property
    def seconds(self) -> float:
        """Duration of training and evaluation in the completed epochs."""
        found = (row.get(name, 0.0) for row in self.epochs for name in ("train_seconds", "val_seconds"))
        return math.fsum(seconds for seconds in found if isinstance(seconds, int | float) and 0 <= seconds < _HIGHEST)

    def best(self, by: str = "ap") -> dict[str, Any] | None:
        """Record of the best epoch, chosen as best.safetensors is: the highest metric, and the latest of equals.

        Args:
            by: name of the metric, as in `CheckpointConfig.best_by`: one of COCO's twelve, or of a class as "cat/ap",
                perhaps with "@queries" behind it.

        Returns:
            None if no epoch was evaluated.
        """
        class_name, _, metric = by.removesuffix(AT_QUERIES).rpartition("/")
        of_all, of_class = ("val_at_n", "val_at_n_per_class") if by.endswith(AT_QUERIES) else ("val", "val_per_class")

        def value(row: dict[str, Any]) -> float:
            # Without numbers of their own, as many detections as there are queries are COCO's 100.
            own = row if of_all in row else row | {of_all: row["val"], of_class: row.get("val_per_class", {})}
            metrics = own.get(of_class, {}).get(class_name, {}) if class_name else own[of_all]
            # Recall is called after the number of detections that count, see `Metrics.twelve`.
            renamed = f"ar_{metrics.get('max_detections', MOST_EVALUATED)}" if metric == "ar_100" else metric
            return float(metrics.get(renamed, -1.0))

        return max(reversed(self.evaluated), key=value, default=None)

    def loss(self) -> list[Series]:
        """Training loss: the averages of the epochs, and the logged steps."""
        averages = [row for row in self.epochs if row.get("train")]
        steps = [row.get("loss") for row in self.steps]
        return [
            Series("average of the epoch", _epochs(averages), _numbers(row["train"].get("loss") for row in averages)),
            Series("logged steps", self._places(), _numbers(steps), faint=True),
        ]

    def terms(self) -> dict[str, list[Series]]:
        """Loss terms before weighting, averaged over each epoch, by stage; of the decoder layers only the last."""
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
        """AP, AP50 and AP75 on the validation images, in percent; and AP with more detections than COCO counts."""
        names = {"ap50": "AP50", "ap": "AP", "ap75": "AP75"}
        rows = self.evaluated
        series = [
            Series(label, _epochs(rows), _percent(row["val"].get(name) for row in rows))
            for name, label in names.items()
        ]
        more = [row for row in rows if row.get("val_at_n")]
        if more:
            label = f"AP with {more[-1]['val_at_n'].get('max_detections', 'more')} detections"
            series.append(Series(label, _epochs(more), _percent(row["val_at_n"].get("ap") for row in more)))
        return series

    def class_precision(self) -> list[Series]:
        """AP of each class on the validation images, in percent."""
        rows = self.evaluated
        names = list(dict.fromkeys(name for row in rows for name in row.get("val_per_class", {})))
        return [
            Series(
                name,
                _epochs(rows),
                _percent(row.get("val_per_class", {}).get(name, {}).get("ap") for row in rows),
            )
            for name in names
        ]

    def learning_rate(self) -> list[Series]:
        """Learning rate at the logged steps."""
        return [Series("learning rate", self._places(), _numbers(row.get("lr") for row in self.steps))]

    def _places(self) -> list[float]:
        """Positions of the logged steps, in epochs from 0; the average of an epoch is drawn at its end.

        Only the record of an epoch tells in which step the epoch ends, because not every step is logged. The position
        of a step is its number divided by the length of its epoch. This also holds where a run was resumed with other
        data and the length changed: steps are then renumbered as if all earlier epochs had the new length.
        """
        lengths = {row["epoch"]: row["step"] / row["epoch"] for row in self.epochs}
        newest = max(lengths, default=0)
        # The current epoch has no record yet. It is taken to be as long as the one before, or longer if it already is.
        under_way = [row["step"] / row["epoch"] for row in self.steps if row["epoch"] > newest]
        expected = max(lengths.get(newest, 0.0), *under_way, 1.0)
        places = []
        for row in self.steps:
            epoch, place = row["epoch"], row["step"] / lengths.get(row["epoch"], expected)
            places.append(min(max(epoch - 1.0, place), float(epoch)))
        return places


def history_of(records: Iterable[dict[str, Any]]) -> History:
    """History from the lines of a metrics.jsonl; lines of other kinds, and those that are no records, are left out."""
    placed = [row for row in records if is_record(row)]
    return History([row for row in placed if row["kind"] == "step"], [row for row in placed if row["kind"] == "epoch"])


def _epochs(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [float(row["epoch"]) for row in rows]


def _numbers(values: Iterable[object]) -> list[float]:
    """Values to be drawn; NaN, a gap in the line, where one is missing, no number, or beyond any scale."""
    return [float(value) if isinstance(value, int | float) and abs(value) < _HIGHEST else math.nan for value in values]


def _percent(values: Iterable[float | None]) -> list[float]:
    """Values in percent; NaN, a gap in the line, where a value is missing or undefined (COCO's -1)."""
    return [math.nan if value is None or value < 0 else 100 * value for value in values]
