"""A run's figures: lines of JSON, and TensorBoard's event files for those who want them."""

import importlib.util
import time
from types import TracebackType
from typing import Any

from deformable_detr.errors import ConfigError
from deformable_detr.run_folder import RunFolder


class Journal:
    """Writes records of steps and epochs; use in a `with`.

    Each line of metrics.jsonl has a "kind", "step" or "epoch", the epoch (from 1), the step (since the start) and the
    time in seconds since 1970. A step's line has loss, terms, grad_norm, lr, images_per_second and memory_bytes; an
    epoch's has the averages as "train", and the twelve numbers as "val" and each class's own as "val_per_class" if it
    was evaluated.
    """

    def __init__(self, folder: RunFolder | None, *, tensorboard: bool) -> None:
        """Without a folder it writes nothing: of several processes one does."""
        self._folder = folder
        self._board = _board(folder) if tensorboard and folder is not None else None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def step(self, record: dict[str, Any]) -> None:
        """One training step."""
        self._write("step", record)

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch with its evaluation."""
        self._write("epoch", record)

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        if self._folder is None:
            return
        self._folder.log({"kind": kind, "time": round(time.time(), 3), **record})
        if self._board is not None:
            for name, value in _flat(record, kind).items():
                self._board.add_scalar(name, value, record["step"])


def _flat(record: dict[str, Any], prefix: str) -> dict[str, float]:
    """Numbers by their path: {"val": {"ap": 1}} is "epoch/val/ap"."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            numbers |= _flat(value, f"{prefix}/{name}")
        elif name not in ("epoch", "step"):
            numbers[f"{prefix}/{name}"] = float(value)
    return numbers


def check_tensorboard(wanted: bool) -> None:
    """Find out before any work whether TensorBoard is there, if it is wanted.

    Raises:
        ConfigError: it is not installed.
    """
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "TensorBoard is not installed; `pip install deformable-detr[tensorboard]` brings it, "
            "or leave --tensorboard out: metrics.jsonl has the same numbers"
        )


def _board(folder: RunFolder) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder.path / "tensorboard"))
