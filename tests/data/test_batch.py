import pytest
import torch

from deformable_detr.core.types import Target
from deformable_detr.data import batch as b
from deformable_detr.data.torch_dataset import Item


def item(index: int, height: int, width: int) -> Item:
    target = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    return Item(torch.full((3, height, width), index + 1.0), target, index, (7 * width, 5 * height))


def test_padding_is_zero_right_and_bottom_and_marked():
    batch = b.collate([item(0, 4, 9), item(1, 6, 5), item(2, 3, 3)])
    assert batch.images.shape == (3, 3, 6, 9)
    for position, (height, width) in enumerate([(4, 9), (6, 5), (3, 3)]):
        assert (batch.images[position, :, :height, :width] == position + 1).all()
        assert batch.images[position].sum() == 3 * height * width * (position + 1)
        assert not batch.padding_mask[position, :height, :width].any()
        assert batch.padding_mask[position].sum() == 6 * 9 - height * width
    assert batch.sample_indices == [0, 1, 2]
    assert batch.original_sizes_wh == [(63, 20), (35, 30), (21, 15)]


def test_a_batch_takes_four_open_files_on_its_way_between_processes_however_many_images_it_has():
    items = [
        Item(torch.zeros(3, 2, 4), Target(torch.arange(n), torch.full((n, 4), n / 9)), n, (4, 2)) for n in (3, 0, 5, 1)
    ]
    batch = b.collate(items)
    for item, target in zip(items, batch.targets, strict=True):
        assert torch.equal(target.labels, item.target.labels)
        assert torch.equal(target.boxes, item.target.boxes)
    parts = [tensor for target in batch.targets for tensor in (target.labels, target.boxes)]
    tensors = [batch.images, batch.padding_mask, *parts]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 4


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_parts_are_padded_as_on_their_own(count):
    sizes = [(5, 9), (7, 4), (3, 8), (6, 6)]
    items = [
        Item(
            torch.rand(3, height, width),
            Target(torch.zeros(n, dtype=torch.int64), torch.rand(n, 4)),
            n,
            (width, height),
        )
        for n, (height, width) in enumerate(sizes)
    ]
    parts = b.split(b.collate(items), count)
    assert [index for part in parts for index in part.sample_indices] == [0, 1, 2, 3]
    assert len(parts) == min(count, 4)
    for part in parts:
        alone = b.collate([items[index] for index in part.sample_indices])
        assert torch.equal(part.images, alone.images)
        assert torch.equal(part.padding_mask, alone.padding_mask)
        assert part.original_sizes_wh == alone.original_sizes_wh
        assert all(torch.equal(one.boxes, two.boxes) for one, two in zip(part.targets, alone.targets, strict=True))


def test_the_seed_of_the_noise_stays_with_its_image():
    items = [
        Item(torch.zeros(3, 2, 4), Target(torch.arange(n), torch.full((n, 4), 0.5), noise_seed=70 + n), n, (4, 2))
        for n in (3, 0, 5)
    ]
    batch = b.collate(items)
    assert [target.noise_seed for target in batch.targets] == [73, 70, 75]
    assert [part.targets[0].noise_seed for part in b.split(batch, 3)] == [73, 70, 75]
