"""State of a run: its parts, how far it is, how it is saved and found again, to the very bit."""

import time
from copy import deepcopy
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, TrainingError
from deformable_detr.data.loader import BatchLoader
from deformable_detr.data.splits import TrainingData
from deformable_detr.evaluation.coco_metrics import Metrics
from deformable_detr.inference.detector import Detector
from deformable_detr.models import MODELS
from deformable_detr.models.interface import CriterionLike, GivenModelConfig
from deformable_detr.runs.config import Plan, TrainConfig
from deformable_detr.runs.folder import RunFolder
from deformable_detr.runs.progress import RunProgress, saved_run_progress
from deformable_detr.training.acceleration import Precision
from deformable_detr.training.ema import EMA
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
_GENERATORS = "generator/"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Learner(NamedTuple):
    """Network that learns, with all that a step needs besides images, see `gradient_step`."""

    model: nn.Module
    network: nn.Module
    """The model, or, where several processes train it, what gives each of them the mean of their gradients."""
    criterion: CriterionLike
    optimizer: torch.optim.AdamW
    precision: Precision
    device: torch.device
    clip_norm: float
    accumulate: int
    """Parts in which a batch goes through the network."""
    ema: EMA | None = None
    ranks: Ranks = ALONE
    sharded: bool = False
    """Whether each process has a part of every weight."""


class RunState(NamedTuple):
    """A run under way. Only `progress` and the weights, moments and averages of `learner` change."""

    config: TrainConfig
    plan: Plan
    folder: RunFolder
    data: TrainingData
    detector: Detector
    """Detector around the network that is being trained."""
    learner: Learner
    loader: BatchLoader
    steps_per_epoch: int
    progress: RunProgress
    data_name: str
    origin: Origin = Origin()
    """Origin of the weights that the run started from."""
    ranks: Ranks = ALONE
    """The processes that train together; the first of them writes."""
    whole: nn.Module | None = None
    """Copy of a network of somebody's own, whole, for evaluation where the weights are sharded."""

    def judged(self) -> Detector:
        """Detector that is evaluated: around the weights that are kept, or around a whole copy where they are sharded.

        Several processes call it together.
        """
        if not self.learner.sharded:
            if self.ranks.together:
                take_from_first(learnt_statistics(self.kept))  # those of the others are of their own images
            return self.detector if self.learner.ema is None else self.detector.around(self.kept)
        with torch.random.fork_rng(devices=[]):  # building draws random numbers; the run's own go on where they were
            whole = self.whole or MODELS.build(self.config.model, load_backbone_weights=False)
        gather_into(whole, self.kept)
        return self.detector.around(whole)

    @property
    def model(self) -> nn.Module:
        """Network being trained."""
        return self.learner.model

    @property
    def own_model(self) -> nn.Module | None:
        """Copy of the network if it is one of somebody's own, which only its author can build."""
        return deepcopy(self.model) if isinstance(self.config.model, GivenModelConfig) else None

    @property
    def kept(self) -> nn.Module:
        """Network whose weights are evaluated and kept for use: the averaged ones if there are any."""
        return self.model if self.learner.ema is None else self.learner.ema.model

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or `patience` has ended the run."""
        return self.progress.epoch >= self.plan.epochs or self.progress.stopped_early

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.plan.epochs * self.steps_per_epoch

    @property
    def evaluations_left(self) -> int:
        """How often the run will still be evaluated."""
        every = self.plan.eval_every
        return -(-self.plan.epochs // every) - self.progress.epoch // every

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
        learner, first = self.learner, self.ranks.is_first
        generators = self.ranks.gathered(generator_states(learner.device))
        kept = gathered(self.kept.state_dict(), keep=first)
        trained = kept if learner.ema is None else gathered(self.model.state_dict(), keep=first)
        tensors = gathered(optimizer_tensors(self.model, learner.optimizer), keep=first)
        if not first:
            return
        progress: dict[str, Any] = {
            "progress": asdict(self.progress),
            "steps_per_epoch": self.steps_per_epoch,
            "precision": learner.precision.state(),
        }
        for rank, states in enumerate(generators):
            tensors |= {f"{_GENERATORS}{rank}/{name}": state for name, state in states.items()}
        if learner.ema is not None:
            # The averaged ones are the file's weights, for use; those that take the steps are for going on.
            progress["average_updates"] = learner.ema.updates
            tensors |= {TRAINED + name: tensor for name, tensor in trained.items()}
        _check_finite(trained, self.progress)
        saved = self._checkpoint(kept, {}, TrainingState(progress=progress, tensors=tensors))
        write = checkpoints.writer(saved, copy=not learner.sharded)
        self.folder.replace_last(write, keep=self.config.checkpoints.keep_last)

    def save_best(self, metrics: Metrics) -> None:
        """Write the weights, for use, with what was measured.

        Several processes call it together.

        Raises:
            TrainingError: a weight is not finite.
            OutputError: the disk is full, or the folder cannot be written.
        """
        kept = gathered(self.kept.state_dict(), keep=self.ranks.is_first)
        if self.ranks.is_first:
            _check_finite(kept, self.progress)
            checkpoints.save(self._checkpoint(kept, metrics.twelve(), None), self.folder.best)

    def restore(self, saved: Checkpoint) -> list[str]:
        """Go back to where `save_last` was called; returns what is not as it was, for people.

        Raises:
            CheckpointError: the weights or the optimizer's state are of another network, or the counters are missing.
        """
        assert saved.training is not None
        learner, source = self.learner, str(self.folder.last)
        notes, saved_progress, tensors = [], saved.training.progress, saved.training.tensors
        # The weights that take the steps, and how far they are.
        trained = cut_like_those_of(self.model, trained_weights(saved))
        checkpoints.load_weights(self.model, trained, source)
        progress = saved_run_progress(saved_progress, self.folder.last, self.config)
        if saved_progress["steps_per_epoch"] != self.steps_per_epoch:
            # Other images or another batch size: a place inside the epoch means nothing any more.
            progress.begin_epoch()
            progress.step = progress.epoch * self.steps_per_epoch
            notes.append(
                f"an epoch now has {self.steps_per_epoch} steps instead of {saved_progress['steps_per_epoch']}: "
                f"epoch {progress.epoch + 1} begins anew"
            )
        vars(self.progress).update(vars(progress))
        # Their average, which is what the file holds for use.
        if learner.ema is not None and "average_updates" in saved_progress:
            averaged = cut_like_those_of(learner.ema.model, saved.weights)
            checkpoints.load_weights(learner.ema.model, averaged, source)
            learner.ema.updates = saved_progress["average_updates"]
        elif learner.ema is not None:
            learner.ema.begin()
            notes.append("the checkpoint has no averaged weights: averaging begins here; ema_decay=0 goes without")
        # Moments, the scale of float16, and the random numbers of dropout.
        restore_optimizer(self.model, learner.optimizer, tensors)
        learner.precision.restore(saved_progress.get("precision", {}))
        states = below(f"{_GENERATORS}{self.ranks.rank}/", tensors)
        if not states and not self.ranks.together:
            states = below(_GENERATORS, tensors)  # of an earlier version, which knew one process only
        restore_generators(states, learner.device)
        return notes

    def _checkpoint(
        self, weights: dict[str, Tensor], metrics: dict[str, float], training: TrainingState | None
    ) -> Checkpoint:
        return Checkpoint(
            weights=weights,
            model=self.config.model.portable(),
            classes=self.detector.classes,
            category_ids=self.detector.category_ids,
            preprocessing=self.detector.preprocessing,
            metrics=metrics,
            provenance={
                "recipe": self.config.name,
                "data": self.data_name,
                "epoch": str(self.progress.epoch),
                "date": time.strftime("%Y-%m-%d"),
                **({"weights": self.origin.weights} if self.origin.weights else {}),
            },
            licence=self.origin.licence,
            training=training,
        )


def whole_copy(model: nn.Module, config: TrainConfig) -> nn.Module | None:
    """Copy of a network that only its author can build, to be evaluated where the weights themselves are sharded."""
    return deepcopy(model) if isinstance(config.model, GivenModelConfig) else None


def _check_finite(weights: dict[str, Tensor], progress: RunProgress) -> None:
    """Never let weights that are lost replace some that are not."""
    floating = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    # The largest number of each, not its square, which might be beyond what the type holds.
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(list(floating.values()), torch.inf)])
    if not largest.isfinite().all():
        name = list(floating)[int((~largest.isfinite()).nonzero()[0])]
        raise TrainingError(
            f"step {progress.step}, epoch {progress.epoch + 1}: the weights are not finite, {name} is the first; "
            "they are not saved, and the checkpoints before stay; a smaller --lr usually cures it"
        )


def below(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def trained_weights(saved: Checkpoint) -> dict[str, Tensor]:
    """Weights that take the steps; the file's own are their average if there is one.

    Args:
        saved: a checkpoint to go on from, read with `training=True`.
    """
    return below(TRAINED, saved.training.tensors if saved.training else {}) or saved.weights


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Moments of every parameter that has had a gradient, by "moment/parameter"."""
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
    """States of this process' random generators: dropout's numbers are the only ones that a run draws as it goes."""
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
