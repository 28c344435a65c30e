from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.data.augmentation.presets import find_preset
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import (
    detr_small,
    dino_small,
    finetune,
    paper_r50_two_stage,
    small,
    with_augmentation,
    with_image_size,
)
from deformable_detr.training.autoconfig import (
    fit_to_data,
    fitted_decay,
    fitted_epochs,
    fitted_interval,
    fitted_size,
    fitted_warmup,
    handed_classes,
)


def photos(sides_by_class, *, num_images=5, size_wh=(640, 480), crowd=False):
    """Images that all hold one square object for each class, of this side in pixels."""
    boxes = np.array([[10, 20, 10 + side, 20 + side] for side in sides_by_class], dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    samples = [
        Sample(
            path=Path(f"{number}.jpg"),
            size_wh=size_wh,
            boxes_xyxy=boxes,
            class_ids=np.arange(count),
            is_crowd=np.full(count, crowd),
            areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
            image_id=number,
            object_ids=tuple(range(count)),
        )
        for number in range(num_images)
    ]
    classes = tuple("abcdefgh"[: max(1, count)])
    return DetectionDataset(samples=samples, classes=classes, category_ids=tuple(range(len(classes))), source="photos")


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (5, 4), (205, 4), (247, 4), (1000, 4), (118_287, 32)])
def test_epochs_fit_the_number_of_images(images, batch):
    epochs = fitted_epochs(max(1, images // batch))
    assert 12 <= epochs <= 300
    steps = epochs * max(1, images // batch)
    if 12 < epochs < 300:
        assert 0.9 < steps / (fitted_epochs(2 * images // batch) * (2 * images // batch)) < 1.1


def test_warm_up_and_evaluations_follow_the_length_of_the_run():
    assert [fitted_warmup(steps) for steps in (1, 60, 3009, 1_000_000)] == [0, 2, 100, 1000]
    for epochs in (1, 29, 30, 31, 59, 300):
        interval = fitted_interval(epochs)
        assert epochs / interval <= 30
        assert interval == 1 or epochs / (interval - 1) > 30


@pytest.mark.parametrize("steps", [40, 200, 3009, 46_000])
def test_what_is_averaged_follows_the_length_of_the_run(steps):
    """A step counts half as much after a twentieth of the run: step by step, without the formula."""
    share = 1.0
    for _ in range(steps // 20):
        share *= fitted_decay(steps)
    assert share == pytest.approx(0.5, rel=0.01)


def test_averages_have_their_limits():
    assert fitted_decay(1) == fitted_decay(20) == 0.5
    assert fitted_decay(3009) == pytest.approx(0.9954, abs=5e-5)
    assert fitted_decay(46_200) < 0.9997
    assert [fitted_decay(steps) for steps in (46_210, 10**9)] == [0.9997, 0.9997]


def test_the_decay_of_averages_is_settled_last_and_said():
    data = photos([200, 30], num_images=205)
    config, reasons = fit_to_data(small().with_settings(ema_decay="auto"), data)
    assert config.optimizer.ema_decay == fitted_decay(59 * 51)
    assert "averaged weights with a decay of 0.9954, a half-life of 150 of 3009 steps" in reasons
    shorter, _ = fit_to_data(small().with_settings(ema_decay="auto", epochs=4, batch_size=41), data)
    assert shorter.optimizer.ema_decay == fitted_decay(4 * 5)
    assert fit_to_data(config, data) == (config, ())
    assert fit_to_data(small(), data).config.optimizer.ema_decay == 0.9997


def test_the_smallest_class_decides_on_the_size():
    assert fitted_size(photos([200, 30])) == (384, "b", 24.0)  # 30 pixels of 480 are 24 of 384
    assert fitted_size(photos([200, 36])) == (320, "b", 24.0)
    assert fitted_size(photos([37, 200]))[:2] == (320, "a")  # 311 pixels would do; a multiple of 32


def test_sizes_have_their_limits():
    assert fitted_size(photos([300])) == (256, "a", 160.0)
    short_side, _, pixels = fitted_size(photos([3]))
    assert (short_side, pixels) == (480, 3.0)  # the images have no more
    assert fitted_size(photos([3], size_wh=(1000, 2000))).short_side == 512
    assert fitted_size(photos([3], size_wh=(100, 90))).short_side == 256
    assert fitted_size(photos([])) == (256, "", 0.0)
    assert fitted_size(photos([20], crowd=True)) == (256, "", 0.0)


def test_a_class_with_a_few_objects_is_not_asked_unless_there_is_no_other():
    assert fitted_size(photos([30], num_images=4)).short_side == 384
    many, few = photos([200], num_images=6), photos([200, 30], num_images=4)
    mixed = replace(few, samples=[*many.samples, *few.samples])
    assert fitted_size(mixed) == (256, "a", pytest.approx(200 / 480 * 256))


def test_classes_that_a_mirror_would_exchange():
    classes = ("left turn", "turnRight", "RIGHT_SHOE", "bright", "leftover", "copyright", "hand-left", "cat")
    assert handed_classes(classes) == ("left turn", "turnRight", "RIGHT_SHOE", "hand-left")
    data = photos([100, 100])
    assert fit_to_data(small(), data).config.augmentation.hflip == 0.5
    config, reasons = fit_to_data(small(), replace(data, classes=("cat", "left shoe")))
    assert config.augmentation == replace(find_preset("paper").scaled(256), hflip=0.0)
    assert "augmentation paper without mirroring, which would make left shoe wrong" in reasons


def test_what_is_left_open_is_settled_and_explained():
    data = photos([200, 30], num_images=205)
    config, reasons = fit_to_data(small(), data)
    assert (config.model.num_classes, config.schedule.epochs, config.run.eval_every) == (2, 59, 2)
    assert (config.schedule.warmup_steps, config.preprocessing.short_side) == (100, 384)
    assert config.augmentation == find_preset("paper").scaled(384)
    assert fit_to_data(config, data) == (config, ())
    text = "\n".join(reasons)
    for number in (
        "59 epochs",
        "100 steps of warm-up",
        "every 2 epochs",
        "384 pixels",
        "class, b,",
        "augmentation paper",
    ):
        assert number in text


def crowded(count, *, crowds=0):
    """Ten images of one object of 30 pixels, and one of `count` objects and some crowd regions."""
    few = photos([30], num_images=10)
    boxes = np.tile(few.samples[0].boxes_xyxy, (count + crowds, 1))
    many = replace(
        few.samples[0],
        boxes_xyxy=boxes,
        class_ids=np.zeros(count + crowds, dtype=np.int64),
        is_crowd=np.arange(count + crowds) >= count,
        areas=np.full(count + crowds, 900.0),
        object_ids=tuple(range(count + crowds)),
    )
    return replace(few, samples=[*few.samples, many])


@pytest.mark.parametrize("recipe", [small, detr_small, dino_small])
def test_images_with_many_objects_get_more_queries(recipe):
    config, reasons = fit_to_data(recipe(), crowded(312, crowds=50))
    assert (config.model.num_queries, config.run.fit_queries) == (500, False)
    assert config.model == replace(recipe().model, num_classes=1, num_queries=500)
    assert reasons[0] == (
        "images hold up to 312 objects: 500 queries instead of 100 (in the decoder about 5 times the work; --set "
        "num_queries=100 keeps 100)"
    )
    assert fit_to_data(config, crowded(600)).config.model.num_queries == 500  # as config.json of a run has it
    assert fit_to_data(recipe(), crowded(66)).config.model.num_queries == 100
    assert fit_to_data(recipe(), crowded(2000)).config.model.num_queries == 1000


def test_a_number_of_queries_that_is_not_left_to_the_data_stays():
    data = crowded(312)
    assert fit_to_data(small().with_settings(num_queries=70), data).config.model.num_queries == 70
    for recipe in (TrainConfig, paper_r50_two_stage):
        config, reasons = fit_to_data(recipe().with_settings(batch_size=4), data)
        assert (config.model.num_queries, reasons) == (300, ())


def test_queries_of_weights_are_added_to_where_they_are_no_weights():
    data = crowded(312)
    two_stage = replace(finetune(), preprocessing=Preprocessing(), model=paper_r50_two_stage().model)
    assert fit_to_data(two_stage, data).config.model.num_queries == 500
    for learnt in (TrainConfig().model, dino_small().model, detr_small().model):
        config, reasons = fit_to_data(replace(two_stage, model=learnt), data)
        assert config.model.num_queries == learnt.num_queries
        assert not any("queries" in reason for reason in reasons)


def test_queries_that_training_multiplies_beyond_all_measure_are_not_added_to():
    config, reasons = fit_to_data(small().with_settings(query_groups=50), crowded(312))
    assert config.model.num_queries == 100
    assert "there are still 100 queries instead of 500: with query_groups=50" in reasons[0]


def test_small_objects_are_pointed_out():
    _, reasons = fit_to_data(small(), photos([200, 4], size_wh=(2000, 1000)))
    assert "--image-size 6000 would give them 24" in reasons[0]
    assert "--image-size" not in fit_to_data(small(), photos([200, 30])).reasons[0]


def test_what_is_set_stays():
    data = photos([200, 20], num_images=100)
    config = with_augmentation(with_image_size(small(), 160), "strong").with_settings(epochs=7, eval_every=3)
    config = config.with_settings(warmup_steps=5)
    fitted, reasons = fit_to_data(config, data)
    run = replace(config.run, fit_queries=False)
    assert fitted == replace(config, model=replace(config.model, num_classes=2), run=run)
    assert reasons == ()
    paper = fit_to_data(TrainConfig().with_settings(batch_size=4), data)
    assert paper.config.augmentation == TrainConfig().augmentation
    assert paper.reasons == ()


def test_an_augmentation_that_was_chosen_gets_the_size_that_the_objects_want():
    config, _ = fit_to_data(with_augmentation(small(), "strong"), photos([30]))
    assert config.augmentation == find_preset("strong").scaled(384)


def test_batches_are_no_larger_than_the_data():
    config, reasons = fit_to_data(small().with_settings(accumulate=4), photos([100], num_images=3))
    assert (config.run.batch_size, config.compute.accumulate, config.schedule.epochs) == (3, 3, 300)
    assert "batches of 3 instead of 4 images: the data set has no more" in reasons


def test_weights_keep_their_size():
    config = fit_to_data(with_image_size(finetune(), 300), photos([20])).config
    assert config.preprocessing.short_side == 300
