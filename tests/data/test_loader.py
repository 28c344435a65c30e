import multiprocessing
from dataclasses import replace

import pytest
import torch
from PIL import Image

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import DataError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.loader import (
    BadImageError,
    BatchLoader,
    ShuffledBatches,
    epoch_order,
    equal_size_batches,
    make_loader,
)
from deformable_detr.data.preprocessing import Preprocessing
from tests.data.drawn import SIZES_WH, broken

PREPROCESSING = Preprocessing(short_side=21, max_side=40)


AUGMENTATION = Augmentation(
    short_sides=(16, 19, 21), max_side=40, crop_short_sides=(18, 24), crop_min=12, crop_max=20, vflip=0.5
)


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


def test_evaluation_visits_every_image_once_without_padding(dataset):
    loader = make_loader(dataset, PREPROCESSING, batch_size=2)
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
    assert equal_size_batches(sizes, 3) == [[0, 2, 4], [5], [1], [3]]


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4
    assert tuple(epoch_order(50, 1, 0)) == orders[2]


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "drop_last", "sizes"),
    [(7, 3, True, [3, 3]), (7, 3, False, [3, 3, 1]), (6, 3, True, [3, 3]), (2, 5, True, [2]), (1, 1, True, [1])],
)
def test_the_last_batch(num_samples, batch_size, drop_last, sizes):
    batches = ShuffledBatches(num_samples, batch_size, seed=3, drop_last=drop_last)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_training_does_not_depend_on_the_number_of_workers(dataset):
    def run(num_workers: int) -> list:
        loader = make_loader(
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
    loader = make_loader(dataset, PREPROCESSING, batch_size=3, augmentation=AUGMENTATION, seed=2)
    loader.set_epoch(9)
    first = list(loader)
    loader.set_epoch(1)
    list(loader)
    loader.set_epoch(9)
    assert all(equal(x, y) for x, y in zip(first, loader, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_one_clear_line(dataset, num_workers):
    loader = make_loader(broken(dataset, 4), PREPROCESSING, batch_size=2, num_workers=num_workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(dataset.samples[4].path) in str(caught.value)
    assert isinstance(caught.value, BadImageError)
    assert "`ddetr check-data` lists all such images; --skip-bad-images" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    Image.new("RGB", SIZES_WH[4]).save(dataset.samples[4].path)
    assert len(list(loader)) == 5
    loader.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_images_are_skipped_and_counted(dataset, num_workers):
    # 1 and 5 fill a batch of their own size; 0 leaves a partner behind.
    loader = make_loader(
        broken(dataset, 1, 5, 0), PREPROCESSING, batch_size=2, num_workers=num_workers, skip_bad_images=True
    )
    for _ in range(2):
        batches = list(loader)
        assert sorted(i for batch in batches for i in batch.sample_indices) == [2, 3, 4, 6]
    assert sorted(loader.skipped) == [0, 1, 5]
    assert all(str(dataset.samples[i].path) in message for i, message in loader.skipped.items())


def test_cache_stays_within_its_bound(dataset):
    source = make_loader(dataset, PREPROCESSING, batch_size=1, cache_bytes=3 * 40 * 25 + 10).source
    for i in range(7):
        source[i]
    assert list(source._cache) == [0]


def test_no_images_is_an_error(dataset):
    with pytest.raises(DataError, match="drawn: there are no images"):
        make_loader(replace(dataset, samples=[]), PREPROCESSING, batch_size=1)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(0, 0), (1, -1)])
def test_impossible_counts(dataset, batch_size, num_workers):
    with pytest.raises(ValueError, match="at least 1 and 0"):
        make_loader(dataset, PREPROCESSING, batch_size=batch_size, num_workers=num_workers)


MIXING = replace(
    AUGMENTATION, mosaic=0.6, mixup=0.5, zoom_out=0.3, iou_crop=0.3, scale_jitter=(0.5, 1.5), mixing_off=0.5
)


def test_mixing_does_not_depend_on_the_number_of_workers_or_the_cache(dataset):
    def run(num_workers: int, cache_bytes: int) -> list:
        loader = make_loader(
            dataset,
            PREPROCESSING,
            batch_size=2,
            augmentation=MIXING,
            seed=5,
            num_workers=num_workers,
            cache_bytes=cache_bytes,
            epochs=4,
        )
        batches = []
        for epoch in range(4):
            loader.set_epoch(epoch)
            batches += list(loader)
        return batches

    alone = run(0, 0)
    for num_workers, cache_bytes in ((0, 10**7), (2, 0), (2, 9000)):
        assert all(equal(x, y) for x, y in zip(alone, run(num_workers, cache_bytes), strict=True))


def test_the_last_epochs_are_not_mixed(dataset):
    def num_objects(epochs: int | None, epoch: int) -> int:
        mosaics = replace(AUGMENTATION, mosaic=1.0, crop_probability=0.0, mixing_off=0.34)
        source = make_loader(dataset, PREPROCESSING, batch_size=1, augmentation=mosaics, epochs=epochs).source
        source.set_epoch(epoch)
        return len(source[0].target.labels)  # an image without objects, but for those of others

    assert any(num_objects(6, epoch) for epoch in range(4))
    assert not any(num_objects(6, epoch) for epoch in (4, 5))
    assert any(num_objects(None, epoch) for epoch in (4, 5, 6, 7))
    assert make_loader(dataset, PREPROCESSING, batch_size=1, augmentation=MIXING, epochs=1).source.mixing_epochs == 1


VARIED = replace(MIXING, color_jitter=0.7, photometric=0.5, min_visible=0.2, until=0.5)
# As VARIED is after it, written out.
PLAIN = Augmentation(
    short_sides=(16, 19, 21), max_side=40, crop_probability=0.0, vflip=0.5, min_visible=0.2, crop_short_sides=(18, 24)
)


def batches_of(dataset, augmentation, epochs, *, resumed_at=(0, 0), num_workers=0, ranks=ALONE):
    """Batches of each epoch, from an epoch and a batch in it on."""
    loader = make_loader(
        dataset,
        PREPROCESSING,
        batch_size=2,
        augmentation=augmentation,
        seed=5,
        num_workers=num_workers,
        epochs=epochs,
        ranks=ranks,
    )
    first, start = resumed_at
    batches = []
    for epoch in range(first, epochs):
        loader.set_epoch(epoch, start=start if epoch == first else 0)
        batches.append(list(loader))
    return batches


def same(one, other) -> bool:
    return len(one) == len(other) and all(equal(a, b_) for a, b_ in zip(one, other, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_last_epochs_are_only_flipped_and_resized(dataset, num_workers):
    varied = batches_of(dataset, VARIED, 4, num_workers=num_workers)
    plain, whole = batches_of(dataset, PLAIN, 4), batches_of(dataset, replace(VARIED, until=1.0), 4)
    assert [same(*pair) for pair in zip(varied, plain, strict=True)] == [False, False, True, True]
    # Before, nothing has changed.
    assert [same(*pair) for pair in zip(varied, whole, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("resumed_at", [(1, 2), (2, 0), (3, 1)])
def test_the_end_of_variation_is_the_same_in_a_training_that_goes_on(dataset, resumed_at, num_workers):
    whole = batches_of(dataset, VARIED, 4)
    rest = batches_of(dataset, VARIED, 4, resumed_at=resumed_at, num_workers=num_workers)
    epoch, start = resumed_at
    assert same(rest[0], whole[epoch][start:])
    assert all(same(*pair) for pair in zip(rest[1:], whole[epoch + 1 :], strict=True))


def test_the_end_of_variation_is_the_same_in_several_processes(dataset):
    whole = batches_of(dataset, VARIED, 2)
    shares = [batches_of(dataset, VARIED, 2, ranks=Ranks(rank, 2)) for rank in range(2)]
    for epoch in range(2):
        for batch, *parts in zip(whole[epoch], *(share[epoch] for share in shares), strict=True):
            assert [index for part in parts for index in part.sample_indices] == batch.sample_indices
            for target, own in zip(batch.targets, [one for part in parts for one in part.targets], strict=True):
                assert torch.equal(target.boxes, own.boxes)
                assert target.noise_seed == own.noise_seed


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_in_a_mosaic_stops_or_is_skipped_like_any_other(dataset, num_workers):
    def loader(skip_bad_images: bool) -> BatchLoader:
        return make_loader(
            broken(dataset.subset([1, 2, 3]), 2),
            PREPROCESSING,
            batch_size=1,
            augmentation=replace(AUGMENTATION, mosaic=1.0),
            num_workers=num_workers,
            skip_bad_images=skip_bad_images,
        )

    with pytest.raises(DataError, match=r"3\.png"):
        list(loader(False))
    skipping = loader(True)
    batches = list(skipping)
    assert sorted(batch.sample_indices[0] for batch in batches) == [0, 1]
    assert list(skipping.skipped) == [2]


def test_workers_share_the_cache(dataset):
    def bound(num_workers: int) -> int:
        loader = make_loader(dataset, PREPROCESSING, batch_size=1, num_workers=num_workers, cache_bytes=1000)
        return loader.source._cache_bytes_left

    assert (bound(0), bound(1)) == (1000, 1000)
    assert bound(2) == 500


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_every_batch_in_its_order(size):
    alone = ShuffledBatches(17, 5, seed=3, drop_last=True)
    shares = [ShuffledBatches(17, 5, seed=3, drop_last=True, ranks=Ranks(rank, size)) for rank in range(size)]
    assert [len(one) for one in shares] == [len(alone)] * size
    for whole, *parts in zip(alone, *shares, strict=True):
        assert [index for part in parts for index in part] == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
