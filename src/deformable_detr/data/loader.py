"""Loader of batches: worker processes that read and transform images, in an order that the seed decides."""

import atexit
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Sampler

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import DataError
from deformable_detr.core.types import Batch
from deformable_detr.data.augmentation.geometry import resized_wh
from deformable_detr.data.augmentation.pipeline import evaluation_transform, training_transform
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.batch import collate, stand_in
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.handles import check_handles
from deformable_detr.data.open import ways_past_bad_images
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.data.torch_dataset import BadImage, Item, TransformedDataset, seed_of


class BadImageError(DataError):
    """Error in an image that cannot be read: reading goes on only without it."""


class Collated(NamedTuple):
    """Result of a worker: a batch, and the images that could not be read."""

    batch: Batch | None
    """Batch of the images that could be read; None if there is none."""
    bad_images: tuple[BadImage, ...]
    """Images that could not be read."""


def _collate_readable(results: Sequence[Item | BadImage]) -> Collated:
    items = [result for result in results if isinstance(result, Item)]
    bad_images = tuple(result for result in results if isinstance(result, BadImage))
    bad_images += tuple(bad_image for item in items for bad_image in item.bad_images)
    return Collated(collate(items) if items else None, bad_images)


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """Order of the samples in an epoch: a permutation that depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch, 0))
    return torch.randperm(num_samples, generator=generator).tolist()


def equal_size_batches(sizes_wh: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Batches of positions whose images have equal sizes, so that nothing needs padding.

    The largest images come first: if memory does not suffice, that shows at once.
    """
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for position, size_wh in enumerate(sizes_wh):
        groups[size_wh].append(position)
    largest_first = sorted(groups.items(), key=lambda group: (-group[0][0] * group[0][1], group[0]))
    return [
        positions[start : start + batch_size]
        for _, positions in largest_first
        for start in range(0, len(positions), batch_size)
    ]


class ShuffledBatches(Sampler[list[int]]):
    """Sampler of the batches of an epoch, in `epoch_order`; with several processes, of this one's share of each.

    `drop_last` leaves out an incomplete last batch, unless it is the only one.
    """

    def __init__(self, num_samples: int, batch_size: int, *, seed: int, drop_last: bool, ranks: Ranks = ALONE) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0
        """First batch of the epoch that is read, counted from 0; a resumed epoch begins later."""
        self.ranks = ranks
        self.drop_last = drop_last and num_samples >= batch_size

    def __len__(self) -> int:
        full, rest = divmod(self.num_samples, self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.num_samples, self.seed, self.epoch)
        for batch in range(self.start, len(self)):
            yield list(self.ranks.share_of(order[batch * self.batch_size : (batch + 1) * self.batch_size]))


@dataclass(eq=False)
class BatchLoader:
    """Loader of batches: call `set_epoch`, then iterate over the batches of that epoch.

    A batch of which no image can be read is left out. Several processes take every step together; there a `stand_in`
    takes the place of such a batch.

    An unreadable image raises `BadImageError` with one clear line, also if it was read in a worker process. With
    `skip_bad_images` it is left out instead and noted in `skipped`. Worker processes live from epoch to epoch.
    """

    start_workers: Callable[[], DataLoader[Item | BadImage]]
    """Starts the worker processes."""
    source: TransformedDataset
    """Transformed samples that the workers read."""
    batches: ShuffledBatches | list[list[int]]
    """Positions of the samples in each batch."""
    skip_bad_images: bool
    """Whether unreadable images are left out; else they raise `BadImageError`."""
    keep_step: bool = False
    """Whether other processes wait for a batch of this one at every step."""
    skipped: dict[int, str] = field(default_factory=dict)
    """Reason for each image left out so far, by its position in the data set."""
    consumed: int = 0
    """Number of batches taken from this epoch, with those of which no image could be read."""
    _workers: DataLoader[Item | BadImage] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Set the epoch, which decides the order and all random numbers of the next iterations.

        Args:
            epoch: counted from 0.
            start: first batch to read, from 0; training that resumes inside an epoch reads no image before it.
        """
        self.source.set_epoch(epoch)
        self.consumed = start
        if isinstance(self.batches, ShuffledBatches):
            self.batches.epoch, self.batches.start = epoch, start

    def close(self) -> None:
        """End the worker processes; a later iteration starts new ones."""
        self._workers = None

    def __iter__(self) -> Iterator[Batch]:
        if self._workers is None:
            self._workers = self.start_workers()
        others = active_children()
        results = iter(self._workers)
        _ends_with_this_process(process for process in active_children() if process not in others)
        while (collated := next(results, None)) is not None:
            self.consumed += 1
            for bad_image in collated.bad_images:
                if not self.skip_bad_images:
                    # The traceback would keep the workers in a cycle, and torch waits for seconds for workers that
                    # the garbage collector ends.
                    del results
                    self.close()
                    raise BadImageError(f"{bad_image.message} ({ways_past_bad_images()})")
                self.skipped[bad_image.sample_index] = bad_image.message
            if collated.batch is not None:
                yield collated.batch
            elif self.keep_step:
                yield stand_in()


def make_loader(
    dataset: DetectionDataset,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    num_workers: int = 0,
    skip_bad_images: bool = False,
    cache_bytes: int = 0,
    pin_memory: bool = False,
    ranks: Ranks = ALONE,
    epochs: int | None = None,
) -> BatchLoader:
    """Loader of batches, for training if there is an `augmentation`, else for evaluation.

    Training shuffles each epoch and drops an incomplete last batch unless it is the only one. Evaluation visits every
    image once, in batches of equal size, so that no result depends on an image's neighbours. Either way the batches
    depend on `seed` and epoch alone, not on `num_workers`.

    Args:
        dataset: at least one sample, else `DataError`.
        preprocessing: of the model that gets the batches.
        batch_size: images per batch, at least 1.
        augmentation: variation of the training images.
        seed: decides the order and every random variation.
        num_workers: processes that read and transform, at most one for each CPU core; with 0 this process does it.
        skip_bad_images: leave out and note images that cannot be read, instead of raising `BadImageError`.
        cache_bytes: largest size of the decoded images kept in main memory, divided among the workers; 0 keeps none.
        pin_memory: return batches in page-locked memory, for faster copies to a CUDA device.
        ranks: of this process. With several, each gets its share: in training a part of every batch, in evaluation
            every n-th batch of n processes. `batch_size` counts all processes in training, and each one in evaluation.
        epochs: number of epochs of the whole training; the last ones have no mosaic and mixup, by the share
            `Augmentation.mixing_off`, and are varied less, by `Augmentation.until`. With None all epochs have
            everything.

    Raises:
        ValueError: `batch_size` or `num_workers` is too small.
        DataError: there is no image, or too few files may be open for so many processes.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size is {batch_size} and num_workers {num_workers}; they need at least 1 and 0")
    if len(dataset) == 0:
        raise DataError(f"{dataset.source or 'the data set'}: there are no images in it")
    batches: ShuffledBatches | list[list[int]]
    if augmentation is None:
        transform = evaluation_transform(preprocessing)
        batches = equal_size_batches(
            [
                resized_wh(sample.size_wh, preprocessing.short_side, preprocessing.max_side)
                for sample in dataset.samples
            ],
            batch_size,
        )[ranks.rank :: ranks.size]
    else:
        transform = training_transform(augmentation)
        batches = ShuffledBatches(len(dataset), batch_size, seed=seed, drop_last=True, ranks=ranks)
    num_workers = min(num_workers, _usable_cores())
    # While a training reads, its evaluations do, too.
    check_handles(num_workers, num_loaders=1 if augmentation is None else 2)
    source = TransformedDataset(
        dataset,
        transform,
        preprocessing,
        seed=seed,
        cache_bytes=cache_bytes // max(1, num_workers),
        mixing_epochs=augmentation.mixing_epochs(epochs) if augmentation and epochs else None,
        last_transform=training_transform(augmentation.plain()) if augmentation else None,
        last_from=augmentation.varied_epochs(epochs) if augmentation and epochs else None,
    )
    start_workers: Callable[[], DataLoader[Item | BadImage]] = partial(
        DataLoader,
        source,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate_readable,
        worker_init_fn=_leave_interrupts_to_the_main_process if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # A random generator of its own: else every epoch would take a number from the global one, which dropout uses.
        generator=torch.Generator().manual_seed(seed),
    )
    return BatchLoader(start_workers, source, batches, skip_bad_images, augmentation is not None and ranks.together)


def _usable_cores() -> int:
    """Number of CPU cores that this process may use, where the system tells; else of all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches all processes of the group, and so do a cluster's SIGTERM and the SIGHUP of a terminal that closes;
    # only the main process should answer.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


_ending: WeakSet[BaseProcess] = WeakSet()


def _ends_with_this_process(workers: Iterable[BaseProcess]) -> None:
    # Workers that still run at exit get SIGTERM, ignore it, and would be waited for without end. So they are killed.
    _ending.update(workers)
    # What is registered last is called first: before torch and multiprocessing begin to wait.
    atexit.unregister(_end)
    atexit.register(_end)


def _end() -> None:
    for process in list(_ending):
        if process.is_alive():
            process.kill()


@contextmanager
def open_workers(loader: BatchLoader) -> Iterator[None]:
    """Block in which a loader's worker processes may live; they end with it, and their deaths are explained.

    Raises:
        DataError: such a process died.
    """
    with explained_worker_deaths():
        try:
            yield
        finally:
            loader.close()


@contextmanager
def explained_worker_deaths() -> Iterator[None]:
    """Context in which the death of a worker process becomes one clear line.

    PyTorch raises its error from a signal handler, so it may come at any moment, not only while a batch is waited for.

    Raises:
        DataError: a worker process died.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DataError(
            f"a process that reads images ended unexpectedly: {' '.join(str(error).split())} "
            "The usual cause is too little memory; ask for fewer with --workers"
        ) from error
