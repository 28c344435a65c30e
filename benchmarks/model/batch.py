"""Fixed images and objects for inference and training."""

from typing import NamedTuple

import torch
from torch import Tensor

from deformable_detr.core.types import Target


class Data(NamedTuple):
    """A padded batch with its objects."""

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]


def make(size_hw: tuple[int, int], batch: int, objects: int, classes: int, device: str = "cpu") -> Data:
    """Noise, the last image of several a fifth lower than the others, as in nearly every real batch."""
    generator = torch.Generator().manual_seed(0)
    height, width = size_hw
    images = torch.randn(batch, 3, height, width, generator=generator)
    padding_mask = torch.zeros(batch, height, width, dtype=torch.bool)
    if batch > 1:
        padding_mask[-1, int(0.8 * height) :] = True
        images[-1, :, int(0.8 * height) :] = 0
    targets = []
    for _ in range(batch):
        size = 0.05 + 0.3 * torch.rand(objects, 2, generator=generator)
        centre = size / 2 + (1 - size) * torch.rand(objects, 2, generator=generator)
        labels = torch.randint(classes, (objects,), generator=generator)
        targets.append(Target(labels.to(device), torch.cat([centre, size], dim=-1).to(device)))
    return Data(images.to(device), padding_mask.to(device), targets)
