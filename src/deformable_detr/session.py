"""Everything one training run holds, and how it is saved and found again."""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deformable_detr import checkpoint as checkpoints
from deformable_detr.checkpoint import Checkpoint, TrainingState
from deformable_detr.criterion import Criterion
from deformable_detr.data.batch import BatchLoader, make_loader
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.detector import Detector
from deformable_detr.errors import CheckpointError, ConfigError
from deformable_detr.metrics import Metrics
from deformable_detr.models import DeformableDETR, build
from deformable_detr.optimizer import learning_rate, make_optimizer
from deformable_detr.recipes import TrainConfig
from deformable_detr.run_folder import RunFolder
from deformable_detr.splits import TrainingData

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Position:
    """Where a run is."""

    epoch: int = 0
    """Epochs completed, their evaluation included."""
    step: int = 0
    """Steps taken since the start."""
    step_in_epoch: int = 0
    """Steps taken in the epoch under way; all of them while it is being evaluated."""
    evaluation_seconds: float = 0.0
    """What the last evaluation took."""
    best_epoch: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of best.safetensors."""


class Session(NamedTuple):
    """A run under way. Only `position`, the weights and the optimizer change."""

    config: TrainConfig
    folder: RunFolder
    data: TrainingData
    detector: Detector
    """Around the model that is being trained; evaluation goes through it."""
    criterion: Criterion
    optimizer: torch.optim.AdamW
    loader: BatchLoader
    position: Position
    data_name: str

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
        every = self.config.eval_every
        return -(-self.config.epochs // every) - self.position.epoch // every

    @property
    def skipped(self) -> dict[str, str]:
        """Path of each training image that could not be read so far, and why."""
        return {str(self.data.train.samples[index].path): why for index, why in self.loader.skipped.items()}

    def save_last(self) -> None:
        """Write the weights and all that is needed to go on from here."""
        progress = {"position": asdict(self.position), "steps_per_epoch": len(self.loader)}
        tensors = _optimizer_tensors(self.model, self.optimizer) | _generator_states(self.detector.device)
        checkpoints.save(self._checkpoint({}, TrainingState(progress=progress, tensors=tensors)), self.folder.last)

    def save_best(self, metrics: Metrics) -> None:
        """Write the weights, for use, with what was measured."""
        checkpoints.save(self._checkpoint(metrics.twelve(), None), self.folder.best)

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where `save_last` was called."""
        assert saved.training is not None
        checkpoints.load_weights(self.model, saved.weights, str(self.folder.last))
        progress = saved.training.progress
        try:
            position = Position(**progress["position"])
        except TypeError as error:
            raise CheckpointError(f"{self.folder.last} does not say where the run was: {error}") from error
        if progress["steps_per_epoch"] != len(self.loader):
            # Other images or another batch size: a place inside the epoch means nothing any more.
            position = replace(position, step_in_epoch=0, step=position.epoch * len(self.loader))
        vars(self.position).update(vars(position))
        _restore_optimizer(self.model, self.optimizer, saved.training.tensors)
        _restore_generators(saved.training.tensors, self.detector.device)

    def _checkpoint(self, metrics: dict[str, float], training: TrainingState | None) -> Checkpoint:
        weights_source = Path(self.config.model.backbone_weights).name  # no path of this machine
        return Checkpoint(
            weights=self.model.state_dict(),
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
            },
            training=training,
        )


def start_session(
    config: TrainConfig, folder: RunFolder, data: TrainingData, data_name: str, *, device: str, weights: bool
) -> Session:
    """Build all parts of a run whose config already fits its data. Seeds torch's global generator.

    Args:
        config: as `fit_to_data` returned it.
        folder: where the run is kept.
        data: what it learns from.
        data_name: for provenance.
        device: see `choose_device`.
        weights: load the backbone's weights; False where a checkpoint will bring all weights.

    Raises:
        ConfigError: the model cannot be built.
        CheckpointError: the backbone's weights cannot be had.
        BackendError: the device is not here.
    """
    torch.manual_seed(config.seed)
    model = build(config.model, load_backbone_weights=weights)
    detector = Detector(model, data.train.classes, data.train.category_ids, config.preprocessing, device=device)
    loader = make_loader(
        data.train,
        config.preprocessing,
        batch_size=config.batch_size,
        augmentation=config.augmentation,
        seed=config.seed,
        num_workers=config.num_workers,
        skip_bad_images=config.skip_bad_images,
        cache_bytes=round(config.image_cache_gb * 1e9),
        pin_memory=detector.device.type == "cuda",
        epochs=config.epochs,
    )
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


def _parameter_names(model: torch.nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    names = _parameter_names(model)
    return {
        f"{moment}/{names[parameter]}": state[moment]
        for parameter, state in optimizer.state.items()
        for moment in _MOMENTS
    }


def _restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    names = _parameter_names(model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            found: dict[str, Any] = {moment: tensors.get(f"{moment}/{name}") for moment in _MOMENTS}
            if found["step"] is None:
                continue  # a parameter that had no gradient yet
            if any(one is None for one in found.values()) or found["exp_avg"].shape != parameter.shape:
                raise CheckpointError(f"the optimizer's state of {name} is missing or of another shape")
            # AdamW keeps its step counter on the CPU and its moments beside the parameter.
            optimizer.state[parameter] = {
                moment: one.clone() if moment == "step" else one.to(parameter.device) for moment, one in found.items()
            }


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    states = {"generator/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator/cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(tensors: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["generator/cpu"])
    if device.type == "cuda" and "generator/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator/cuda"], device)


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
