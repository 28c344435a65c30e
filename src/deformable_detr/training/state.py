"""State of a run: its parts and its progress, saved and restored to the last bit."""

import time
from copy import deepcopy
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, TrainingError, first_line
from deformable_detr.core.short_text import shown
from deformable_detr.core.torch_files import first_not_finite
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
"""Prefix of the names of trained weights in a checkpoint whose own weights are their average."""
_GENERATORS = "generator/"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Learner(NamedTuple):
    """Learner: a network with all that a training step needs besides images, see `gradient_step`."""

    model: nn.Module
    """Network that is trained."""
    network: nn.Module
    """Model, or a wrapper (DistributedDataParallel) that averages its gradients over several processes."""
    criterion: CriterionLike
    """Loss."""
    optimizer: torch.optim.AdamW
    """Optimizer of the parameters that are not frozen."""
    precision: Precision
    """Number format of the forward pass."""
    device: torch.device
    """Device of the network."""
    clip_norm: float
    """Largest 2-norm of all gradients together; 0 = no clipping."""
    accumulate: int
    """Number of parts in which a batch goes through the network."""
    ema: EMA | None = None
    """Averaged weights, if the run has them."""
    ranks: Ranks = ALONE
    """Processes that train together."""
    sharded: bool = False
    """Whether each process has only a part of every weight."""


class RunState(NamedTuple):
    """State of a current run. Only `progress` and the weights, moments and averages of `learner` change."""

    config: TrainConfig
    """Settings fitted to the data."""
    plan: Plan
    """The values that the data decided on, if they were left to them."""
    folder: RunFolder
    """Run folder."""
    data: TrainingData
    """Training and validation images."""
    detector: Detector
    """Detector with the network that is trained."""
    learner: Learner
    """Network with all that a training step needs."""
    loader: BatchLoader
    """Loader of the training batches."""
    steps_per_epoch: int
    """Number of steps of an epoch."""
    progress: RunProgress
    """Progress of the run."""
    data_name: str
    """Short name of the data set, for the provenance of checkpoints."""
    origin: Origin = Origin()
    """Origin of the weights that the run started from."""
    ranks: Ranks = ALONE
    """Processes that train together; the first of them writes."""
    whole: nn.Module | None = None
    """Unsharded copy of a network of one's own, for evaluation if the weights are sharded."""

    def judged(self) -> Detector:
        """Detector to evaluate, with the weights that are kept for use; sharded weights are gathered in a copy.

        All processes call it together.
        """
        if not self.learner.sharded:
            if self.ranks.together:
                # In each process, statistics of batch norm come from its own images; those of the first are saved.
                take_from_first(learnt_statistics(self.kept))
            return self.detector if self.learner.ema is None else self.detector.around(self.kept)
        with torch.random.fork_rng(devices=[]):  # building draws random numbers, which must not change those of the run
            whole = self.whole or MODELS.build(self.config.model, load_backbone_weights=False)
        gather_into(whole, self.kept)
        return self.detector.around(whole)

    @property
    def model(self) -> nn.Module:
        """Network that is trained."""
        return self.learner.model

    @property
    def own_model(self) -> nn.Module | None:
        """Copy of the network if it is one of one's own, which cannot be built from the settings; else None."""
        return deepcopy(self.model) if isinstance(self.config.model, GivenModelConfig) else None

    @property
    def kept(self) -> nn.Module:
        """Network with the weights that are evaluated and kept for use: the averaged weights if there are any."""
        return self.model if self.learner.ema is None else self.learner.ema.model

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or `patience` has ended the run."""
        return self.progress.epoch >= self.plan.epochs or self.progress.stopped_early

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.plan.epochs * self.steps_per_epoch

    @property
    def evaluations_left(self) -> int:
        """Number of evaluations that are still to come."""
        every = self.plan.eval_every
        return -(-self.plan.epochs // every) - self.progress.epoch // every

    @property
    def skipped(self) -> dict[str, str]:
        """Reason for each training image that could not be read so far, by the path of the image."""
        return {str(self.data.train.samples[index].path): why for index, why in self.loader.skipped.items()}

    def save_last(self) -> None:
        """Save last.safetensors: the weights, and all that is needed to resume from here.

        Earlier checkpoints are kept, as many as `keep_last` says. All processes call it together.

        Raises:
            TrainingError: a weight is not finite; earlier checkpoints stay as they are.
            OutputError: the disk is full, or the folder cannot be written; earlier checkpoints stay as they are.
        """
        # All processes take part in gathering; only the first one keeps the result and writes it.
        learner, first = self.learner, self.ranks.is_first
        generators = self.ranks.gathered(generator_states(learner.device))
        kept = gathered(self.kept.state_dict(), keep=first)
        trained = kept if learner.ema is None else gathered(self.model.state_dict(), keep=first)
        tensors = gathered(optimizer_tensors(self.model, learner.optimizer), keep=first)
        if not first:
            return
        # Counters, random numbers of each process, and the weights that are trained if the file has their average.
        progress: dict[str, Any] = {
            "progress": asdict(self.progress),
            "steps_per_epoch": self.steps_per_epoch,
            "precision": learner.precision.state(),
        }
        for rank, states in enumerate(generators):
            tensors |= {f"{_GENERATORS}{rank}/{name}": state for name, state in states.items()}
        if learner.ema is not None:
            progress["average_updates"] = learner.ema.updates
            tensors |= {TRAINED + name: tensor for name, tensor in trained.items()}
        # Write, unless training has destroyed the weights.
        _check_finite(trained, self.progress)
        saved = self._checkpoint(kept, {}, TrainingState(progress=progress, tensors=tensors))
        write = checkpoints.writer(saved, copy=not learner.sharded)
        self.folder.replace_last(write, keep=self.config.checkpoints.keep_last)

    def save_best(self, metrics: Metrics) -> None:
        """Save best.safetensors: the weights that are kept for use, with their metrics.

        All processes call it together.

        Raises:
            TrainingError: a weight is not finite.
            OutputError: the disk is full, or the folder cannot be written.
        """
        kept = gathered(self.kept.state_dict(), keep=self.ranks.is_first)
        if self.ranks.is_first:
            _check_finite(kept, self.progress)
            checkpoints.save(self._checkpoint(kept, metrics.twelve(), None), self.folder.best)

    def restore(self, saved: Checkpoint) -> list[str]:
        """Restore the state that `save_last` saved.

        Args:
            saved: checkpoint, read with its state of training.

        Returns:
            Remarks for people on what could not be restored.

        Raises:
            CheckpointError: weights or state of the optimizer are of another network, or counters are missing.
        """
        assert saved.training is not None
        learner, source = self.learner, str(self.folder.last)
        notes, saved_progress, tensors = [], saved.training.progress, saved.training.tensors
        # Trained weights, which are not the file's own weights if there is an average.
        trained = cut_like_those_of(self.model, trained_weights(saved))
        checkpoints.load_weights(self.model, trained, source)
        # Progress. With other images or another batch size, a position inside an epoch means nothing any more.
        progress = saved_run_progress(saved_progress, self.folder.last, self.config)
        steps_before = saved_progress.get("steps_per_epoch")
        if type(steps_before) is not int:
            raise CheckpointError(f"{source} does not say how many steps an epoch had")
        if steps_before != self.steps_per_epoch:
            progress.begin_epoch()
            progress.step = progress.epoch * self.steps_per_epoch
            notes.append(
                f"an epoch now has {self.steps_per_epoch} steps instead of {shown(steps_before)}: "
                f"epoch {progress.epoch + 1} begins anew"
            )
        vars(self.progress).update(vars(progress))
        # Averaged weights, the file's own weights. Without them, averaging starts from the trained weights.
        updates = saved_progress.get("average_updates")
        if learner.ema is not None and type(updates) is int:
            averaged = cut_like_those_of(learner.ema.model, saved.weights)
            checkpoints.load_weights(learner.ema.model, averaged, source)
            learner.ema.updates = updates
        elif learner.ema is not None:
            learner.ema.begin()
            notes.append("the checkpoint has no averaged weights: averaging begins here; ema_decay=0 goes without")
        # Moments of the optimizer, the float16 scale, and the random generators, which dropout uses.
        restore_optimizer(self.model, learner.optimizer, tensors)
        try:
            learner.precision.restore(saved_progress.get("precision", {}))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{source} does not hold the scale of float16: {error}") from error
        states = below(f"{_GENERATORS}{self.ranks.rank}/", tensors)
        if not states and not self.ranks.together:
            states = below(_GENERATORS, tensors)  # in a checkpoint of an earlier version, which knew only one process
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
    """Copy of a network of one's own, for evaluation if its weights are sharded; None for one that can be built."""
    return deepcopy(model) if isinstance(config.model, GivenModelConfig) else None


def _check_finite(weights: dict[str, Tensor], progress: RunProgress) -> None:
    """Refuse to save weights that are not finite, which would replace good ones."""
    name = first_not_finite(weights)
    if name is not None:
        raise TrainingError(
            f"step {progress.step}, epoch {progress.epoch + 1}: the weights are not finite, {name} is the first; "
            "they are not saved, and the checkpoints before stay; a smaller --lr usually cures it"
        )


def below(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin with `start`, by the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def trained_weights(saved: Checkpoint) -> dict[str, Tensor]:
    """Trained weights of a checkpoint, whose own weights are their average if the run has one.

    Args:
        saved: checkpoint to resume from, read with `training=True`.
    """
    return below(TRAINED, saved.training.tensors if saved.training else {}) or saved.weights


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Moments of every parameter that has had a gradient, by names such as "exp_avg/backbone.conv1.weight"."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{moment}/{names[parameter]}": state[moment]
        for parameter, state in optimizer.state.items()
        for moment in _MOMENTS
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Restore the moments from `optimizer_tensors`.

    Args:
        model: network whose parameters the optimizer has.
        optimizer: optimizer to change.
        tensors: moments by name; other tensors are ignored.

    Raises:
        CheckpointError: moments are missing or have another shape.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            found: dict[str, Any] = {moment: tensors.get(f"{moment}/{name}") for moment in _MOMENTS}
            if found["step"] is None:
                continue  # a parameter that had no gradient yet
            shapes = [None if one is None else one.shape for one in found.values()]
            if shapes != [torch.Size(), parameter.shape, parameter.shape]:
                raise CheckpointError(f"the optimizer's state of {name} is missing or of another shape")
            # Fused AdamW needs all moments on the device of the parameter. They are copied, because a loaded tensor may
            # still be part of the file, which may be deleted.
            step = found.pop("step").to(parameter.device, copy=True)
            optimizer.state[parameter] = {"step": step} | {
                moment: cut_like(one, parameter) for moment, one in found.items()
            }


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """States of the random generators of this process; during a run only dropout draws from them."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states from `generator_states`; a generator without a state stays as it is.

    Raises:
        CheckpointError: a state is none of this generator.
    """
    try:
        if "cpu" in states:
            torch.set_rng_state(states["cpu"])
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"the state of a random generator cannot be restored: {first_line(error)}") from error
