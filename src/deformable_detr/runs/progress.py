"""Progress of a run: the counters that a checkpoint carries."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import CheckpointError
from deformable_detr.runs.config import TrainConfig, settled


@dataclass
class RunProgress:
    """How far a run is, as counters that JSON can hold."""

    epoch: int = 0
    """Epochs completed, their evaluation included."""
    step: int = 0
    """Steps taken since the start."""
    step_in_epoch: int = 0
    """Steps taken in the epoch under way; all of them while it is being evaluated."""
    batches_in_epoch: int = 0
    """Batches asked for in the epoch under way: one for each step, and those of which no image could be read."""
    sums: dict[str, float] = field(default_factory=dict)
    """Each figure of a step, summed over the steps of the epoch under way."""
    num_summed: int = 0
    """Steps in those sums."""
    num_not_finite: int = 0
    """Steps left out so far because loss or gradient was not finite."""
    not_finite_in_a_row: int = 0
    stopped_early: bool = False
    """Whether `patience` has ended the run."""
    evaluations_without_gain: int = 0
    """Evaluations since the last one that was better than all before."""
    evaluation_seconds: float = 0.0
    """Duration of the last evaluation."""
    best_epoch: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of best.safetensors."""
    best_value: float | None = None
    """The one of these that `best_by` names."""

    def begin_epoch(self) -> None:
        """Nothing has been done in this epoch yet."""
        self.step_in_epoch = self.batches_in_epoch = self.num_summed = 0
        self.sums = {}

    def add(self, figures: dict[str, float]) -> None:
        """Figures of a step, for the averages of the epoch."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.num_summed += 1

    def averages(self) -> dict[str, float]:
        """Averages of the epoch under way, those of before an interruption included."""
        return {name: total / self.num_summed for name, total in self.sums.items()}


def saved_run_progress(saved: dict[str, Any], path: Path, config: TrainConfig) -> RunProgress:
    """Progress from a checkpoint, one of an earlier version included; `path` is for messages.

    Raises:
        CheckpointError: counters are missing.
    """
    found = saved.get("progress", saved.get("position"))
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not say where the run was")
    counters = dict(found)
    # Runs of earlier versions have left out no batch, were judged by AP, and counted patience in epochs.
    counters.setdefault("batches_in_epoch", counters.get("step_in_epoch", 0))
    counters.setdefault("best_value", counters.get("best", {}).get(config.checkpoints.best_by))
    if "evaluations_without_gain" not in counters:
        improved = counters.pop("improved_epoch", counters.get("best_epoch") or 0)
        waited = counters.get("epoch", 0) - improved
        counters["evaluations_without_gain"] = waited // settled(config.run.eval_every)
    try:
        return RunProgress(**counters)
    except TypeError as error:
        raise CheckpointError(f"{path} does not say where the run was: {error}") from error
