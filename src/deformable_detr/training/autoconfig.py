"""Automatic settings of a run from its training data: one function for each rule, and a reason for each choice."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from deformable_detr.core.errors import ConfigError, listed
from deformable_detr.data.crowding import most_objects
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.runs.config import OptimizerConfig, ScheduleConfig, TrainConfig, settled
from deformable_detr.runs.query_counts import settled_queries
from deformable_detr.runs.recipes import with_augmentation, with_image_size
from deformable_detr.training.autobatch import fitting_batch

_STEPS = 3000
_EPOCHS = (12, 300)
_WARMUP_SHARE = 1 / 30
_MOST_WARMUP_STEPS = 1000
_EVALUATIONS = 30
_HALF_LIFE_SHARE = 1 / 20
_LARGEST_DECAY = 0.9997
_SIDES = (256, 512)
_SIDE_STEP = 32
_WANTED_PIXELS = 24.0
_ENOUGH_OBJECTS = 5
_PRESET = "paper"
_CPU = torch.device("cpu")
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+")
_HANDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class Fitted(NamedTuple):
    """Config fitted to the data."""

    config: TrainConfig
    """Settings, none of them "auto" except perhaps the learning rate."""
    reasons: tuple[str, ...]
    """Choices that were made, and why, one line each, for people."""


class ImageSize(NamedTuple):
    """Image size that fits the objects in the data."""

    short_side: int
    """Shorter side of the images, in pixels."""
    class_name: str
    """Class with the smallest objects, which decided; empty if there are no objects."""
    pixels: float
    """Side of the median object of that class in images of this size, in pixels."""


def fit_to_data(
    config: TrainConfig,
    train: DetectionDataset,
    *,
    device: torch.device = _CPU,
    model: nn.Module | None = None,
    normalisation: Preprocessing | None = None,
) -> Fitted:
    """Fit a config to the training data: choose every setting that is "auto", except for the learning rate.

    The number of classes is always taken from the data, and the batch size is never larger than the data set.

    Args:
        config: the config to fit.
        train: training images.
        device: device to train on; its memory is measured if the batch size is "auto".
        model: a network of one's own, which is used in that measurement.
        normalisation: preprocessing with the mean and standard deviation to use if the image size is "auto"; those of
            ImageNet if left out.

    Raises:
        TrainingError: not even one image fits into memory.
        ConfigError: memory cannot be measured on this system, or the network is for another number of classes.
    """
    reasons: list[str] = []
    # Classes: a network from outside cannot be changed, only refused.
    if model is None:
        config = replace(config, model=config.model.with_classes(len(train.classes)))
    elif config.model.num_classes != len(train.classes):
        raise ConfigError(
            f"the network is for {config.model.num_classes} classes, the data set has {len(train.classes)} "
            f"({listed(train.classes)}); build it for these"
        )
    config, reason = settled_queries(config, most_objects(train))
    reasons += [reason] if reason else []
    # Each rule needs what those before have chosen: memory depends on the size of images, epochs on the batch size.
    config = _settle_size(config, train, normalisation, reasons.append)
    config = _settle_augmentation(config, train, reasons.append)
    # Then the numbers, each of which follows from those before.
    batch_size = _settled_batch(config, train, device, model, reasons.append)
    steps_per_epoch = max(1, len(train.samples) // batch_size)
    schedule = _settled_schedule(config.schedule, steps_per_epoch, reasons.append)
    assert schedule.epochs != "auto"
    eval_every = _settled_interval(config.run.eval_every, schedule.epochs, reasons.append)
    run, compute = replace(config.run, batch_size=batch_size, eval_every=eval_every), config.compute
    if compute.accumulate > batch_size:
        compute = replace(compute, accumulate=batch_size)
    optimizer = _settled_average(config.optimizer, schedule.epochs * steps_per_epoch, reasons.append)
    config = replace(config, schedule=schedule, run=run, compute=compute, optimizer=optimizer)
    return Fitted(config, tuple(reasons))


def fitted_epochs(steps_per_epoch: int) -> int:
    """Number of epochs for a data set of this size: about 3000 steps, but at least 12 epochs and at most 300.

    After 12 epochs on many photos, a small model has reached most of the accuracy that it can reach.
    """
    fewest, most = _EPOCHS
    return min(most, max(fewest, math.ceil(_STEPS / steps_per_epoch)))


def fitted_warmup(num_steps: int) -> int:
    """Number of warm-up steps for a run of `num_steps`: a thirtieth of them, at most 1000."""
    return min(_MOST_WARMUP_STEPS, round(num_steps * _WARMUP_SHARE))


def fitted_interval(epochs: int) -> int:
    """Number of epochs between evaluations, so that there are at most 30 evaluations."""
    return math.ceil(epochs / _EVALUATIONS)


def fitted_decay(num_steps: int) -> float:
    """Decay of averaged weights for a run of `num_steps`: 0.5^(1 / h), with a half-life h of a twentieth of the steps.

    What a step has added to the average is worth half after h steps, so that at the end of the run about the last fifth
    of it counts (15 of 16 parts). h is at least one step, and the decay is never above 0.9997, a half-life of 2310
    steps, which is that of the published DINO.
    """
    half_life = max(1.0, num_steps * _HALF_LIFE_SHARE)
    return min(_LARGEST_DECAY, 0.5 ** (1 / half_life))


def fitted_size(train: DetectionDataset) -> ImageSize:
    """Image size at which the median object of every class has a side of at least 24 pixels, three cells of stride 8.

    The side of an object is the square root of its area. Classes with fewer than five objects are ignored if other
    classes have more. The size is a multiple of 32, from 256 to 512. It is not larger than the images themselves,
    except that it is at least 256.
    """
    # Sides of the objects of each class, as shares of the shorter side of their image.
    smallest, larger = _SIDES
    sides: dict[int, list[float]] = {}
    for sample in train.samples:
        widths_heights = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2])[~sample.is_crowd]
        shares = np.sqrt(widths_heights.prod(axis=1)) / min(sample.size_wh)
        for class_id, share in zip(sample.class_ids[~sample.is_crowd], shares, strict=True):
            if share > 0:  # a data set made in Python may have boxes without area
                sides.setdefault(int(class_id), []).append(float(share))
    enough = {one: shares for one, shares in sides.items() if len(shares) >= _ENOUGH_OBJECTS} or sides
    if not enough:
        return ImageSize(smallest, "", 0.0)
    # The class with the smallest objects decides.
    medians = {class_id: float(np.median(shares)) for class_id, shares in enough.items()}
    class_id = min(medians, key=medians.__getitem__)
    own = float(np.median([min(sample.size_wh) for sample in train.samples]))
    wanted = _in_steps(min(_WANTED_PIXELS / medians[class_id], own))
    short_side = min(larger, max(smallest, wanted))
    return ImageSize(short_side, train.classes[class_id], medians[class_id] * short_side)


def handed_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Classes with "left" or "right" in their names, which would be wrong in a mirrored image."""
    return tuple(name for name in classes if _HANDED.search(_WORDS.sub(" ", name)))


def _in_steps(side: float) -> int:
    return math.ceil(side / _SIDE_STEP) * _SIDE_STEP


def _settle_size(
    config: TrainConfig, train: DetectionDataset, normalisation: Preprocessing | None, say: Callable[[str], None]
) -> TrainConfig:
    if config.preprocessing != "auto":
        return config
    size = fitted_size(train)
    found = f"images of {size.short_side} pixels"
    if size.class_name:
        found += f": objects of the smallest class, {size.class_name}, have about {size.pixels:.0f} there"
    if 0 < size.pixels < _WANTED_PIXELS - 1:
        most = max(size.short_side, round(size.short_side * _WANTED_PIXELS / size.pixels))
        found += f"; --image-size {most} would give them {_WANTED_PIXELS:.0f}, for more time and memory"
    say(found)
    sized = with_image_size(config, size.short_side)
    if normalisation is None:
        return sized
    # The proportions of the sides are the paper's, also where the run starts from weights.
    numbers = replace(settled(sized.preprocessing), mean=normalisation.mean, std=normalisation.std)
    return replace(sized, preprocessing=numbers)


def _settle_augmentation(config: TrainConfig, train: DetectionDataset, say: Callable[[str], None]) -> TrainConfig:
    if config.augmentation != "auto":
        return config
    config = with_augmentation(config, _PRESET)
    handed = handed_classes(train.classes)
    if not handed:
        say(f"augmentation {_PRESET}")
        return config
    say(f"augmentation {_PRESET} without mirroring, which would make {', '.join(handed)} wrong")
    return replace(config, augmentation=replace(settled(config.augmentation), hflip=0.0))


def _settled_batch(
    config: TrainConfig,
    train: DetectionDataset,
    device: torch.device,
    model: nn.Module | None,
    say: Callable[[str], None],
) -> int:
    if config.run.batch_size == "auto":
        batch_size, reason = fitting_batch(config, train, device, model)
        say(f"batches of {batch_size} images, which take {reason}")
    else:
        batch_size = config.run.batch_size
    most = max(1, len(train.samples))
    if batch_size > most:
        say(f"batches of {most} instead of {batch_size} images: the data set has no more")
    return min(batch_size, most)


def _settled_schedule(schedule: ScheduleConfig, steps_per_epoch: int, say: Callable[[str], None]) -> ScheduleConfig:
    epochs, warmup_steps = schedule.epochs, schedule.warmup_steps
    if epochs == "auto":
        epochs = fitted_epochs(steps_per_epoch)
        say(f"{epochs} epochs, which are {epochs * steps_per_epoch} steps")
    if warmup_steps == "auto":
        warmup_steps = fitted_warmup(epochs * steps_per_epoch)
        say(f"{warmup_steps} steps of warm-up, a thirtieth of all")
    return replace(schedule, epochs=epochs, warmup_steps=warmup_steps)


def _settled_average(optimizer: OptimizerConfig, num_steps: int, say: Callable[[str], None]) -> OptimizerConfig:
    if optimizer.ema_decay != "auto":
        return optimizer
    decay = fitted_decay(num_steps)
    half_life = -1 / math.log2(decay)
    say(f"averaged weights with a decay of {decay:.4g}, a half-life of {half_life:.0f} of {num_steps} steps")
    return replace(optimizer, ema_decay=decay)


def _settled_interval(eval_every: int | Literal["auto"], epochs: int, say: Callable[[str], None]) -> int:
    if eval_every != "auto":
        return eval_every
    interval = fitted_interval(epochs)
    if interval > 1:
        say(f"an evaluation every {interval} epochs: {math.ceil(epochs / interval)} in all")
    return interval
