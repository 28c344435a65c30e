"""Automatic batch size: the number of images per step that fit into memory, measured with real training steps."""

import ctypes
import gc
import math
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from deformable_detr.core.errors import ConfigError, TrainingError
from deformable_detr.core.memory import check_fits, free_memory, kernel_bytes
from deformable_detr.core.types import Batch, Target
from deformable_detr.data.augmentation.geometry import resized_wh
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.crowding import most_objects
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.training.freezing import to_training_mode
from deformable_detr.training.loop import gradient_step
from deformable_detr.training.setup import make_learner, make_model

_SHARE_OF_GPU = 0.85
_SHARE_OF_HOST = 0.6
_MOST_ON_GPU = 64
_STEPS_IN_AN_EPOCH = 16
_STATUS = Path("/proc/self/status")
_PEAK = Path("/proc/self/clear_refs")
_BYTES_PER_PIXEL = 1000


class FittingBatch(NamedTuple):
    """Batch size that fits into memory."""

    batch_size: int
    """Images per step."""
    reason: str
    """Memory that a step needs, and memory that is free, for people."""


def fitting_batch(
    config: TrainConfig, train: DetectionDataset, device: torch.device, model: nn.Module | None = None
) -> FittingBatch:
    """Batch size that fits into memory even with the largest images and the most objects of this data set.

    On a GPU it is as large as possible, but at most 64 and small enough for 16 steps per epoch. On a CPU it is
    `optimizer.base_batch_size` or less, because a CPU gains nothing from larger batches.

    Args:
        config: settings of the run; the image size is no longer "auto".
        train: training images.
        device: device to train on. The measurement takes training steps on it, with a network of its own.
        model: a network of one's own, which is copied; built from the config if left out.

    Raises:
        TrainingError: not even one image fits.
        ConfigError: memory cannot be measured on this system.
    """
    # The budget. On the host it is smaller, because other programs need memory, too.
    on_gpu = device.type == "cuda"
    room = free_memory(device)
    if room is None or not (on_gpu or _STATUS.exists()):
        raise ConfigError(f"memory cannot be measured on {sys.platform}; say how many images with --batch-size")
    budget = int(room * (_SHARE_OF_GPU if on_gpu else _SHARE_OF_HOST))
    # The upper limit: beyond it, more images per step gain nothing, or leave too few steps to learn.
    usual = config.optimizer.base_batch_size
    most = min(_MOST_ON_GPU, max(1, len(train) // _STEPS_IN_AN_EPOCH)) if on_gpu else usual

    def needed(images: int) -> int:
        return step_memory(config, train, device, images, model)

    # The largest batch between one image and the limit.
    batch_size, memory = largest(needed, budget, min(most, len(train)))
    if memory > budget:
        raise TrainingError(
            f"not even one image fits: a step with it needs {_gib(memory)}, and {_gib(budget)} of {_gib(room)} may be "
            "used; try --set activation_checkpointing=true, or a smaller --image-size"
        )
    return FittingBatch(batch_size, f"{_gib(memory)} of {_gib(room)} of memory")


def largest(needed: Callable[[int], int], budget: int, most: int) -> tuple[int, int]:
    """Largest batch size from 1 to `most` that fits into the budget.

    Args:
        needed: measures the peak memory of a step, in bytes, for a number of images; about linear in that number.
        budget: memory that may be used, in bytes.
        most: upper limit, at least 1.

    Returns:
        The batch size, and the bytes that a step of it needs. If not even one image fits, 1 and the bytes for one.
    """
    # Two measurements give a straight line, and the line a first guess. A measurement is expensive, a search is not
    # worth it.
    one = needed(1)
    if most == 1 or one > budget:
        return 1, one
    each = max(1, needed(2) - one)
    count = max(1, min(most, 1 + (budget - one) // each))
    # Memory is only about linear, so the guess is measured, and lowered by a tenth until it fits.
    while count > 1 and (bytes_needed := needed(count)) > budget:
        count = max(1, min(count - 1, count * 9 // 10))
    return (count, bytes_needed) if count > 1 else (1, one)


def step_memory(
    config: TrainConfig,
    train: DetectionDataset,
    device: torch.device,
    num_images: int,
    model: nn.Module | None = None,
) -> int:
    """Peak memory of a training with this number of images per step, in bytes, beyond what is in use now.

    It is measured with the setup and the step of a real run. If memory runs out, it is `sys.maxsize`.
    """
    # Collect garbage before and after: a measurement must not count what an earlier one has left.
    try:
        # What the first step of a process loads and prepares takes memory once, however many images a step has.
        _two_steps(config, train, device, 1, model)
        gc.collect()
        before = _begin_peak(device)
        _two_steps(config, train, device, num_images, model)
    except torch.OutOfMemoryError:
        return sys.maxsize
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return _peak(device) - before


def _two_steps(
    config: TrainConfig, train: DetectionDataset, device: torch.device, num_images: int, model: nn.Module | None
) -> None:
    copy = None if model is None else deepcopy(model)
    if config.optimizer.ema_decay == "auto":  # not known before the batch size is; averages need memory, whatever it is
        config = replace(config, optimizer=replace(config.optimizer, ema_decay=0.5))
    learner = make_learner(config, make_model(config, device, weights=False, model=copy), num_images)
    to_training_mode(learner.model, config.run.freeze)
    batch = _largest_batch(config, train, num_images)
    # The first step creates the state of the optimizer. The second has it from its start, so its peak is the highest.
    for _ in range(2):
        gradient_step(learner, batch)


def check_step_fits(config: TrainConfig, train: DetectionDataset, device: torch.device) -> None:
    """Check that the largest step of a run can fit into memory, by a bound that every network exceeds.

    Raises:
        ConfigError: it cannot; the message says how much is needed and free.
    """
    width, height = _largest_wh(settled(config.augmentation), train)
    num_images = math.ceil(settled(config.run.batch_size) / config.compute.accumulate)
    check_fits(
        num_images * width * height,
        _BYTES_PER_PIXEL,
        device,
        f"{num_images} training images of {width} x {height} pixels",
        "choose a smaller --image-size or --batch-size, or cut the step into parts with --set accumulate=N",
    )


def _largest_batch(config: TrainConfig, train: DetectionDataset, num_images: int) -> Batch:
    """Batch of black images as large as the largest, and with as many objects as the most, of this data set."""
    width, height = _largest_wh(settled(config.augmentation), train)
    num_objects = _most_objects(settled(config.augmentation), train)
    target = Target(torch.zeros(num_objects, dtype=torch.long), torch.full((num_objects, 4), 0.5))
    return Batch(
        images=torch.zeros(num_images, 3, height, width),
        padding_mask=torch.zeros(num_images, height, width, dtype=torch.bool),
        targets=[target] * num_images,
        sample_indices=[0] * num_images,
        original_sizes_wh=[(width, height)] * num_images,
    )


def _largest_wh(augmentation: Augmentation, train: DetectionDataset) -> tuple[int, int]:
    """Largest size that the images of a batch can be padded to, in pixels."""
    side = max(augmentation.short_sides)
    sizes = [resized_wh(sample.size_wh, side, augmentation.max_side) for sample in train.samples]
    if augmentation.rotate90:
        sizes += [(height, width) for width, height in sizes]
    width, height = max(width for width, _ in sizes), max(height for _, height in sizes)
    # A crop may be longer in shape than its image, or turn portrait into landscape, and is resized by its shorter side.
    longer = 1.0
    if augmentation.crop_probability:
        longer = augmentation.crop_max / augmentation.crop_min
    if augmentation.iou_crop:
        longer = max(longer, 2 * max(width, height) / side)
    if longer > 1:
        longest = min(augmentation.max_side, round(side * longer))
        width, height = max(width, longest), max(height, longest)
    return width, height


def _most_objects(augmentation: Augmentation, train: DetectionDataset) -> int:
    """Largest number of objects to learn in one training image, which mosaic and mixup may make of several images."""
    return most_objects(train) * (4 if augmentation.mosaic else 1) * (2 if augmentation.mixup else 1)


def _begin_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _give_back()
    try:
        _PEAK.write_text("5", encoding="ascii")  # resets the kernel's peak of resident memory
    except OSError as error:
        raise ConfigError(
            f"memory cannot be measured here ({_PEAK}: {error.strerror}); say how many images with --batch-size"
        ) from error
    return kernel_bytes(_STATUS, "VmRSS")


def _give_back() -> None:
    """Return freed memory to the system; a step that used it again would seem to need no memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it; other libraries keep less memory
    if trim is not None:
        trim(0)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return kernel_bytes(_STATUS, "VmHWM")


def _gib(num_bytes: int) -> str:
    return "more than there is" if num_bytes == sys.maxsize else f"{num_bytes / 2**30:.1f} GiB"
