"""Log of a run's metrics: records in metrics.jsonl, the epochs in metrics.csv, and services such as TensorBoard."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from deformable_detr.core.files import write_text
from deformable_detr.runs.folder import RunFolder
from deformable_detr.training.loggers import ServiceName, open_service


class MetricsLog:
    """Log of the records of steps and epochs; use it in a `with` statement.

    Each record in metrics.jsonl has its "kind" ("step" or "epoch"), the epoch (from 1), the step (since the start of
    the run) and the time in seconds since 1970. The record of a step has loss, terms, grad_norm, lr, images_per_second
    and memory_bytes. The record of an epoch has the averages as "train". If the epoch was evaluated, it also has COCO's
    twelve numbers as "val" and the metrics of each class as "val_per_class"; where more than 100 detections of an image
    were counted besides, those for their number as "val_at_n" and "val_at_n_per_class". metrics.csv is made from these
    records, so that the two files agree after resuming, too.

    Args:
        folder: the run folder; None writes nothing, as in all but the first of several processes.
        services: services to log to.
        settings: settings of the run, which services show.
        say: receives a message if a service fails.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        services: Sequence[ServiceName] = (),
        settings: Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = folder
        self._table = None if folder is None else _EpochTable(folder)
        self._services = (
            [] if folder is None else [open_service(name, folder, settings or {}, say or _nobody) for name in services]
        )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for service in self._services:
            service.close(failed=kind is not None)

    def step(self, record: dict[str, Any]) -> None:
        """Log one training step."""
        self._write("step", record)

    def epoch(self, record: dict[str, Any]) -> None:
        """Log one epoch with its evaluation."""
        self._write("epoch", record)

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        if self._folder is None or self._table is None:
            return
        line = {"kind": kind, "time": round(time.time(), 3), **record}
        self._folder.log(line)
        self._table.add(line)
        numbers = flat_numbers(record, kind)
        for service in self._services:
            service.log(numbers, record["step"])


class _EpochTable:
    """Table in metrics.csv: a row for each epoch; a cell is empty where a number is undefined."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.metrics_csv
        self._lr: float | None = None
        self._rows: list[dict[str, Any]] = []
        for line in folder.records():
            self._take(line)
        if self._rows:
            self._save()

    def add(self, line: dict[str, Any]) -> None:
        if self._take(line):
            self._save()

    def _take(self, line: dict[str, Any]) -> bool:
        if line.get("kind") == "step":
            self._lr = line.get("lr", self._lr)
        if line.get("kind") != "epoch":
            return False
        row = {"epoch": line["epoch"], "step": line["step"], "lr": self._lr}
        numbers = flat_numbers({name: value for name, value in line.items() if name not in ("kind", "time")}, "")
        self._rows.append(row | {name.removeprefix("/"): value for name, value in numbers.items()})
        return True

    def _save(self) -> None:
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self._rows:
            # COCO's -1 means that there was no such object. All other values of metrics are in 0..1.
            writer.writerow({k: "" if v is None or (k.startswith("val") and v == -1) else v for k, v in row.items()})
        # A record of a strange hand may name a class that is no valid Unicode.
        write_text(self._path, text.getvalue(), errors="backslashreplace")


def flat_numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Numbers of a nested record by their paths: with prefix "epoch", {"val": {"ap": 1}} becomes "epoch/val/ap"."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            numbers |= flat_numbers(value, f"{prefix}/{name}")
        elif name not in ("epoch", "step"):
            numbers[f"{prefix}/{name}"] = float(value)
    return numbers


def _nobody(line: str) -> None:
    """Ignore a message."""
