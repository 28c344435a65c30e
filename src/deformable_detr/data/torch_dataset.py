"""Samples of a data set as the network gets them: read, augmented and normalised, with equal results in any process."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from deformable_detr.core.errors import DataError
from deformable_detr.core.types import Target
from deformable_detr.data.augmentation.geometry import Example
from deformable_detr.data.augmentation.pipeline import Transform, to_target
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.images import read_image
from deformable_detr.data.preprocessing import Preprocessing, normalise
from deformable_detr.data.rng import uniform_integer

_NOISE = 1


class BadImage(NamedTuple):
    """Image that could not be read, as a value: an exception would lose its one clear line between processes."""

    sample_index: int
    """Position in the data set."""
    message: str
    """Sentence that names the file and says what is wrong."""


class Item(NamedTuple):
    """Image ready for the network, with its target, its position and its original size."""

    image: Float[Tensor, "3 height width"]
    """Normalised image."""
    target: Target
    """Ground truth, in 0..1 of the image as it is now."""
    sample_index: int
    """Position in the data set; for an image made of several, position of the first."""
    original_wh: tuple[int, int]
    """Width and height in pixels before any transform."""
    bad_images: tuple[BadImage, ...] = ()
    """Images that should have been mixed in and could not be read; others took their place."""


def seed_of(*numbers: int) -> int:
    """Seed of 64 well mixed bits that depends on every number and on their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class TransformedDataset(Dataset[Item | BadImage]):
    """Data set of samples read, transformed and normalised; crowd regions are left out of the targets.

    Random numbers depend on seed, epoch and position alone: not on the number of workers or the order of access.
    An image that cannot be read comes back as a `BadImage`; the caller decides whether that is an error.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        transform: Transform,
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        cache_bytes: int = 0,
        mixing_epochs: int | None = None,
        last_transform: Transform | None = None,
        last_from: int | None = None,
    ) -> None:
        """Data set that has read nothing yet.

        Args:
            dataset: samples to read.
            transform: transform of each image and its boxes.
            preprocessing: mean and standard deviation to normalise with.
            seed: decides all random numbers, together with epoch and position.
            cache_bytes: largest size of the decoded images kept in main memory, by each process; 0 keeps none.
            mixing_epochs: number of epochs, from the first, that may mix images; None is all.
            last_transform: transform in place of `transform` in the last epochs.
            last_from: first epoch, from 0, of those; None is that there are none.
        """
        self.dataset = dataset
        self.transform = transform
        self.preprocessing = preprocessing
        self.seed = seed
        self.mixing_epochs = mixing_epochs
        self.last_transform = last_transform
        self.last_from = last_from
        self._cache: dict[int, Image.Image] = {}
        self._cache_bytes_left = cache_bytes
        # Shared memory, so that workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the random numbers from now on, also in workers that run already."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item | BadImage:
        epoch = int(self._epoch.item())
        try:
            example = self._example(index)
        except DataError as error:
            return BadImage(index, str(error))
        # Positions count from 1 here: 0 is the seed of the epoch's order.
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, index + 1))
        bad_images: list[BadImage] = []
        mixes = self.mixing_epochs is None or epoch < self.mixing_epochs
        transform = self._transform_in(epoch)
        example = transform(example, generator, partial(self._draw, bad_images, index) if mixes else None)
        image, target = normalise(example.image, self.preprocessing), to_target(example)
        # Noise has a seed of its own, so that it changes no other random number.
        target = target._replace(noise_seed=seed_of(self.seed, epoch, index + 1, _NOISE))
        return Item(image, target, index, self.dataset.samples[index].size_wh, tuple(bad_images))

    def _transform_in(self, epoch: int) -> Transform:
        is_last = self.last_from is not None and epoch >= self.last_from
        return self.last_transform if is_last and self.last_transform is not None else self.transform

    def _example(self, index: int) -> Example:
        sample = self.dataset.samples[index]
        image = self._image(index)
        single = ~sample.is_crowd
        return Example(
            image,
            torch.from_numpy(sample.boxes_xyxy[single].astype(np.float32)),
            torch.from_numpy(sample.class_ids[single].astype(np.int64)),
        )

    def _draw(self, bad_images: list[BadImage], index: int, generator: torch.Generator) -> Example:
        """Random sample, or the next one that can be read; `index` is known to be readable."""
        position = uniform_integer(0, len(self) - 1, generator)
        while position != index:
            try:
                return self._example(position)
            except DataError as error:
                bad_images.append(BadImage(position, str(error)))
                position = (position + 1) % len(self)
        return self._example(index)

    def _image(self, index: int) -> Image.Image:
        if index in self._cache:
            return self._cache[index]
        image = read_image(self.dataset.samples[index])
        num_bytes = 3 * image.width * image.height
        if num_bytes <= self._cache_bytes_left:
            self._cache[index] = image
            self._cache_bytes_left -= num_bytes
        return image
