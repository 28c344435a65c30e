"""Noisy copies against plain loops, what the network may see of them, and where their randomness comes from."""

import pytest
import torch

from deformable_detr.core.types import Branches, Queries, Target
from deformable_detr.models.layers.branches import mask_of
from deformable_detr.models.layers.denoising import Denoising, Noise, denoising_mask, draw_noise

DIM = 6


class Boxes:
    """A source whose queries have no position of their own."""

    def at_boxes(self, content, reference):
        return Queries(content, None, reference)


def targets_of(*counts, seeds=None, num_classes=5, most=None):
    generator = torch.Generator().manual_seed(sum(counts))
    return [
        Target(
            torch.randint(num_classes, (count,), generator=generator),
            torch.rand(count, 4, generator=generator) * 0.4 + 0.1,
            None if seeds is None else seeds[index],
            most,
        )
        for index, count in enumerate(counts)
    ]


def others(batch, num_queries=7):
    return Queries(torch.randn(batch, num_queries, DIM), None, torch.rand(batch, num_queries, 4))


def make(num_queries=10, num_classes=5, box_noise=1.0, label_noise=0.5, **options):
    return Denoising(num_queries, DIM, num_classes, box_noise=box_noise, label_noise=label_noise, **options)


def by_loops(denoising, targets, noises, most):
    """Slots in plain words: content, box and object of each, for every image."""
    groups = max(1, denoising.num_queries // most) if most else 1
    slots = []
    for target, noise in zip(targets, noises, strict=True):
        own = [(torch.zeros(DIM), torch.full((4,), 0.5), -1) for _ in range(2 * groups * most)]
        for copy in range(2 * groups):
            for place, index in enumerate(noise.objects.tolist()):
                label = int(target.labels[index])
                if noise.redraw[copy, place] < denoising.label_noise / 2:
                    label = int(noise.labels[copy, place])
                x, y, w, h = target.boxes[index].tolist()
                edges = []
                for edge, (start, half) in enumerate([(x - w / 2, w), (y - h / 2, h), (x + w / 2, w), (y + h / 2, h)]):
                    far = float(noise.shifts[copy, place, edge]) + (copy % 2)
                    moved = start + float(noise.signs[copy, place, edge]) * far * half / 2 * denoising.box_noise
                    edges.append(min(max(moved, 0.0), 1.0))
                left, top, right, bottom = edges
                box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
                # Through logits that keep a thousandth from both ends.
                odds = [max(min(max(one, 0), 1), 1e-3) / max(1 - min(max(one, 0), 1), 1e-3) for one in box]
                box = torch.tensor([one / (1 + one) for one in odds])
                content = denoising.label_embed.weight[label].detach()
                own[copy * most + place] = (content, box, index if copy % 2 == 0 else -1)
        slots.append(own)
    return slots


@pytest.mark.parametrize("counts", [(3, 1, 0), (2, 2), (7,), (10,)])
def test_slots_are_those_of_plain_loops(counts):
    kept = []

    def draw(*arguments):
        kept.append(draw_noise(*arguments))
        return kept[-1]

    denoising = make(draw=draw)
    targets = targets_of(*counts, seeds=range(len(counts)))
    noisy = denoising(targets, others(len(counts)), Boxes())
    most = max(counts)
    assert noisy.num_groups == max(1, 10 // most)
    for image, slots in enumerate(by_loops(denoising, targets, kept, most)):
        assert len(slots) == noisy.objects.shape[1] == 2 * most * noisy.num_groups
        for slot, (content, box, index) in enumerate(slots):
            torch.testing.assert_close(noisy.queries.content[image, slot].detach(), content)
            torch.testing.assert_close(noisy.queries.reference[image, slot], box, atol=1e-6, rtol=0)
            assert int(noisy.objects[image, slot]) == index


def test_crossed_edges_give_the_smallest_box():
    """As in the published code: a negative copy whose edges cross has no negative width."""
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0]).expand(2, 1, 4)
    noise = Noise(
        torch.arange(1), torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64), signs, torch.full((2, 1, 4), 0.9)
    )
    denoising = make(num_queries=1, draw=lambda *_: noise)
    target = Target(torch.tensor([2]), torch.tensor([[0.5, 0.4, 0.2, 0.1]]))
    positive, negative = denoising([target], others(1), Boxes()).queries.reference[0, :2]
    torch.testing.assert_close(positive, torch.tensor([0.5, 0.4, 0.02, 0.01]), atol=1e-6, rtol=0)
    torch.testing.assert_close(negative, torch.tensor([0.5, 0.4, 1e-3 / 1.001, 1e-3 / 1.001]), atol=1e-6, rtol=0)


def test_the_mask_by_its_meaning():
    slots, queries, group = 12, 5, 4
    mask = denoising_mask(slots, queries, group, torch.device("cpu"))
    for row in range(slots + queries):
        for column in range(slots + queries):
            seen = column >= slots or (row < slots and row // group == column // group)
            assert bool(mask[row, column]) != seen, (row, column)


def test_the_mask_beside_branches_by_its_meaning():
    """Slots see their group and the first branch; no branch sees a slot or another branch."""
    branches = Branches((4, 2, 3), 1)
    queries = others(1, 9)._replace(branches=branches, attention_mask=mask_of(branches, torch.device("cpu")))
    joined = make(num_queries=5)(targets_of(2, seeds=(0,)), queries, Boxes()).queries
    assert joined.branches == branches
    of_query = [0] * 4 + [1] * 2 + [2] * 3
    slots, group = 8, 4
    assert joined.attention_mask.shape == (17, 17)
    for row in range(17):
        for column in range(17):
            if column < slots:
                seen = row < slots and row // group == column // group
            else:
                seen = of_query[column - slots] == (0 if row < slots else of_query[row - slots])
            assert bool(joined.attention_mask[row, column]) != seen, (row, column)


def test_noise_belongs_to_the_image_and_not_to_its_neighbours():
    """Alone, in another order, or with a crowded neighbour of the same step: the same copies."""
    targets = targets_of(3, 1, 2, seeds=(5, 6, 7), most=4)
    denoising = make(num_queries=9)
    together = denoising(targets, others(3), Boxes())
    for image in range(3):
        alone = denoising([targets[image]], others(1), Boxes())
        assert alone.num_groups == together.num_groups == 2
        assert torch.equal(alone.queries.reference[0, :16], together.queries.reference[image, :16])
        assert torch.equal(alone.queries.content[0, :16], together.queries.content[image, :16])
        assert torch.equal(alone.objects[0], together.objects[image])
    before = torch.get_rng_state()
    denoising(targets, others(3), Boxes())
    torch.set_rng_state(before)
    others(3)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    denoising(targets, others(3), Boxes())
    assert torch.equal(torch.get_rng_state(), after)  # nothing of it comes from the global generator


def test_without_a_seed_the_global_generator_decides():
    denoising, targets = make(), targets_of(3)

    def draw(seed):
        torch.manual_seed(seed)
        return denoising(targets, others(1), Boxes()).queries.reference

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1)[:, :18], draw(2)[:, :18])


def test_of_more_objects_than_slots_some_are_drawn():
    denoising = make(num_queries=4)
    chosen = set()
    for seed in range(20):
        [target] = targets_of(9, seeds=(seed,))
        noisy = denoising([target], others(1), Boxes())
        assert (noisy.num_groups, noisy.objects.shape) == (1, (1, 8))
        own = noisy.objects[0, :4].tolist()
        assert own == sorted(set(own))
        assert (noisy.objects[0, 4:] == -1).all()
        chosen |= set(own)
    assert chosen == set(range(9))


@pytest.mark.parametrize("most", [None, 0, 3])
def test_without_objects_the_label_table_still_has_a_gradient(most):
    """Several processes exchange gradients of every parameter, whatever their images hold."""
    denoising = make()
    noisy = denoising(targets_of(0, 0, most=most), others(2), Boxes())
    assert noisy.objects.shape[1] == 2 * (most or 0) * (3 if most else 1)
    assert (noisy.objects == -1).all()
    noisy.queries.content.sum().backward()
    assert torch.equal(denoising.label_embed.weight.grad, torch.zeros(6, DIM))


def test_one_class_keeps_its_labels():
    denoising = make(num_classes=1, label_noise=2.0)
    noisy = denoising(targets_of(2, num_classes=1), others(1), Boxes())
    slots = noisy.objects.shape[1]
    assert torch.equal(noisy.queries.content[0, :slots], denoising.label_embed.weight[:1].expand(slots, -1))


def test_a_quarter_of_the_labels_is_drawn_anew():
    noise = draw_noise(targets_of(50, seeds=(3,))[0], 200, 50, 7)
    assert (noise.redraw < 0.25).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert noise.labels.unique().tolist() == list(range(7))
    assert noise.signs.unique().tolist() == [-1, 1]
    assert noise.signs.mean().item() == pytest.approx(0, abs=0.03)
    assert (noise.shifts.min().item(), noise.shifts.max().item()) == pytest.approx((0, 1), abs=1e-3)
