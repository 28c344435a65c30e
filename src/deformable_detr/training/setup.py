"""Setup of a run from its settings: network, loss, optimizer and loader."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.core.config import to_dict
from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.short_text import shown
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
    """Build all parts of a run. This seeds torch's global random generator.

    Args:
        config: settings fitted to the data, from `fit_to_data`.
        folder: the run folder.
        data: training and validation images.
        data_name: short name of the data set, for the provenance of checkpoints.
        device: device to train on.
        weights: True loads the pretrained weights of the backbone, a transfer those of a whole detector, and False
            none, because `restore` will load them.
        model: a network of one's own, which is trained itself; built from the config if left out.
        ranks: the processes that train together.

    Raises:
        ConfigError: the model cannot be built, or all of it would be frozen.
        CheckpointError: the weights of the backbone are not available, or those of a detector do not fit.
        BackendError: the device cannot compute in this precision.
    """
    # The same seed in all processes: they start from the same weights.
    torch.manual_seed(config.run.seed)
    plan = plan_of(config)
    model = make_model(config, device, weights=weights, model=model)
    train = data.train
    detector = Detector(model, train.classes, train.category_ids, plan.preprocessing, device=device, as_it_is=True)
    loader = training_loader(config, plan, train, device, ranks)
    whole = whole_copy(model, config) if config.compute.sharded and ranks.size > 1 else None
    learner = make_learner(config, model, plan.batch_size, ranks)
    if ranks.rank:
        torch.manual_seed(config.run.seed + ranks.rank)  # from here on, each process has its own dropout
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
    """Network on its device, with the weights that it starts from and its frozen parts; see `set_up`."""
    if model is None:
        model = MODELS.build(config.model, load_backbone_weights=weights is True)
    if isinstance(weights, Transfer):
        fill(model, weights)
    freeze(model, config.run.freeze)
    return model.to(device).eval()


def make_learner(config: TrainConfig, model: nn.Module, batch_size: int, ranks: Ranks = ALONE) -> Learner:
    """Learner for a network: loss, optimizer, precision and averaged weights.

    The network is changed in place if it is compiled, sharded, or recomputes activations.

    Args:
        config: settings of the run.
        model: the network, on its device.
        batch_size: images per step, which the learning rate follows.
        ranks: the processes that train together.

    Raises:
        ConfigError: there is no compiler, or a parameter cannot be sharded.
        BackendError: the device cannot compute in this precision.
    """
    compute, device = config.compute, next(model.parameters()).device
    sharded = compute.sharded and ranks.size > 1
    # The copy for averaged weights comes first: it is not compiled, and it is sharded together with the network.
    decay = settled(config.optimizer.ema_decay)
    copy = averaging_copy(model) if decay else None
    if compute.activation_checkpointing:
        checkpoint_activations(model)
    if compute.compile:
        compile_layers(model)
    network: nn.Module = model
    if sharded:
        shard([model] if copy is None else [model, copy], ranks, device)
    elif ranks.together:
        # Statistics of batch norm that learns are copied from the first process at every step.
        network = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    interface = interface_of(model)
    criterion = interface.make_criterion(config.criterion)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    # The optimizer comes last, because sharding replaces the parameters.
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
        ema=None if copy is None else EMA(model, decay, copy),
        ranks=ranks,
        sharded=sharded,
    )


def training_loader(
    config: TrainConfig, plan: Plan, train: DetectionDataset, device: torch.device, ranks: Ranks
) -> BatchLoader:
    """Loader of the training batches of a run."""
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
    """Refuse to resume a run with data of other classes.

    Raises:
        CheckpointError: the classes differ; the message names all of them.
    """
    if saved.classes != train.classes:
        raise CheckpointError(
            f"{path} has {len(saved.classes)} classes ({', '.join(saved.classes)}), "
            f"the data set has {len(train.classes)} ({', '.join(train.classes)}); "
            "a run can only go on with the classes it began with"
        )


def check_same_model(saved: Checkpoint, config: TrainConfig, path: Path) -> None:
    """Refuse to resume a run whose config.json asks for another network than its checkpoint has, before it is built.

    Raises:
        CheckpointError: they differ in a setting on which a tensor depends; the message names it.
    """
    ours, theirs = config.model, saved.model
    if type(ours) is not type(theirs):
        raise CheckpointError(
            f"{path} is of a {MODELS.name_of(theirs)}, and config.json of a {MODELS.name_of(ours)}: "
            "they do not belong together"
        )
    # Where the first weights of the backbone came from is written differently into the two, and no tensor needs it.
    for name in to_dict(theirs).keys() - theirs.free_settings - {"backbone_weights"}:
        if getattr(ours, name) != getattr(theirs, name):
            raise CheckpointError(
                f"{path} has {name}={shown(getattr(theirs, name))}, and config.json has {shown(getattr(ours, name))}: "
                "they do not belong together"
            )


def check_share(config: TrainConfig, num_processes: int) -> None:
    """Refuse a batch size that would leave a process, or one of its parts of a step, without an image.

    Raises:
        ConfigError: the batch size is too small, or is "auto" with several processes.
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
    """Config to resume a run with.

    Args:
        config: settings of the run.
        epochs: number of epochs of the whole run; that of the config if None.
        progress: progress of the run.

    Raises:
        ConfigError: no epoch is left to train.
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
