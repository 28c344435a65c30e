"""Progress of a run: the counters that a checkpoint holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from deformable_detr.core.config import fits
from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.short_text import shown
from deformable_detr.runs.config import TrainConfig, settled

_LARGEST_COUNT = 2**53


@dataclass
class RunProgress:
    """Progress of a run, as counters that fit into JSON."""

    epoch: int = 0
    """Number of completed epochs, their evaluation included."""
    step: int = 0
    """Number of steps since the start of the run."""
    step_in_epoch: int = 0
    """Number of steps in the current epoch; all of them while it is being evaluated."""
    batches_in_epoch: int = 0
    """Number of batches taken from the loader in the current epoch: one for each step, and those without a readable
    image."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sum of each figure over the steps of the current epoch, by the name of the figure."""
    num_summed: int = 0
    """Number of steps in `sums`."""
    num_not_finite: int = 0
    """Number of steps left out so far because loss or gradient was not finite."""
    not_finite_in_a_row: int = 0
    """Number of such steps since the last step that was taken."""
    stopped_early: bool = False
    """Whether `patience` has ended the run."""
    evaluations_without_gain: int = 0
    """Number of evaluations since the last one that was better than all before."""
    evaluation_seconds: float = 0.0
    """Duration of the last evaluation."""
    best_epoch: int | None = None
    """Epoch of best.safetensors, from 1; None before the first evaluation."""
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of best.safetensors, COCO's twelve numbers by name."""
    best_value: float | None = None
    """Metric of best.safetensors that `best_by` names."""

    def begin_epoch(self) -> None:
        """Reset the counters of the current epoch."""
        self.step_in_epoch = self.batches_in_epoch = self.num_summed = 0
        self.sums = {}

    def add(self, figures: dict[str, float]) -> None:
        """Add the figures of a step to the averages of the epoch."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.num_summed += 1

    def averages(self) -> dict[str, float]:
        """Averages of the figures over the steps of the current epoch, with those before an interruption."""
        return {name: total / self.num_summed for name, total in self.sums.items()}


def saved_run_progress(saved: dict[str, Any], path: Path, config: TrainConfig) -> RunProgress:
    """Progress from a checkpoint of this or an earlier version.

    Args:
        saved: progress as the checkpoint holds it.
        path: file of the checkpoint, for messages.
        config: settings of the run.

    Raises:
        CheckpointError: counters are missing, or are no counters.
    """
    found = saved.get("progress", saved.get("position"))
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not say how far the run was")
    counters = dict(found)
    _check_counters(counters, path)
    # Earlier versions skipped no batches, selected the best weights by AP, and counted patience in epochs.
    counters.setdefault("batches_in_epoch", counters.get("step_in_epoch", 0))
    counters.setdefault("best_value", counters.get("best", {}).get(config.checkpoints.best_by))
    if "evaluations_without_gain" not in counters:
        improved = counters.pop("improved_epoch", counters.get("best_epoch") or 0)
        waited = counters.get("epoch", 0) - improved
        counters["evaluations_without_gain"] = waited // settled(config.run.eval_every)
    try:
        return RunProgress(**counters)
    except TypeError as error:
        raise CheckpointError(f"{path} does not say how far the run was: {error}") from error


def _check_counters(counters: dict[str, Any], path: Path) -> None:
    kinds = get_type_hints(RunProgress) | {"improved_epoch": int}
    for name, value in counters.items():
        kind = kinds.get(name)
        if kind is int:
            is_right = _is_count(value)
        elif kind == dict[str, float]:
            is_right = isinstance(value, dict) and all(fits(number, float) for number in value.values())
        else:
            is_right = kind is None or fits(value, kind)  # an unknown counter is named below
        if not is_right:
            raise CheckpointError(f"{path} does not say how far the run was: {name} is {shown(value)}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_COUNT
