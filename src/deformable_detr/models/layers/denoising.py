"""Contrastive denoising: extra training queries from noisy copies of the objects (arXiv 2203.03605, section 3.2).

A query of a positive copy has to find its object again, without matching; one of a negative copy, with more noise, has
to predict that there is nothing. There are no such queries outside of training.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from deformable_detr.core.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from deformable_detr.core.types import Denoised, DetectorOutput, Predictions, Queries, Target
from deformable_detr.models.layers.box_decoder import REFERENCE_EPS
from deformable_detr.models.layers.branches import output_of_branches

_EMPTY = 0.5
"""Coordinate of the boxes of slots without a copy: logit 0."""


@runtime_checkable
class BoxQueries(Protocol):
    """Query source whose queries are boxes, so that it can make queries at any boxes."""

    def at_boxes(self, content: Tensor, reference: Tensor) -> Queries:
        """Queries of this content, (batch, queries, dim), at these boxes cxcywh, (batch, queries, 4)."""
        ...


class Noise(NamedTuple):
    """Random numbers for the noisy copies of one image's objects; copies are positive and negative in turn."""

    objects: Int[Tensor, "objects"]
    """Positions in the target of the objects that are copied, ascending."""
    redraw: Float[Tensor, "copies objects"]
    """Numbers in 0..1: the label of a copy is replaced where it is below half of `label_noise`."""
    labels: Int[Tensor, "copies objects"]
    """Class ids that replace labels."""
    signs: Float[Tensor, "copies objects 4"]
    """Direction in which each edge (left, top, right, bottom) moves: -1 or 1."""
    shifts: Float[Tensor, "copies objects 4"]
    """Numbers in 0..1 for the distance that each edge moves, before 1 is added for negative copies."""


DrawNoise = Callable[[Target, int, int, int], Noise]
"""Function that draws noise for a target: number of copies, most objects to copy, number of classes."""


def draw_noise(target: Target, num_copies: int, most_objects: int, num_classes: int) -> Noise:
    """Random noise for the objects of one image, from the target's own seed or else from the global generator.

    Args:
        target: ground truth of the image.
        num_copies: number of copies of each object, positive and negative ones together.
        most_objects: largest number of objects to copy; of more, some are drawn.
        num_classes: number of classes.
    """
    generator = None if target.noise_seed is None else torch.Generator().manual_seed(target.noise_seed)
    objects = torch.arange(len(target.labels))
    if len(objects) > most_objects:
        objects = torch.randperm(len(objects), generator=generator)[:most_objects].sort().values
    shape = (num_copies, len(objects))
    return Noise(
        objects,
        redraw=torch.rand(shape, generator=generator),
        labels=torch.randint(num_classes, shape, generator=generator),
        signs=torch.randint(2, (*shape, 4), generator=generator) * 2.0 - 1.0,
        shifts=torch.rand((*shape, 4), generator=generator),
    )


class NoisyQueries(NamedTuple):
    """Queries of noisy copies before those of an image, and what their predictions are compared with."""

    queries: Queries
    """Noisy queries in slots, then all other queries, with the mask that keeps them apart."""
    objects: Int[Tensor, "batch slots"]
    """Position in the target of the object of each positive slot; -1 for negative and empty slots. On the CPU."""
    num_groups: int
    """Number of groups."""

    def output(self, layers: list[Predictions], proposals: Predictions | None) -> DetectorOutput:
        """Output of a network, with the predictions for noisy copies apart.

        Args:
            layers: predictions of each decoder layer for all queries.
            proposals: predictions of the first stage.
        """
        slots = self.objects.shape[1]
        noisy = [Predictions(layer.logits[:, :slots], layer.boxes[:, :slots]) for layer in layers]
        others = [Predictions(layer.logits[:, slots:], layer.boxes[:, slots:]) for layer in layers]
        output = output_of_branches(others, proposals, self.queries.branches)
        return output._replace(denoising=Denoised(noisy, self.objects, self.num_groups))


class Denoising(nn.Module):
    """Maker of contrastive denoising queries, with the label table that gives them their content.

    Objects are copied in groups, each with a positive and a negative copy of every object; as many groups as
    `num_queries` allows for the image with the most objects, and at least one. With more objects than `num_queries`,
    each step copies so many of them, drawn anew.

    Args:
        num_queries: number of positive copies for one image, over all groups, at least 1.
        dim: channels of the queries.
        num_classes: number of classes.
        box_noise: largest shift of an edge of a positive copy, in halves of the box's width or height; edges of
            negative copies move by once to twice as much.
        label_noise: twice the probability that the label of a copy is replaced by one drawn from all classes.
        draw: function that draws the noise of one image, on the CPU.
    """

    def __init__(
        self,
        num_queries: int,
        dim: int,
        num_classes: int,
        *,
        box_noise: float,
        label_noise: float,
        draw: DrawNoise = draw_noise,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.num_classes = num_classes
        self.box_noise, self.label_noise = box_noise, label_noise
        self.draw = draw
        # Published weights have one row more than classes; no query uses it.
        self.label_embed = nn.Embedding(num_classes + 1, dim)

    def forward(self, targets: list[Target], queries: Queries, source: BoxQueries) -> NoisyQueries:
        """Noisy queries for a batch, in front of the other queries.

        Args:
            targets: ground truth of each image.
            queries: the other queries.
            source: where they come from; it gives noisy queries their positions in the same way.
        """
        most = max(max(len(one.labels), one.most_objects or 0) for one in targets)
        most_copied = min(most, self.num_queries)
        num_groups = max(1, self.num_queries // most_copied) if most_copied else 1
        noises = [self.draw(one, 2 * num_groups, most_copied, self.num_classes) for one in targets]
        labels, boxes, objects = self._copies(targets, noises, num_groups, most_copied)
        filled = (objects >= 0).to(labels.device)
        # A slot that is empty in one image, and full in another, has no content.
        content = self.label_embed(labels) * filled[..., None]
        noisy = source.at_boxes(content, boxes.where(filled[..., None], _EMPTY))
        joined = _joined(noisy, queries, group_size=2 * most_copied)
        positive = torch.arange(2 * num_groups)[:, None].expand(-1, most_copied).flatten() % 2 == 0
        return NoisyQueries(joined, objects.where(positive, -1), num_groups)

    @torch.no_grad()
    def _copies(
        self, targets: list[Target], noises: list[Noise], num_groups: int, most_copied: int
    ) -> tuple[Int[Tensor, "batch slots"], Float[Tensor, "batch slots 4"], Int[Tensor, "batch slots"]]:
        """Labels and boxes of all slots, and, on the CPU, the position of the object behind each; -1 where none is."""
        shape = (len(targets), 2 * num_groups, most_copied)
        device = targets[0].boxes.device
        # On the CPU first, and from there in one copy each.
        objects = torch.full(shape, -1)
        redraw, new = torch.ones(shape), torch.zeros(shape, dtype=torch.int64)
        signs, shifts = torch.zeros(*shape, 4), torch.zeros(*shape, 4)
        for image, noise in enumerate(noises):
            here = (image, slice(None), slice(len(noise.objects)))
            objects[here], redraw[here], new[here] = noise.objects, noise.redraw, noise.labels
            signs[here], shifts[here] = noise.signs, noise.shifts
        shifts[:, 1::2] += 1  # negative copies
        labels, corners = torch.zeros(shape, dtype=torch.int64, device=device), torch.zeros(*shape, 4, device=device)
        halves = torch.zeros(*shape, 4, device=device)
        for image, (target, noise) in enumerate(zip(targets, noises, strict=True)):
            here, own = (image, slice(None), slice(len(noise.objects))), noise.objects.to(device)
            boxes = target.boxes[own].float()
            labels[here], corners[here] = target.labels[own], cxcywh_to_xyxy(boxes)
            halves[here] = boxes[:, 2:].repeat(1, 2) / 2
        labels = new.to(device).where((redraw < self.label_noise / 2).to(device), labels)
        noisy = (corners + (signs * shifts).to(device) * halves * self.box_noise).clamp(0, 1)
        # Edges of a negative copy may cross: its width is then negative, and becomes the smallest that there is.
        boxes = inverse_sigmoid(xyxy_to_cxcywh(noisy), REFERENCE_EPS).sigmoid()
        return labels.flatten(1), boxes.flatten(1, 2), objects.flatten(1)


def _joined(noisy: Queries, queries: Queries, *, group_size: int) -> Queries:
    """Noisy queries in front of the others, with the mask of both."""
    position = None
    if noisy.position is not None and queries.position is not None:
        position = torch.cat([noisy.position, queries.position], dim=1)
    slots, others = noisy.content.shape[1], queries.content.shape[1]
    mask = denoising_mask(slots, others, group_size, noisy.content.device)
    if queries.attention_mask is not None:
        # Of the other queries, slots see what the first one sees: those that answer, as without branches.
        seen = torch.cat([queries.attention_mask[:1].expand(slots, -1), queries.attention_mask])
        mask = mask | nn.functional.pad(seen, (slots, 0))
    return Queries(
        torch.cat([noisy.content, queries.content], dim=1),
        position,
        torch.cat([noisy.reference, queries.reference], dim=1),
        queries.branches,
        mask,
    )


def denoising_mask(
    num_slots: int, num_queries: int, group_size: int, device: torch.device
) -> Bool[Tensor, "queries queries"]:
    """Mask of the self-attention with denoising: True where a query (row) cannot see another (column).

    Slots come first. They see their own group and all other queries; those see no slot, so that nothing of the objects
    gets to them.

    Args:
        num_slots: number of slots, a multiple of `group_size`.
        num_queries: number of other queries.
        group_size: number of slots of a group.
        device: device of the mask.
    """
    slot = torch.arange(num_slots + num_queries, device=device)
    is_slot = slot < num_slots
    group = torch.where(is_slot, slot // max(group_size, 1), -1)
    return is_slot & (group != group[:, None])
