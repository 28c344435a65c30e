"""Everything one training run holds, and how it is saved and found again."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import make_loader
from deformable_detr.data.splits import TrainingData
from deformable_detr.inference.detector import Detector
from deformable_detr.models import DeformableDETR, build
from deformable_detr.models.losses import Criterion
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.folder import RunFolder
from deformable_detr.training.acceleration import Precision, checkpoint_activations, compile_layers
from deformable_detr.training.ema import Average, to_average
from deformable_detr.training.finetune import Origin, Transfer, fill
from deformable_detr.training.freezing import freeze
from deformable_detr.training.optimizer import learning_rate, make_optimizer
from deformable_detr.training.sharding import (
    shard,
)
from deformable_detr.training.state import Position, Session
from deformable_detr.weights.checkpoint import Checkpoint


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
