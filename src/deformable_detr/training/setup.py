"""Everything one training run holds, and how it is saved and found again."""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, ConfigError, TrainingError
from deformable_detr.data.batch import BatchLoader, make_loader
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.splits import TrainingData
from deformable_detr.evaluation.coco_metrics import Metrics
from deformable_detr.inference.detector import Detector
from deformable_detr.models import DeformableDETR, build
from deformable_detr.models.losses import Criterion
from deformable_detr.runs.folder import RunFolder
from deformable_detr.runs.recipes import TrainConfig
from deformable_detr.training.activation_checkpointing import checkpoint_activations
from deformable_detr.training.compiling import compile_layers
from deformable_detr.training.ema import Average, to_average
from deformable_detr.training.finetune import Origin, Transfer, fill
from deformable_detr.training.freezing import freeze
from deformable_detr.training.optimizer import learning_rate, make_optimizer
from deformable_detr.training.precision import Precision
from deformable_detr.training.sharding import (
    cut_like_those_of,
    gather_into,
    gathered,
    learnt_statistics,
    shard,
    take_from_first,
)
from deformable_detr.training.state import (
    TRAINED,
    below,
    generator_states,
    optimizer_tensors,
    restore_generators,
    restore_optimizer,
    trained_weights,
)
from deformable_detr.weights import checkpoint as checkpoints
from deformable_detr.weights.checkpoint import Checkpoint, TrainingState

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


def start_session(
    config: TrainConfig,
    folder: RunFolder,
    data: TrainingData,
    data_name: str,
    *,
    device: str,
    weights: bool | Transfer,
    ranks: Ranks = ALONE,
) -> Session:
    """Build all parts of a run whose config already fits its data. Seeds torch's global generator.

    Args:
        config: as `fit_to_data` returned it.
        folder: where the run is kept.
        data: what it learns from.
        data_name: for provenance.
        device: see `choose_device`.
        weights: load the backbone's weights, or those of a whole detector; False where `restore` will bring them.
        ranks: the processes that train together.

    Raises:
        ConfigError: the model cannot be built, or all of it is to be frozen.
        CheckpointError: the backbone's weights cannot be had, or those of a detector do not fit.
        BackendError: the device is not here, or cannot compute in this precision.
    """
    torch.manual_seed(config.seed)
    model = build(config.model, load_backbone_weights=weights is True)
    if isinstance(weights, Transfer):
        fill(model, weights)
    freeze(model, config.freeze)
    detector = Detector(model, data.train.classes, data.train.category_ids, config.preprocessing, device=device)
    loader = make_loader(
        data.train,
        config.preprocessing,
        batch_size=config.batch_size,
        augmentation=config.augmentation,
        seed=config.seed,
        num_workers=config.num_workers,
        skip_bad_images=config.skip_bad_images,
        cache_bytes=round(config.image_cache_gb * 1e9 / ranks.size),
        pin_memory=detector.device.type == "cuda",
        ranks=ranks,
        epochs=config.epochs,
    )
    copy = to_average(model) if config.ema_decay else None
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if config.compile:
        compile_layers(model)
    network = _shared(model, copy, config, ranks)
    if ranks.rank:
        torch.manual_seed(config.seed + ranks.rank)  # the same weights, but a dropout of its own
    return Session(
        config=config,
        folder=folder,
        data=data,
        detector=detector,
        criterion=Criterion(config.criterion).to(detector.device),
        optimizer=make_optimizer(model, config.optimizer, learning_rate(config.optimizer, config.batch_size)),
        loader=loader,
        position=Position(),
        data_name=data_name,
        precision=Precision(config.precision, detector.device),
        network=network,
        origin=weights.origin if isinstance(weights, Transfer) else Origin(),
        average=Average(model, config.ema_decay, copy) if config.ema_decay else None,
        ranks=ranks,
    )


def check_same_classes(saved: Checkpoint, train: DetectionDataset, path: Path) -> None:
    """Refuse to go on with data of other classes than the run began with.

    Raises:
        CheckpointError: both counts and the names.
    """
    if saved.classes != train.classes:
        raise CheckpointError(
            f"{path} has {len(saved.classes)} classes ({', '.join(saved.classes)}), "
            f"the data set has {len(train.classes)} ({', '.join(train.classes)}); "
            "a run can only go on with the classes it began with"
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


def _shared(model: DeformableDETR, copy: DeformableDETR | None, config: TrainConfig, ranks: Ranks) -> torch.nn.Module:
    if not ranks.together:
        return model
    # Frozen norms are the same everywhere and stay so; those that learn are the first process' at every step.
    device = next(model.parameters()).device
    if config.sharded and ranks.size > 1:
        shard([model] if copy is None else [model, copy], ranks, device)
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def check_share(config: TrainConfig, num_processes: int) -> None:
    """Refuse batches that leave a process, or a part of its share, without an image.

    Raises:
        ConfigError: the numbers.
    """
    if config.batch_size < num_processes * config.accumulate:
        parts = f" in {config.accumulate} parts each" if config.accumulate > 1 else ""
        raise ConfigError(
            f"{num_processes} processes{parts} cannot share batches of {config.batch_size} images; "
            f"ask for --batch-size {num_processes * config.accumulate} or more, or for fewer --devices"
        )


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


def with_epochs(config: TrainConfig, epochs: int | None, completed: int) -> TrainConfig:
    """The config to resume with: `epochs` in all, or as many as it has if None.

    Raises:
        ConfigError: nothing is left to do.
    """
    config = replace(config, epochs=epochs or config.epochs)
    assert config.epochs is not None
    if config.epochs <= completed:
        raise ConfigError(
            f"the run has completed {completed} of {config.epochs} epochs; to go on, ask for more with --epochs"
        )
    return config
