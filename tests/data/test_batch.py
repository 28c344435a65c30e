import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data import batch as b
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.transforms import Augmentation, Preprocessing, resized_wh, training_transform
from deformable_detr.errors import DataError
from deformable_detr.ranks import Ranks
from deformable_detr.types import Target

SIZES_WH = [(40, 25), (31, 47), (40, 25), (50, 22), (33, 33), (31, 47), (40, 25)]
PREPROCESSING = Preprocessing(short_side=21, max_side=40)
AUGMENTATION = Augmentation(
    short_sides=(16, 19, 21), max_side=40, crop_short_sides=(18, 24), crop_min=12, crop_max=20, vflip=0.5
)


@pytest.fixture
def dataset(tmp_path) -> DetectionDataset:
    """Image i is filled with the gray value 10 * i and has i objects, every second one a crowd."""
    samples = []
    for number, (width, height) in enumerate(SIZES_WH):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (width, height), (10 * number,) * 3).save(path)
        left = np.arange(number, dtype=np.float64)
        boxes = np.stack([left, left + 1, left + 8, left + 6], axis=1)
        samples.append(
            Sample(
                path=path,
                size_wh=(width, height),
                boxes_xyxy=boxes,
                class_ids=np.arange(number) % 3,
                is_crowd=np.arange(number) % 2 == 1,
                areas=np.full(number, 40.0),
                image_id=number + 1,
                object_ids=tuple(100 * number + i for i in range(number)),
            )
        )
    return DetectionDataset(classes=("a", "b", "c"), category_ids=(1, 2, 3), samples=samples, source="drawn")


def broken(dataset: DetectionDataset, *positions: int) -> DetectionDataset:
    for position in positions:
        dataset.samples[position].path.write_bytes(b"not an image")
    return dataset


def item(index: int, height: int, width: int) -> b.Item:
    target = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    return b.Item(torch.full((3, height, width), index + 1.0), target, index, (7 * width, 5 * height))


def equal(a, b_) -> bool:
    return (
        torch.equal(a.images, b_.images)
        and torch.equal(a.padding_mask, b_.padding_mask)
        and a.sample_indices == b_.sample_indices
        and all(
            torch.equal(x.labels, y.labels) and torch.equal(x.boxes, y.boxes)
            for x, y in zip(a.targets, b_.targets, strict=True)
        )
    )


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


def test_items_are_transformed_samples_without_crowds(dataset):
    source = b.make_loader(dataset, PREPROCESSING, batch_size=2).source
    got = source[3]
    width, height = resized_wh((50, 22), 21, 40)
    assert got.image.shape == (3, height, width)
    expected = [(30 / 255 - m) / s for m, s in zip(PREPROCESSING.mean, PREPROCESSING.std, strict=True)]
    torch.testing.assert_close(got.image.mean((1, 2)), torch.tensor(expected))
    assert got.target.labels.tolist() == [0, 2]
    torch.testing.assert_close(
        got.target.boxes,
        torch.tensor([[4 / 50, 3.5 / 22, 8 / 50, 5 / 22], [6 / 50, 5.5 / 22, 8 / 50, 5 / 22]]),
    )
    assert (got.sample_index, got.original_wh) == (3, (50, 22))


def test_an_image_without_objects(dataset):
    target = b.make_loader(dataset, PREPROCESSING, batch_size=2).source[0].target
    assert target.labels.shape == (0,)
    assert target.boxes.shape == (0, 4)


def test_evaluation_visits_every_image_once_without_padding(dataset):
    loader = b.make_loader(dataset, PREPROCESSING, batch_size=2)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    assert sorted(i for batch in batches for i in batch.sample_indices) == list(range(7))
    assert not any(batch.padding_mask.any() for batch in batches)
    assert [batch.sample_indices for batch in batches if len(batch.targets) == 2] == [[0, 2], [1, 5]]
    areas = [batch.images[0, 0].numel() for batch in batches]
    assert areas == sorted(areas, reverse=True)
    for batch in batches:
        assert batch.original_sizes_wh == [SIZES_WH[i] for i in batch.sample_indices]


def test_equal_size_batches():
    sizes = [(3, 5), (5, 3), (3, 5), (9, 1), (3, 5), (3, 5)]
    assert b.equal_size_batches(sizes, 3) == [[0, 2, 4], [5], [1], [3]]


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [tuple(b.epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4
    assert tuple(b.epoch_order(50, 1, 0)) == orders[2]


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "drop_last", "sizes"),
    [(7, 3, True, [3, 3]), (7, 3, False, [3, 3, 1]), (6, 3, True, [3, 3]), (2, 5, True, [2]), (1, 1, True, [1])],
)
def test_the_last_batch(num_samples, batch_size, drop_last, sizes):
    batches = b.ShuffledBatches(num_samples, batch_size, seed=3, drop_last=drop_last)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_training_does_not_depend_on_the_number_of_workers(dataset):
    def run(num_workers: int) -> list:
        loader = b.make_loader(
            dataset, PREPROCESSING, batch_size=3, augmentation=AUGMENTATION, seed=11, num_workers=num_workers
        )
        epochs = []
        for epoch in (4, 5):
            loader.set_epoch(epoch)
            epochs.append(list(loader))
        return epochs

    alone, shared = run(0), run(2)
    for epoch in range(2):
        assert len(alone[epoch]) == 2
        assert all(equal(x, y) for x, y in zip(alone[epoch], shared[epoch], strict=True))
    assert not equal(alone[0][0], alone[1][0])


def test_an_epoch_can_be_repeated_and_does_not_need_those_before(dataset):
    loader = b.make_loader(dataset, PREPROCESSING, batch_size=3, augmentation=AUGMENTATION, seed=2)
    loader.set_epoch(9)
    first = list(loader)
    loader.set_epoch(1)
    list(loader)
    loader.set_epoch(9)
    assert all(equal(x, y) for x, y in zip(first, loader, strict=True))


def test_an_image_varies_from_epoch_to_epoch_and_with_the_seed(dataset):
    def boxes(seed: int, epoch: int):
        source = b.TransformedDataset(dataset, training_transform(AUGMENTATION), PREPROCESSING, seed=seed)
        source.set_epoch(epoch)
        return source[6].target.boxes.tolist()

    assert boxes(0, 0) == boxes(0, 0)
    assert boxes(0, 0) != boxes(0, 1)
    assert boxes(0, 0) != boxes(1, 0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_one_clear_line(dataset, num_workers):
    loader = b.make_loader(broken(dataset, 4), PREPROCESSING, batch_size=2, num_workers=num_workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(dataset.samples[4].path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    Image.new("RGB", SIZES_WH[4]).save(dataset.samples[4].path)
    assert len(list(loader)) == 5
    loader.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_images_are_skipped_and_counted(dataset, num_workers):
    # 1 and 5 fill a batch of their own size; 0 leaves a partner behind.
    loader = b.make_loader(
        broken(dataset, 1, 5, 0), PREPROCESSING, batch_size=2, num_workers=num_workers, skip_bad_images=True
    )
    for _ in range(2):
        batches = list(loader)
        assert sorted(i for batch in batches for i in batch.sample_indices) == [2, 3, 4, 6]
    assert sorted(loader.skipped) == [0, 1, 5]
    assert all(str(dataset.samples[i].path) in message for i, message in loader.skipped.items())


def test_cached_images_are_not_read_again_and_give_the_same_items(dataset):
    def source(cache_bytes: int) -> b.TransformedDataset:
        return b.TransformedDataset(dataset, training_transform(AUGMENTATION), PREPROCESSING, cache_bytes=cache_bytes)

    uncached, cached = source(0), source(10**7)
    for i in range(7):
        cached[i]
    cached.set_epoch(3)
    uncached.set_epoch(3)
    expected = [uncached[i] for i in range(7)]
    broken(dataset, *range(7))
    for i in range(7):
        assert torch.equal(cached[i].image, expected[i].image)
        assert torch.equal(cached[i].target.boxes, expected[i].target.boxes)
    assert isinstance(uncached[0], b.BadImage)


def test_cache_stays_within_its_bound(dataset):
    source = b.make_loader(dataset, PREPROCESSING, batch_size=1, cache_bytes=3 * 40 * 25 + 10).source
    for i in range(7):
        source[i]
    assert list(source._cache) == [0]


def test_no_images_is_an_error(dataset):
    with pytest.raises(DataError, match="drawn: there are no images"):
        b.make_loader(replace(dataset, samples=[]), PREPROCESSING, batch_size=1)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(0, 0), (1, -1)])
def test_impossible_counts(dataset, batch_size, num_workers):
    with pytest.raises(ValueError, match="at least 1 and 0"):
        b.make_loader(dataset, PREPROCESSING, batch_size=batch_size, num_workers=num_workers)


def test_a_data_set_can_be_sent_to_workers_that_do_not_inherit_it(dataset):
    source = b.make_loader(dataset, PREPROCESSING, batch_size=2, augmentation=AUGMENTATION, seed=3).source
    assert torch.equal(pickle.loads(pickle.dumps(source))[5].image, source[5].image)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_every_batch_in_its_order(size):
    alone = b.ShuffledBatches(17, 5, seed=3, drop_last=True)
    shares = [b.ShuffledBatches(17, 5, seed=3, drop_last=True, ranks=Ranks(rank, size)) for rank in range(size)]
    assert [len(one) for one in shares] == [len(alone)] * size
    for whole, *parts in zip(alone, *shares, strict=True):
        assert [index for part in parts for index in part] == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_parts_are_padded_as_on_their_own(count):
    sizes = [(5, 9), (7, 4), (3, 8), (6, 6)]
    items = [
        b.Item(
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
