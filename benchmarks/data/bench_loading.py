"""Reading and varying images against the training step that consumes them: `python -m benchmarks.data.bench_loading D`.

Loaders of every preset and number of workers take turns with the training step of the recipe `small`, on the images of
the data set D, so that a machine that slows down slows all of them. A ratio of 3 means that the loader alone could feed
three such trainings. With `--memory STEPS` the recipe is trained for so many steps instead, with the last preset and
number of workers, and memory is read on the way: resident memory of this process and its workers, what they share
counted once (Linux's PSS). The table goes to standard error; one line of JSON goes to standard output, last.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.cases import deformable
from benchmarks.report import machine, say
from deformable_detr.core.types import Batch
from deformable_detr.data.augmentation.presets import PRESETS
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import BatchLoader, make_loader
from deformable_detr.data.splits import open_training_data
from deformable_detr.models import build
from deformable_detr.models.losses import Criterion
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.runs.recipes import small, with_augmentation, with_backbone
from deformable_detr.training.acceleration import bound_primitive_cache
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.optimizer import clip_gradients, learning_rate, make_optimizer

_READINGS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data.bench_loading", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=small().run.batch_size)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of a round")
    parser.add_argument("--cache-gb", type=float, default=small().data.image_cache_gb)
    parser.add_argument("--memory", type=int, metavar="STEPS", help="train for so many steps and read the memory")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    bound_primitive_cache()  # as a training does
    config = small().with_settings(batch_size=given.batch_size, image_cache_gb=given.cache_gb)
    data = open_training_data(given.data, val_share=config.data.val_share, seed=0, skip_bad_images=False).train
    config, _ = fit_to_data(config, data)
    facts = {
        "data": given.data.name,
        "images": len(data),
        "batch_size": config.run.batch_size,
        "cache_gb": given.cache_gb,
    }
    facts["short_side"] = settled(config.preprocessing).short_side
    if given.memory:
        measured = memory(data, with_augmentation(config, given.presets[-1]), given.workers[-1], given.memory)
        facts |= {"preset": given.presets[-1], "workers": given.workers[-1]}
    else:
        measured = throughput(data, config, given.presets, given.workers, given.rounds, given.seconds)
    print(json.dumps(machine("cpu") | facts | measured))


def throughput(
    data: DetectionDataset,
    config: TrainConfig,
    presets: Sequence[str],
    workers: Sequence[int],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Images a second of the training step and of every loader, and how many times the former the latter are."""
    step = training_step(config, len(data.classes))
    loaders = {
        f"{preset}, {count} workers": endless(loader(data, with_augmentation(config, preset), count))
        for preset in presets
        for count in workers
    }
    # One batch for the step, that its speed may not depend on a loader; every loader begins warm.
    batch = next(endless(loader(data, config, 0)))
    step(batch)
    for batches in loaders.values():
        for _ in range(-(-len(data) // settled(config.run.batch_size))):
            next(batches)
    steps: list[float] = []
    loaded: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        steps.append(images_per_second(lambda: step(batch), settled(config.run.batch_size), seconds))
        for name, batches in loaders.items():
            drain(batches)
            loaded[name].append(images_per_second(lambda b=batches: next(b), settled(config.run.batch_size), seconds))  # type: ignore[misc]
    consumed = median(steps)
    say(f"{'training step, small':28}{consumed:8.1f} images/s")
    result: dict[str, Any] = {"step_images_per_second": consumed, "loaders": {}}
    for name, speeds in loaded.items():
        ratio = median(one / other for one, other in zip(speeds, steps, strict=True))
        say(f"{name:28}{median(speeds):8.1f} images/s{ratio:8.2f} x the step")
        result["loaders"][name] = {"images_per_second": median(speeds), "ratio": ratio}
    return result


def memory(data: DetectionDataset, config: TrainConfig, workers: int, steps: int) -> dict[str, Any]:
    """Memory on the way through a training, in MB by step."""
    step = training_step(config, len(data.classes))
    batches = endless(loader(data, config, workers))
    readings = {}
    marks = {50, steps, *range(steps // _READINGS, steps + 1, max(1, steps // _READINGS))}
    for number in range(1, steps + 1):
        step(next(batches))
        if number in marks:
            readings[number] = round(proportional_memory() / 1e6, 1)
            say(f"step {number}: {readings[number]:.1f} MB")
    return {"memory_mb_by_step": readings}


def loader(data: DetectionDataset, config: TrainConfig, workers: int) -> BatchLoader:
    """As a training opens it."""
    return make_loader(
        data,
        settled(config.preprocessing),
        batch_size=settled(config.run.batch_size),
        augmentation=settled(config.augmentation),
        num_workers=workers,
        cache_bytes=round(config.data.image_cache_gb * 1e9),
    )


def endless(loader: BatchLoader) -> Iterator[Batch]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def drain(batches: Iterator[Batch], count: int = 6) -> None:
    """Take what workers have made in advance while others were measured."""
    for _ in range(count):
        next(batches)


def images_per_second(take: Callable[[], object], batch_size: int, seconds: float) -> float:
    """Of at least one call, for so long."""
    started, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - started < seconds:
        take()
        count += batch_size
    return count / (time.perf_counter() - started)


def training_step(config: TrainConfig, num_classes: int) -> Callable[[Batch], float]:
    """Forward, losses, backward and update of the recipe's model, from random weights."""
    config = with_backbone(config, name=None, weights="none")
    model = build(replace(deformable(config), num_classes=num_classes)).train()
    criterion = Criterion(config.criterion)
    optimizer = make_optimizer(model, config.optimizer, learning_rate(config.optimizer, settled(config.run.batch_size)))

    def step(batch: Batch) -> float:
        losses = criterion(model(batch.images, batch.padding_mask), batch.targets)
        losses.total.backward()
        clip_gradients(model, config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(losses.total.detach())

    return step


def proportional_memory() -> int:
    """Bytes of resident memory of this process and its children, shared pages divided among those that share them."""
    return sum(_pss(process) for process in (os.getpid(), *_children()))


def _children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"the kernel does not tell the memory of process {pid}")


if __name__ == "__main__":
    main()
