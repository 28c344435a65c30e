"""What a run needs to go on at the very bit, as named tensors: the optimizer's moments, and where chance stands."""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, TrainingError
from deformable_detr.data.loader import BatchLoader
from deformable_detr.data.splits import TrainingData
from deformable_detr.evaluation.coco_metrics import Metrics
from deformable_detr.inference.detector import Detector
from deformable_detr.models import DeformableDETR, build
from deformable_detr.models.losses import Criterion
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.folder import RunFolder
from deformable_detr.training.acceleration import Precision
from deformable_detr.training.ema import Average
from deformable_detr.training.finetune import Origin
from deformable_detr.training.sharding import (
    cut_like,
    cut_like_those_of,
    gather_into,
    gathered,
    learnt_statistics,
    take_from_first,
)
from deformable_detr.weights import checkpoint as checkpoints
from deformable_detr.weights.checkpoint import Checkpoint, TrainingState

TRAINED = "trained/"
"""Before the names of weights that take the steps, in a checkpoint whose own weights are their average."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def below(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def trained_weights(saved: Checkpoint) -> dict[str, Tensor]:
    """The weights that take the steps; the file's own are their average if there is one.

    Args:
        saved: a checkpoint to go on from, read with `training=True`.
    """
    return below(TRAINED, saved.training.tensors if saved.training else {}) or saved.weights


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The moments of every parameter that has had a gradient, by "moment/parameter"."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{moment}/{names[parameter]}": state[moment]
        for parameter, state in optimizer.state.items()
        for moment in _MOMENTS
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: some are missing or of another shape.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            found: dict[str, Any] = {moment: tensors.get(f"{moment}/{name}") for moment in _MOMENTS}
            if found["step"] is None:
                continue  # a parameter that had no gradient yet
            if any(one is None for one in found.values()) or found["exp_avg"].shape != parameter.shape:
                raise CheckpointError(f"the optimizer's state of {name} is missing or of another shape")
            # Fused AdamW keeps all of it beside the parameter. Copies, because what was loaded may still lie in the
            # file, and a file may go away.
            step = found.pop("step").to(parameter.device, copy=True)
            optimizer.state[parameter] = {"step": step} | {
                moment: cut_like(one, parameter) for moment, one in found.items()
            }


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Where this process' random numbers stand: dropout's are the only ones that a run draws as it goes."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `generator_states` gave; what is missing stays as it is."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


_CHANCE = "generator/"


@dataclass
class Position:
    """Where a run is."""

    epoch: int = 0
    """Epochs completed, their evaluation included."""
    step: int = 0
    """Steps taken since the start."""
    step_in_epoch: int = 0
    """Steps taken in the epoch under way; all of them while it is being evaluated."""
    batches_in_epoch: int = 0
    """Batches asked for in the epoch under way: one for each step, and those of which no image could be read."""
    sums: dict[str, float] = field(default_factory=dict)
    """Over the steps of the epoch under way, of each figure of a step."""
    num_summed: int = 0
    """Steps in those sums."""
    num_not_finite: int = 0
    """Steps left out so far because loss or gradient was not finite."""
    not_finite_in_a_row: int = 0
    stopped_early: bool = False
    """Whether `patience` has ended the run."""
    improved_epoch: int = 0
    """The last epoch that was better than all before."""
    evaluation_seconds: float = 0.0
    """What the last evaluation took."""
    best_epoch: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of best.safetensors."""
    best_value: float | None = None
    """Of these the one that `best_by` names."""

    def begin_epoch(self) -> None:
        """Nothing has been done in this epoch yet."""
        self.step_in_epoch = self.batches_in_epoch = self.num_summed = 0
        self.sums = {}


class Session(NamedTuple):
    """A run under way. Only `position`, the weights, their average and the optimizer change."""

    config: TrainConfig
    folder: RunFolder
    data: TrainingData
    detector: Detector
    """Around the model that is being trained."""
    criterion: Criterion
    optimizer: torch.optim.AdamW
    loader: BatchLoader
    position: Position
    data_name: str
    precision: Precision
    network: torch.nn.Module
    """The model; around it, where several processes train it, what gives each the mean of their gradients."""
    origin: Origin
    """Of the weights the run started from."""
    average: Average | None = None
    """Of the weights, which is what is evaluated and kept for use."""
    ranks: Ranks = ALONE
    """The processes that train together; the first of them writes."""

    def judged(self) -> Detector:
        """What is evaluated: around the weights that are kept, or around a whole copy where they are sharded.

        Several processes call it together.
        """
        if not self.sharded:
            if self.ranks.together:
                take_from_first(learnt_statistics(self.kept))  # those of the others are of their own images
            return self.detector if self.average is None else self.detector.around(self.kept)
        with torch.random.fork_rng(devices=[]):  # chance stands where it stood
            whole = self.detector.around(build(self.config.model, load_backbone_weights=False))
        gather_into(whole.model, self.kept)
        return whole

    @property
    def kept(self) -> DeformableDETR:
        """The network whose weights are evaluated and kept for use: the averaged ones if there are any."""
        return self.model if self.average is None else self.average.model

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of every weight; one alone has them all, whatever the settings say."""
        return self.config.sharded and self.ranks.size > 1

    @property
    def model(self) -> DeformableDETR:
        """The network being trained."""
        return self.detector.model

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        assert self.config.epochs is not None
        return self.config.epochs * len(self.loader)

    @property
    def evaluations_left(self) -> int:
        """How often the run will still be evaluated."""
        assert self.config.epochs is not None
        assert self.config.eval_every is not None
        every = self.config.eval_every
        return -(-self.config.epochs // every) - self.position.epoch // every

    @property
    def skipped(self) -> dict[str, str]:
        """Path of each training image that could not be read so far, and why."""
        return {str(self.data.train.samples[index].path): why for index, why in self.loader.skipped.items()}

    def save_last(self) -> None:
        """Write the weights and all that is needed to go on from here; the checkpoints before move one place down.

        Several processes call it together.

        Raises:
            TrainingError: a weight is not finite; what was saved before stays.
            OutputError: the disk is full, or the folder cannot be written; likewise.
        """
        first = self.ranks.is_first
        chance = self.ranks.gathered(generator_states(self.detector.device))
        kept = gathered(self.kept.state_dict(), keep=first)
        trained = kept if self.average is None else gathered(self.model.state_dict(), keep=first)
        tensors = gathered(optimizer_tensors(self.model, self.optimizer), keep=first)
        if not first:
            return
        progress: dict[str, Any] = {
            "position": asdict(self.position),
            "steps_per_epoch": len(self.loader),
            "precision": self.precision.state(),
        }
        for rank, states in enumerate(chance):
            tensors |= {f"{_CHANCE}{rank}/{name}": state for name, state in states.items()}
        if self.average is not None:
            # The averaged ones are the file's weights, for use; those that take the steps are for going on.
            progress["average_updates"] = self.average.updates
            tensors |= {TRAINED + name: tensor for name, tensor in trained.items()}
        _check_finite(trained, self.position)
        saved = self._checkpoint(kept, {}, TrainingState(progress=progress, tensors=tensors))
        self.folder.replace_last(checkpoints.writer(saved, copy=not self.sharded), keep=self.config.keep_last)

    def save_best(self, metrics: Metrics) -> None:
        """Write the weights, for use, with what was measured.

        Several processes call it together.

        Raises:
            TrainingError: a weight is not finite.
            OutputError: the disk is full, or the folder cannot be written.
        """
        kept = gathered(self.kept.state_dict(), keep=self.ranks.is_first)
        if self.ranks.is_first:
            _check_finite(kept, self.position)
            checkpoints.save(self._checkpoint(kept, metrics.twelve(), None), self.folder.best)

    def restore(self, saved: Checkpoint) -> list[str]:
        """Go back to where `save_last` was called; returns what is not as it was, for people."""
        assert saved.training is not None
        notes, progress, tensors = [], saved.training.progress, saved.training.tensors
        trained = cut_like_those_of(self.model, trained_weights(saved))
        checkpoints.load_weights(self.model, trained, str(self.folder.last))
        position = _position(progress, self.folder.last, self.config.best_by)
        if progress["steps_per_epoch"] != len(self.loader):
            # Other images or another batch size: a place inside the epoch means nothing any more.
            position.begin_epoch()
            position.step = position.epoch * len(self.loader)
            notes.append(
                f"an epoch now has {len(self.loader)} steps instead of {progress['steps_per_epoch']}: "
                f"epoch {position.epoch + 1} begins anew"
            )
        vars(self.position).update(vars(position))
        if self.average is not None and "average_updates" in progress:
            averaged = cut_like_those_of(self.average.model, saved.weights)
            checkpoints.load_weights(self.average.model, averaged, str(self.folder.last))
            self.average.updates = progress["average_updates"]
        elif self.average is not None:
            self.average.begin()
            notes.append("the checkpoint has no averaged weights: averaging begins here; ema_decay=0 goes without")
        restore_optimizer(self.model, self.optimizer, tensors)
        self.precision.restore(progress.get("precision", {}))
        states = below(f"{_CHANCE}{self.ranks.rank}/", tensors)
        if not states and not self.ranks.together:
            states = below(_CHANCE, tensors)  # of an earlier version, which knew one process only
        restore_generators(states, self.detector.device)
        return notes

    def _checkpoint(
        self, weights: dict[str, Tensor], metrics: dict[str, float], training: TrainingState | None
    ) -> Checkpoint:
        weights_source = Path(self.config.model.backbone_weights).name  # no path of this machine
        return Checkpoint(
            weights=weights,
            model=replace(self.config.model, backbone_weights=weights_source),
            classes=self.detector.classes,
            category_ids=self.detector.category_ids,
            preprocessing=self.detector.preprocessing,
            metrics=metrics,
            provenance={
                "recipe": self.config.name,
                "data": self.data_name,
                "epoch": str(self.position.epoch),
                "date": time.strftime("%Y-%m-%d"),
                **({"weights": self.origin.weights} if self.origin.weights else {}),
            },
            licence=self.origin.licence,
            training=training,
        )


def _position(progress: dict[str, Any], path: Path, best_by: str) -> Position:
    # Runs of earlier versions have left out no batch, and were judged by AP.
    saved = dict(progress["position"])
    saved.setdefault("batches_in_epoch", saved.get("step_in_epoch", 0))
    saved.setdefault("best_value", saved.get("best", {}).get(best_by))
    saved.setdefault("improved_epoch", saved.get("best_epoch") or 0)
    try:
        return Position(**saved)
    except TypeError as error:
        raise CheckpointError(f"{path} does not say where the run was: {error}") from error


def _check_finite(weights: dict[str, Tensor], position: Position) -> None:
    """Never let weights that are lost replace some that are not."""
    floating = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    # The largest number of each, not its square, which might be beyond what the type holds.
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(list(floating.values()), torch.inf)])
    if not largest.isfinite().all():
        name = list(floating)[int((~largest.isfinite()).nonzero()[0])]
        raise TrainingError(
            f"step {position.step}, epoch {position.epoch + 1}: the weights are not finite, {name} is the first; "
            "they are not saved, and the checkpoints before stay; a smaller --lr usually cures it"
        )
