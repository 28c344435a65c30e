"""Loader of batches: worker processes that read and transform, and an order that a seed decides."""

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
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.data.torch_dataset import BadImage, Item, TransformedDataset, seed_of


class Collated(NamedTuple):
    """What a worker sends: a batch, if any of its images could be read, and those that could not."""

    batch: Batch | None
    bad_images: tuple[BadImage, ...]


def _collate_readable(results: Sequence[Item | BadImage]) -> Collated:
    items = [result for result in results if isinstance(result, Item)]
    bad_images = tuple(result for result in results if isinstance(result, BadImage))
    bad_images += tuple(bad_image for item in items for bad_image in item.bad_images)
    return Collated(collate(items) if items else None, bad_images)


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the samples that depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch, 0))
    return torch.randperm(num_samples, generator=generator).tolist()


def equal_size_batches(sizes_wh: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Positions in batches of equal size, so that nothing needs padding.

    The largest come first: if memory does not suffice, that shows at once.
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
    """The batches of the current epoch, from `epoch_order`; of several processes, this one's share of each.

    `drop_last` leaves out an incomplete last batch, unless it is the only one.
    """

    def __init__(self, num_samples: int, batch_size: int, *, seed: int, drop_last: bool, ranks: Ranks = ALONE) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0
        """The batch of the epoch to begin with."""
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
    """Iterate for one epoch of batches; `set_epoch` first. A batch of which no image can be read is left out.

    Several processes step together, so there such a share of a batch comes as `stand_in()` instead.

    An unreadable image raises `DataError` with one clear line, from whichever process it comes; with
    `skip_bad_images` it is left out instead and noted in `skipped`. Worker processes live from epoch to epoch.
    """

    start_workers: Callable[[], DataLoader[Item | BadImage]]
    source: TransformedDataset
    batches: ShuffledBatches | list[list[int]]
    skip_bad_images: bool
    keep_step: bool = False
    """Whether other processes count on a batch from this one at every step."""
    skipped: dict[int, str] = field(default_factory=dict)
    """Position in the data set of each image left out so far, and why."""
    consumed: int = 0
    """Batches of this epoch that have been asked for, also those of which no image could be read."""
    _workers: DataLoader[Item | BadImage] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the order and the random decisions of this epoch, for the iterations that begin after this.

        Training may begin at batch `start`; no image before it is read.
        """
        self.source.set_epoch(epoch)
        self.consumed = start
        if isinstance(self.batches, ShuffledBatches):
            self.batches.epoch, self.batches.start = epoch, start

    def close(self) -> None:
        """Let the worker processes go; a later iteration starts new ones."""
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
                    raise DataError(bad_image.message)
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
    """Batches for training if there is an `augmentation`, else for evaluation.

    Training shuffles each epoch and drops an incomplete last batch unless it is the only one. Evaluation visits every
    image once, in batches of equal size, so that no result depends on an image's neighbours. Either way the batches
    depend on `seed` and epoch alone, not on `num_workers`.

    Args:
        dataset: At least one sample, else `DataError`.
        preprocessing: Of the model that will see the batches.
        batch_size: Images per batch, at least 1.
        augmentation: How to vary training images.
        seed: Decides the order and every random variation.
        num_workers: Processes that read and transform, never more than there are processors; 0 does it in this one.
        skip_bad_images: Leave out and note what cannot be read, instead of raising `DataError`.
        cache_bytes: Bound on the decoded images kept in memory, shared out among the workers; 0 keeps none.
        pin_memory: Page-locked memory, for faster copies to a CUDA device.
        ranks: Of several processes each gets its share: of every batch in training, every so-many-th batch in
            evaluation. `batch_size` is that of all in training, and of each in evaluation.
        epochs: Of the whole training; the last of them, `Augmentation.mixing_off`, are without mosaic and mixup. None
            mixes in all.
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
    num_workers = min(num_workers, _usable_processors())
    source = TransformedDataset(
        dataset,
        transform,
        preprocessing,
        seed=seed,
        cache_bytes=cache_bytes // max(1, num_workers),
        mixing_epochs=epochs - round(epochs * augmentation.mixing_off) if augmentation and epochs else None,
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
        # Its own: else every epoch would take a number from the global one, which decides on dropout.
        generator=torch.Generator().manual_seed(seed),
    )
    return BatchLoader(start_workers, source, batches, skip_bad_images, augmentation is not None and ranks.together)


def _usable_processors() -> int:
    """Those this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches the whole process group, and so does a cluster's SIGTERM; only the main process should answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_ending: WeakSet[BaseProcess] = WeakSet()


def _ends_with_this_process(workers: Iterable[BaseProcess]) -> None:
    # Those that are still there at the end get SIGTERM, which they leave alone, and would be waited for for ever.
    _ending.update(workers)
    # Registered last it is called first, before torch and multiprocessing begin to wait.
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
    """Turn what torch raises when a process that reads images dies into one clear line.

    It may come at any moment, from a signal handler, and not only while a batch is waited for.

    Raises:
        DataError: such a process died.
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
