import pickle

import pytest
import torch

from deformable_detr.data.augmentation.pipeline import Example, evaluation_transform, resized_wh, training_transform
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.data.torch_dataset import BadImage, Item, TransformedDataset, seed_of
from tests.data.drawn import broken

PREPROCESSING = Preprocessing(short_side=21, max_side=40)
AUGMENTATION = Augmentation(
    short_sides=(16, 19, 21), max_side=40, crop_short_sides=(18, 24), crop_min=12, crop_max=20, vflip=0.5
)


def plain(dataset) -> TransformedDataset:
    return TransformedDataset(dataset, evaluation_transform(PREPROCESSING), PREPROCESSING)


def test_items_are_transformed_samples_without_crowds(dataset):
    source = plain(dataset)
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
    target = plain(dataset)[0].target
    assert target.labels.shape == (0,)
    assert target.boxes.shape == (0, 4)


def test_an_image_varies_from_epoch_to_epoch_and_with_the_seed(dataset):
    def boxes(seed: int, epoch: int):
        source = TransformedDataset(dataset, training_transform(AUGMENTATION), PREPROCESSING, seed=seed)
        source.set_epoch(epoch)
        return source[6].target.boxes.tolist()

    assert boxes(0, 0) == boxes(0, 0)
    assert boxes(0, 0) != boxes(0, 1)
    assert boxes(0, 0) != boxes(1, 0)


def test_cached_images_are_not_read_again_and_give_the_same_items(dataset):
    def source(cache_bytes: int) -> TransformedDataset:
        return TransformedDataset(dataset, training_transform(AUGMENTATION), PREPROCESSING, cache_bytes=cache_bytes)

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
    assert isinstance(uncached[0], BadImage)


def test_a_data_set_can_be_sent_to_workers_that_do_not_inherit_it(dataset):
    source = TransformedDataset(dataset, training_transform(AUGMENTATION), PREPROCESSING, seed=3)
    assert torch.equal(pickle.loads(pickle.dumps(source))[5].image, source[5].image)


def test_seeds_depend_on_every_number_and_their_order():
    assert len({seed_of(0, 0, 1), seed_of(0, 1, 0), seed_of(1, 0, 0), seed_of(0, 0), seed_of(0, 0, 2)}) == 5


class Recorder:
    """A transform that draws so many others and notes them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.drawn: list[Example] | None = None

    def __call__(self, example: Example, generator: torch.Generator, draw=None) -> Example:
        self.drawn = None if draw is None else [draw(generator) for _ in range(self.count)]
        return example


def test_others_are_drawn_from_the_whole_data_set_without_crowds(dataset):
    recorder = Recorder(60)
    TransformedDataset(dataset, recorder, PREPROCESSING)[0]
    grays = {example.image.getpixel((0, 0))[0] // 10 for example in recorder.drawn}
    assert grays == set(range(7))
    for example in recorder.drawn:
        assert len(example.labels) == (example.image.getpixel((0, 0))[0] // 10 + 1) // 2


def test_nothing_is_drawn_in_the_last_epochs(dataset):
    recorder = Recorder(1)
    source = TransformedDataset(dataset, recorder, PREPROCESSING, mixing_epochs=2)
    for epoch, mixes in ((0, True), (1, True), (2, False), (9, False)):
        source.set_epoch(epoch)
        source[0]
        assert (recorder.drawn is not None) == mixes


@pytest.mark.parametrize("bad", [(1,), (1, 2, 3, 4, 5, 6)])
def test_others_that_cannot_be_read_are_replaced_and_reported(dataset, bad):
    recorder = Recorder(40)
    item = TransformedDataset(broken(dataset, *bad), recorder, PREPROCESSING)[0]
    assert isinstance(item, Item)
    assert {one.sample_index for one in item.bad_images} == set(bad)
    assert len(recorder.drawn) == 40
    assert all(str(dataset.samples[one.sample_index].path) in one.message for one in item.bad_images)


def test_the_noise_of_an_image_has_a_seed_by_run_epoch_and_image(dataset):
    def seed(run: int, epoch: int, index: int):
        source = TransformedDataset(dataset, training_transform(AUGMENTATION), PREPROCESSING, seed=run)
        source.set_epoch(epoch)
        return source[index].target.noise_seed

    assert seed(0, 0, 6) == seed(0, 0, 6)
    assert len({seed(0, 0, 6), seed(1, 0, 6), seed(0, 1, 6), seed(0, 0, 3)}) == 4
    assert seed(0, 0, 6) != seed_of(0, 0, 7)  # the augmentation's own numbers are others
