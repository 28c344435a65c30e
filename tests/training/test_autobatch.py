import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from deformable_detr.core import memory
from deformable_detr.core.errors import ConfigError, TrainingError
from deformable_detr.data.loader import make_loader
from deformable_detr.data.splits import open_training_data
from deformable_detr.runs.recipes import with_augmentation, with_image_size
from deformable_detr.training import autobatch
from deformable_detr.training.autobatch import fitting_batch, largest, step_memory
from deformable_detr.training.autoconfig import fit_to_data

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell")


@pytest.fixture
def train_set(scenes):
    return open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False).train


@pytest.mark.parametrize("fixed", [0, 30])
@pytest.mark.parametrize("each", [1, 7, 10])
@pytest.mark.parametrize("most", [1, 2, 5, 64])
def test_the_largest_number_that_fits(fixed, each, most):
    def needed(images):
        return fixed + each * images

    fits = [images for images in range(1, most + 1) if needed(images) <= 100]
    assert largest(needed, 100, most) == (max(fits), needed(max(fits)))


def test_where_memory_grows_faster_than_a_line():
    def needed(images):
        return 10 * images**2

    count, taken = largest(needed, 500, 64)
    assert (taken, count <= 7) == (needed(count), True)
    assert count >= 5


def test_nothing_fits():
    assert largest(lambda images: 1000 * images, 999, 8) == (1, 1000)
    assert largest(lambda images: sys.maxsize if images > 1 else 10, 100, 8) == (1, 10)


@pytest.mark.slow
def test_a_step_of_more_images_takes_more(tiny_config, train_set):
    config = replace(tiny_config, model=replace(tiny_config.model, num_classes=3))
    few, many = step_memory(config, train_set, CPU, 2), step_memory(config, train_set, CPU, 20)
    assert few < many
    # What was used before and is free again would hide what a step needs.
    used = [torch.ones(1000) for _ in range(200_000)]
    del used
    assert step_memory(config, train_set, CPU, 20) > many / 2
    in_parts = step_memory(config.with_settings(batch_size=20, accumulate=10), train_set, CPU, 20)
    assert in_parts < many / 2


def test_the_largest_image_is_that_of_the_augmentation(tiny_config, train_set):
    landscape = replace(train_set, samples=[replace(sample, size_wh=(640, 480)) for sample in train_set.samples])
    augmentation = replace(tiny_config.augmentation, crop_probability=0.0).scaled(320)
    assert autobatch._largest_wh(augmentation, landscape) == (426, 320)
    turned = replace(augmentation, rotate90=0.5)
    assert autobatch._largest_wh(turned, landscape) == (426, 426)
    cropped = replace(augmentation, crop_probability=0.5)
    assert autobatch._largest_wh(cropped, landscape) == (502, 502)
    windows = replace(augmentation, iou_crop=0.3)
    assert autobatch._largest_wh(windows, landscape) == (533, 533)  # as long as it may be
    most = max(len(sample.class_ids) for sample in train_set.samples)
    mixed = replace(augmentation, mosaic=0.5, mixup=0.1)
    assert (autobatch._most_objects(augmentation, train_set), autobatch._most_objects(mixed, train_set)) == (
        most,
        8 * most,
    )
    crowds = [replace(sample, is_crowd=np.arange(len(sample.class_ids)) > 0) for sample in train_set.samples]
    assert autobatch._most_objects(mixed, replace(train_set, samples=crowds)) == 8  # crowd regions are not learnt from


@pytest.mark.parametrize("preset", ["paper", "light", "strong", "aerial"])
def test_no_batch_is_larger_than_the_largest(tiny_config, train_set, preset):
    config = with_augmentation(tiny_config, preset)
    width, height = autobatch._largest_wh(config.augmentation, train_set)
    loader = make_loader(train_set, config.preprocessing, batch_size=8, augmentation=config.augmentation)
    for epoch in range(12):
        loader.set_epoch(epoch)
        for batch in loader:
            # Rounding of extreme aspect ratios may miss the longest side by a pixel or two.
            assert batch.images.shape[2] <= 1.02 * height
            assert batch.images.shape[3] <= 1.02 * width
            assert max(len(one.labels) for one in batch.targets) <= autobatch._most_objects(
                config.augmentation, train_set
            )


def test_a_step_that_can_never_fit_is_refused_before_the_work(tiny_config, train_set, monkeypatch):
    autobatch.check_step_fits(tiny_config, train_set, CPU)
    huge = with_image_size(tiny_config, 12_000).with_settings(batch_size=64)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    with pytest.raises(ConfigError, match=r"64 training images of \d+ x \d+ pixels need more than .* 0\.9 GiB"):
        autobatch.check_step_fits(huge, train_set, CPU)
    with pytest.raises(ConfigError, match=r"^\d+ training images .* --set accumulate=N"):
        autobatch.check_step_fits(huge.with_settings(accumulate=2), train_set, CPU)


def test_a_system_without_a_mark_of_the_most_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(autobatch, "_PEAK", tmp_path / "gone" / "clear_refs")
    with pytest.raises(ConfigError, match=r"memory cannot be measured here .*clear_refs.*--batch-size"):
        autobatch._begin_peak(CPU)


def test_memory_is_measured_before_the_decay_of_averages_is_known(tiny_config, train_set):
    config = replace(tiny_config, model=replace(tiny_config.model, num_classes=3))
    assert step_memory(config.with_settings(ema_decay="auto"), train_set, CPU, 2) > 0


@pytest.mark.slow
def test_a_cpu_takes_the_batch_that_the_learning_rate_is_for_or_less(tiny_config, train_set, monkeypatch):
    config = tiny_config.with_settings(batch_size="auto", base_batch_size=6)
    fitted, reasons = fit_to_data(config, train_set)
    assert fitted.run.batch_size == 6
    assert reasons[0].startswith("batches of 6 images, which take ")
    monkeypatch.setattr(autobatch, "step_memory", lambda config, train, device, images, model: 100 * images)
    monkeypatch.setattr(autobatch, "free_memory", lambda device: 500)  # of which 300 may be used
    assert fitting_batch(config, train_set, CPU).batch_size == 3
    monkeypatch.setattr(autobatch, "free_memory", lambda device: 50)
    with pytest.raises(TrainingError, match=r"not even one image fits.*activation_checkpointing"):
        fitting_batch(config, train_set, CPU)


def test_a_gpu_takes_more_but_leaves_steps_in_an_epoch(tiny_config, train_set, monkeypatch):
    monkeypatch.setattr(autobatch, "step_memory", lambda config, train, device, images, model: 10 * images)
    monkeypatch.setattr(autobatch, "free_memory", lambda device: 1000)
    cuda = torch.device("cuda")
    many = replace(train_set, samples=train_set.samples * 1000)
    assert fitting_batch(tiny_config, many, cuda).batch_size == 64
    assert fitting_batch(tiny_config, replace(train_set, samples=train_set.samples[:4] * 20), cuda).batch_size == 5
    monkeypatch.setattr(autobatch, "free_memory", lambda device: 200)
    assert fitting_batch(tiny_config, many, cuda).batch_size == 17


def test_a_system_that_does_not_tell(tiny_config, train_set, monkeypatch, tmp_path):
    monkeypatch.setattr(autobatch, "_STATUS", tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"memory cannot be measured .* --batch-size"):
        fitting_batch(tiny_config, train_set, CPU)
