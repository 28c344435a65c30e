"""Setup of a run: the network, what it learns with, and what it learns from, as the settings say."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import BatchLoader, make_loader
from deformable_detr.data.splits import TrainingData
from deformable_detr.inference.detector import Detector
from deformable_detr.models import MODELS, interface_of
from deformable_detr.runs.config import Plan, TrainConfig, plan_of, settled
from deformable_detr.runs.folder import RunFolder
from deformable_detr.runs.progress import RunProgress
from deformable_detr.training.acceleration import Precision, checkpoint_activations, compile_layers
from deformable_detr.training.ema import EMA, averaging_copy
from deformable_detr.training.finetune import Origin, Transfer, fill
from deformable_detr.training.freezing import freeze
from deformable_detr.training.optimizer import learning_rate, make_optimizer
from deformable_detr.training.sharding import shard
from deformable_detr.training.state import Learner, RunState, whole_copy
from deformable_detr.weights.checkpoint import Checkpoint


def set_up(
    config: TrainConfig,
    folder: RunFolder,
    data: TrainingData,
    data_name: str,
    *,
    device: torch.device,
    weights: bool | Transfer,
    model: nn.Module | None = None,
    ranks: Ranks = ALONE,
) -> RunState:
    """Build all parts of a run whose config already fits its data. Seeds torch's global random generator.

    Args:
        config: as `fit_to_data` returned it.
        folder: where the run is kept.
        data: what it learns from.
        data_name: for provenance.
        device: where it trains.
        weights: load the backbone's weights, or those of a whole detector; False where `restore` will bring them.
        model: a network of one's own, which is trained itself; built from the config if left out.
        ranks: the processes that train together.

    Raises:
        ConfigError: the model cannot be built, or all of it is to be frozen.
        CheckpointError: the backbone's weights cannot be had, or those of a detector do not fit.
        BackendError: the device cannot compute in this precision.
    """
    torch.manual_seed(config.run.seed)
    plan = plan_of(config)
    model = make_model(config, device, weights=weights, model=model)
    train = data.train
    detector = Detector(model, train.classes, train.category_ids, plan.preprocessing, device=device)
    loader = training_loader(config, plan, train, device, ranks)
    whole = whole_copy(model, config) if config.compute.sharded and ranks.size > 1 else None
    learner = make_learner(config, model, plan.batch_size, ranks)
    if ranks.rank:
        torch.manual_seed(config.run.seed + ranks.rank)  # the same weights, but a dropout of its own
    return RunState(
        config=config,
        plan=plan,
        folder=folder,
        data=data,
        detector=detector,
        learner=learner,
        loader=loader,
        steps_per_epoch=len(loader),
        progress=RunProgress(),
        data_name=data_name,
        origin=weights.origin if isinstance(weights, Transfer) else Origin(),
        ranks=ranks,
        whole=whole,
    )


def make_model(
    config: TrainConfig, device: torch.device, *, weights: bool | Transfer, model: nn.Module | None = None
) -> nn.Module:
    """Network on its device, with the weights it starts from, and parts of it frozen. See `set_up`."""
    if model is None:
        model = MODELS.build(config.model, load_backbone_weights=weights is True)
    if isinstance(weights, Transfer):
        fill(model, weights)
    freeze(model, config.run.freeze)
    return model.to(device).eval()


def make_learner(config: TrainConfig, model: nn.Module, batch_size: int, ranks: Ranks = ALONE) -> Learner:
    """Network with all that a step of it needs; changes it in place where it is compiled, recomputed or sharded.

    Args:
        config: settings of the run.
        model: the network, on its device.
        batch_size: images per step, which the learning rate follows.
        ranks: the processes that train together.

    Raises:
        ConfigError: there is no compiler, or a parameter cannot be sharded.
        BackendError: its device cannot compute in this precision.
    """
    compute, device = config.compute, next(model.parameters()).device
    sharded = compute.sharded and ranks.size > 1
    # The copy first: it neither learns nor is compiled, and is sharded together with the network.
    copy = averaging_copy(model) if config.optimizer.ema_decay else None
    if compute.activation_checkpointing:
        checkpoint_activations(model)
    if compute.compile:
        compile_layers(model)
    network: nn.Module = model
    if sharded:
        shard([model] if copy is None else [model, copy], ranks, device)
    elif ranks.together:
        # Frozen norms are the same everywhere and stay so; those that learn are the first process' at every step.
        network = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    interface = interface_of(model)
    criterion = interface.make_criterion(config.criterion)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    # The optimizer last: sharding has put other parameters in the place of those before.
    rate = learning_rate(config.optimizer, batch_size)
    return Learner(
        model=model,
        network=network,
        criterion=criterion,
        optimizer=make_optimizer(model, config.optimizer, rate, parts=interface.parts, offsets=interface.offsets),
        precision=Precision(compute.precision, device),
        device=device,
        clip_norm=config.optimizer.clip_norm,
        accumulate=compute.accumulate,
        ema=None if copy is None else EMA(model, config.optimizer.ema_decay, copy),
        ranks=ranks,
        sharded=sharded,
    )


def training_loader(
    config: TrainConfig, plan: Plan, train: DetectionDataset, device: torch.device, ranks: Ranks
) -> BatchLoader:
    """Loader of the batches that a run learns from."""
    return make_loader(
        train,
        plan.preprocessing,
        batch_size=plan.batch_size,
        augmentation=plan.augmentation,
        seed=config.run.seed,
        num_workers=config.data.num_workers,
        skip_bad_images=config.data.skip_bad_images,
        cache_bytes=round(config.data.image_cache_gb * 1e9 / ranks.size),
        pin_memory=device.type == "cuda",
        ranks=ranks,
        epochs=plan.epochs,
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


def check_share(config: TrainConfig, num_processes: int) -> None:
    """Refuse batches that leave a process, or a part of its share, without an image.

    Raises:
        ConfigError: the numbers.
    """
    batch_size, accumulate = config.run.batch_size, config.compute.accumulate
    if batch_size == "auto" and num_processes > 1:
        raise ConfigError(f"--batch-size auto is for one process, and there are {num_processes}; give a number")
    if batch_size != "auto" and batch_size < num_processes * accumulate:
        parts = f" in {accumulate} parts each" if accumulate > 1 else ""
        raise ConfigError(
            f"{num_processes} processes{parts} cannot share batches of {batch_size} images; "
            f"ask for --batch-size {num_processes * accumulate} or more, or for fewer --devices"
        )


def with_epochs(config: TrainConfig, epochs: int | None, progress: RunProgress) -> TrainConfig:
    """Config to resume with: `epochs` in all, or as many as it has if None.

    Raises:
        ConfigError: nothing is left to do.
    """
    completed = progress.epoch
    if epochs is not None:
        config = config.with_settings(epochs=epochs)
    in_all = settled(config.schedule.epochs)
    if in_all <= completed:
        raise ConfigError(f"the run has completed {completed} of {in_all} epochs; to go on, ask for more with --epochs")
    if progress.stopped_early and epochs is None:
        raise ConfigError(
            f"the run stopped early after epoch {completed}; to go on, ask for more than that with --epochs"
        )
    return config
