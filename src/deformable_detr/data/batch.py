"""Padded batches: collating images of different sizes, and splitting a batch again."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from deformable_detr.core.types import Batch, Target
from deformable_detr.data.torch_dataset import Item


def collate(items: Sequence[Item]) -> Batch:
    """Batch of images, each padded with zeros at the right and bottom to the largest height and width.

    Padding follows normalisation, so that it has the mean colour.
    """
    height = max(item.image.shape[1] for item in items)
    width = max(item.image.shape[2] for item in items)
    images = torch.zeros(len(items), 3, height, width)
    padding_mask = torch.ones(len(items), height, width, dtype=torch.bool)
    for position, item in enumerate(items):
        _, item_height, item_width = item.image.shape
        images[position, :, :item_height, :item_width] = item.image
        padding_mask[position, :item_height, :item_width] = False
    # Parts of one tensor each: between processes a tensor takes an open file, of which there may be a thousand.
    counts = [len(item.target.labels) for item in items]
    labels = torch.cat([item.target.labels for item in items]).split(counts)
    boxes = torch.cat([item.target.boxes for item in items]).split(counts)
    return Batch(
        images=images,
        padding_mask=padding_mask,
        targets=[
            item.target._replace(labels=own_labels, boxes=own_boxes)
            for item, own_labels, own_boxes in zip(items, labels, boxes, strict=True)
        ],
        sample_indices=[item.sample_index for item in items],
        original_sizes_wh=[item.original_wh for item in items],
    )


def split(batch: Batch, count: int) -> list[Batch]:
    """Parts of a batch, each of consecutive images and padded as if collated alone.

    Args:
        batch: the whole.
        count: number of parts; a batch of fewer images gives as many as it has images.
    """
    num_images = len(batch.images)
    count = min(count, num_images)
    if count == 1:
        return [batch]
    bounds = [num_images * part // count for part in range(count + 1)]
    return [_cut(batch, slice(start, end)) for start, end in pairwise(bounds)]


def _cut(batch: Batch, where: slice) -> Batch:
    image = ~batch.padding_mask[where]
    height, width = int(image.any(2).sum(1).max()), int(image.any(1).sum(1).max())
    return Batch(
        images=batch.images[where, :, :height, :width],
        padding_mask=batch.padding_mask[where, :height, :width],
        targets=batch.targets[where],
        sample_indices=batch.sample_indices[where],
        original_sizes_wh=batch.original_sizes_wh[where],
    )


def stand_in() -> Batch:
    """Batch of one image without objects, for a process that has no image left in a step of all processes."""
    nothing = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    return Batch(torch.zeros(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool), [nothing], [], [])
