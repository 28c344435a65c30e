"""Batch size by memory: how many images a step can hold, measured with the run's own setup and step."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from deformable_detr.core.errors import ConfigError, TrainingError
from deformable_detr.core.types import Batch, Target
from deformable_detr.data.augmentation.geometry import resized_wh
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.training.freezing import to_training_mode
from deformable_detr.training.loop import gradient_step
from deformable_detr.training.setup import make_learner, make_model

_SHARE_OF_GPU = 0.85
_SHARE_OF_HOST = 0.6
_MOST_ON_GPU = 64
_STEPS_IN_AN_EPOCH = 16
_CACHE_CAPACITY = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
_PRIMITIVES = 64
_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_PEAK = Path("/proc/self/clear_refs")
_CGROUP = Path("/sys/fs/cgroup")


class FittingBatch(NamedTuple):
    """Images per step, and for people why so many."""

    batch_size: int
    reason: str


def bound_primitive_cache() -> None:
    """Bound on the sizes that convolutions on a CPU remember: 64 instead of 1024. To be set before the first of them.

    oneDNN keeps what it prepared for each size of image, and in training hardly a size comes twice. What it keeps lies
    strewn between the activations, so that the gaps that these leave fit no others and the heap of a training doubles.
    Who has set ONEDNN_PRIMITIVE_CACHE_CAPACITY is left alone.
    """
    if not any(name in os.environ for name in _CACHE_CAPACITY):
        os.environ[_CACHE_CAPACITY[0]] = str(_PRIMITIVES)


def fitting_batch(
    config: TrainConfig, train: DetectionDataset, device: torch.device, model: nn.Module | None = None
) -> FittingBatch:
    """Batch that memory has room for, with the largest images and the most objects that this data set can give.

    On a GPU as many as fit, but at most 64, and at least 16 steps in an epoch. A CPU gains nothing from more images
    than `optimizer.base_batch_size`; there it is that, or less.

    Args:
        config: with the images' size settled.
        train: what will be learnt from.
        device: where. Steps are taken there with a network that is thrown away.
        model: a network of one's own, which is copied; built from the config if left out.

    Raises:
        TrainingError: not even one image fits.
        ConfigError: this system does not tell how much memory there is.
    """
    on_gpu = device.type == "cuda"
    if not on_gpu and not (_STATUS.exists() and _MEMINFO.exists()):
        raise ConfigError(f"memory cannot be measured on {sys.platform}; say how many images with --batch-size")
    room = _free(device)
    budget = int(room * (_SHARE_OF_GPU if on_gpu else _SHARE_OF_HOST))
    usual = config.optimizer.base_batch_size
    most = min(_MOST_ON_GPU, max(1, len(train) // _STEPS_IN_AN_EPOCH)) if on_gpu else usual

    def needed(images: int) -> int:
        return step_memory(config, train, device, images, model)

    batch_size, memory = largest(needed, budget, min(most, len(train)))
    if memory > budget:
        raise TrainingError(
            f"not even one image fits: a step with it needs {_gib(memory)}, and {_gib(budget)} of {_gib(room)} may be "
            "used; try --set activation_checkpointing=true, or a smaller --image-size"
        )
    return FittingBatch(batch_size, f"{_gib(memory)} of {_gib(room)} of memory")


def largest(needed: Callable[[int], int], budget: int, most: int) -> tuple[int, int]:
    """The most images, from 1 to `most`, of which a step fits, and the bytes it needs; 1 if none does.

    Args:
        needed: bytes that a step of so many images takes at its peak, about linear in their number.
        budget: bytes.
        most: at least 1.
    """
    one = needed(1)
    if most == 1 or one > budget:
        return 1, one
    each = max(1, needed(2) - one)
    count = max(1, min(most, 1 + (budget - one) // each))
    # The line was a guess.
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
    """Bytes that a training takes at its peak with so many images in a step, beyond what is in use now.

    Measured with the setup of a run and with its step.
    """
    gc.collect()
    before = _begin_peak(device)
    try:
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
    learner = make_learner(config, make_model(config, device, weights=False, model=copy), num_images)
    to_training_mode(learner.model, config.run.freeze)
    batch = _largest_batch(config, train, num_images)
    # The first step makes the optimizer's own state, the second has it from the start.
    for _ in range(2):
        gradient_step(learner, batch)


def _largest_batch(config: TrainConfig, train: DetectionDataset, num_images: int) -> Batch:
    """Batch of black images as large, and with as many objects, as any that this data set can give."""
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
    """What the widest and the highest image of a batch would be padded to."""
    side = max(augmentation.short_sides)
    sizes = [resized_wh(sample.size_wh, side, augmentation.max_side) for sample in train.samples]
    if augmentation.rotate90:
        sizes += [(height, width) for width, height in sizes]
    width, height = max(width for width, _ in sizes), max(height for _, height in sizes)
    # A window may be longer, or lie across: it is resized by its own shorter side.
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
    """On one image, which may be made of several."""
    most = max((len(sample.class_ids) for sample in train.samples), default=0)
    return most * (4 if augmentation.mosaic else 1) * (2 if augmentation.mixup else 1)


def _begin_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _give_back()
    try:
        _PEAK.write_text("5", encoding="ascii")  # the kernel's own mark of the most resident memory begins anew
    except OSError as error:
        raise ConfigError(
            f"memory cannot be measured here ({_PEAK}: {error.strerror}); say how many images with --batch-size"
        ) from error
    return _kibibytes(_STATUS, "VmRSS")


def _give_back() -> None:
    """To the system, what was freed: a step that takes it again would seem to need nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others do not keep as much
    if trim is not None:
        trim(0)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _kibibytes(_STATUS, "VmHWM")


def _free(device: torch.device) -> int:
    """Bytes that could be had now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    free = _kibibytes(_MEMINFO, "MemAvailable")
    try:
        most = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = (_CGROUP / "memory.stat").read_text(encoding="ascii").split()
    except OSError:
        return free
    # Files that were read lately count as used, and go as soon as somebody needs the room.
    read_files = int(dict(zip(statistics[::2], statistics[1::2], strict=False)).get("inactive_file", 0))
    return free if most == "max" else min(free, int(most) - used + read_files)


def _kibibytes(file: Path, name: str) -> int:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{file} does not say {name}")


def _gib(num_bytes: int) -> str:
    return "more than there is" if num_bytes == sys.maxsize else f"{num_bytes / 2**30:.1f} GiB"
