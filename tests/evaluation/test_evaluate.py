import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import CheckpointError, ConfigError, DataError
from deformable_detr.core.progress import Silence
from deformable_detr.data.dataset import align_classes
from deformable_detr.data.open import open_dataset
from deformable_detr.evaluation.analysis import analyse
from deformable_detr.evaluation.coco_metrics import coco_metrics
from deformable_detr.evaluation.evaluate import counted_detections, evaluate, limits
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.tta import TTA, Flip, flipped_back
from deformable_detr.models import build


@pytest.fixture
def dataset(scenes):
    return open_dataset(scenes, split="train")


@pytest.fixture
def knowing(detector, dataset, monkeypatch):
    """A detector that finds exactly what is there, whatever order it is asked in."""
    answers = {}
    for sample in dataset.samples:
        boxes = torch.from_numpy(sample.boxes_xyxy).float()
        answers.setdefault(sample.size_wh, []).append(
            Detections(boxes, torch.ones(len(boxes)), torch.from_numpy(sample.class_ids))
        )
    assert all(len(same_size) == 1 for same_size in answers.values()), "sizes must tell the scenes apart"
    monkeypatch.setattr(
        Detector, "detect", lambda self, images, sizes_wh, **_: [answers[size_wh][0] for size_wh in sizes_wh]
    )
    return detector


def test_finding_everything_is_an_ap_of_1(knowing, dataset):
    report = evaluate(knowing, dataset)
    assert report.metrics.ap == pytest.approx(1)
    assert len(report.dataset) == len(report.detections) == 8
    assert (report.skipped, report.num_skipped) == ({}, 0)
    assert report.seconds > 0


def test_what_cannot_be_found_is_said(detector, dataset):
    assert limits(detector, dataset, 100) == []
    many = replace(dataset.samples[0])
    count = 40
    boxes = np.stack([np.arange(count), np.zeros(count), np.arange(count) + 5.0, np.full(count, 9.0)], axis=1)
    many = replace(
        many,
        boxes_xyxy=boxes,
        class_ids=np.zeros(count, dtype=np.int64),
        is_crowd=np.zeros(count, dtype=bool),
        areas=np.full(count, 45.0),
        object_ids=tuple(range(count)),
    )
    crowded = replace(dataset, samples=[many])
    queries, detections = limits(detector, crowded, 30)
    assert queries == (
        "1 of 1 images has more objects than the 11 queries of this detector, up to 40: 29 of 40 objects can be "
        "neither learnt nor found; evaluate a detector with more of them, or cut the images into tiles"
    )
    assert "the 30 detections of an image that the evaluation counts" in detections
    assert "no detector can find more than 75.0 % of the objects" in detections
    assert "--max-detections 100" in detections


def test_more_detections_may_count(detector, dataset):
    few, more, usual = (evaluate(detector, dataset, max_detections=count) for count in (11, 30, 100))
    assert {len(one.scores) for one in few.detections} == {11}
    assert {len(one.scores) for one in more.detections} == {30}
    # Whatever counts besides, COCO's numbers are COCO's.
    assert few.metrics == more.metrics == usual.metrics
    assert usual.metrics.max_detections == 100
    assert usual.metrics_at_n is None
    for report, count in ((few, 11), (more, 30)):
        assert report.metrics_at_n == coco_metrics(report.detections, dataset, max_detections=count)
        assert (report.max_detections, report.metrics_at_n.max_detections) == (count, count)
        assert report.value("ap") == report.metrics.ap
        assert report.value("ap@queries") == report.metrics_at_n.ap
        assert report.value("disc/ar@queries") == report.metrics_at_n.per_class["disc"].ar
    assert usual.value("ap50@queries") == usual.metrics.ap50
    with pytest.raises(ValueError, match="max_detections is 10; it must be at least 11"):
        evaluate(detector, dataset, max_detections=10)


def crowd_of(dataset, count):
    """The first image with `count` objects of 8 x 8 pixels."""
    corners = np.array([(x, y) for x in range(0, 80, 4) for y in range(0, 50, 4)][:count], dtype=np.float64)
    sample = replace(
        dataset.samples[0],
        boxes_xyxy=np.concatenate([corners, corners + 8], axis=1),
        class_ids=np.zeros(count, dtype=np.int64),
        is_crowd=np.zeros(count, dtype=bool),
        areas=np.full(count, 64.0),
        object_ids=tuple(range(count)),
    )
    return replace(dataset, samples=[sample])


def test_a_crowd_is_found_where_coco_stops_at_100(detector, dataset, monkeypatch):
    """With everything found, COCO's recall is 100 of 150, and that of 150 detections is 1."""
    crowd = crowd_of(dataset, 150)
    boxes = torch.from_numpy(crowd.samples[0].boxes_xyxy).float()
    everything = Detections(boxes, torch.linspace(0.9, 0.5, 150), torch.zeros(150, dtype=torch.int64))
    monkeypatch.setattr(Detector, "detect", lambda *_, max_detections, **__: [everything[:max_detections]])
    report = evaluate(detector, crowd, max_detections=200)
    assert (report.metrics.ar_100, report.metrics_at_n.ar_100) == (pytest.approx(2 / 3), pytest.approx(1))
    assert (report.metrics.ap < 0.7, report.metrics_at_n.ap) == (True, pytest.approx(1))
    assert list(report.metrics_at_n.twelve())[8] == "ar_200"
    assert list(report.metrics.twelve())[8] == "ar_100"
    assert len(report.detections[0]) == 150
    # The page on a run counts what the evaluation counted.
    analysis = analyse(report)
    assert len(analysis.found.scores) == 150
    assert analysis.truth.found_at.min() > 0
    usual = analyse(evaluate(detector, crowd))
    assert (usual.truth.found_at > 0).sum() == 100


def test_how_many_detections_a_training_counts(tiny_config, dataset):
    def counted(num_queries, data, best_by="ap"):
        model = build(replace(tiny_config.model, num_queries=num_queries), load_backbone_weights=False)
        return counted_detections(model, data, best_by)

    crowd, full = crowd_of(dataset, 101), crowd_of(dataset, 100)
    assert [counted(number, crowd) for number in (11, 100, 150)] == [100, 100, 150]
    assert counted(150, full) == counted(150, dataset) == 100
    assert counted(150, dataset, "cat/ap@queries") == 150
    assert counted(11, dataset, "ap@queries") == 100
    unknown = nn.Linear(1, 1)
    assert counted_detections(unknown, crowd) == 101
    assert counted_detections(unknown, dataset, "ap@queries") == 100


def test_the_order_of_classes_does_not_matter(knowing, dataset):
    turned = align_classes(dataset, ("star", "square", "disc"), (9, 8, 7))
    report = evaluate(knowing, turned)
    assert report.metrics.ap == pytest.approx(1)
    assert report.dataset.classes == knowing.classes


def test_the_same_as_predicting_image_by_image(detector, dataset):
    report = evaluate(detector, dataset, batch_size=3)
    found = detector.predict([sample.path for sample in dataset.samples], threshold=0.0)
    for one, other in zip(report.detections, found, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
    assert report.metrics.twelve() == pytest.approx(coco_metrics(found, dataset).twelve(), abs=1e-6)


def test_data_are_a_path_or_open(detector, scenes, tmp_path):
    expected = evaluate(detector, open_dataset(scenes, split="val"))
    said = []
    reporter = Silence()
    reporter.say = said.append
    for given in (scenes, str(scenes)):
        report = evaluate(detector, given, reporter=reporter)
        assert report.metrics == expected.metrics
        assert report.dataset.source == expected.dataset.source
    assert said == [f"data: {expected.dataset.source}, 3 images"] * 2
    assert len(evaluate(detector, scenes, split="train", format="coco").dataset) == 8
    with pytest.raises(DataError, match="Looked for YOLO"):
        evaluate(detector, scenes, format="yolo")
    with pytest.raises(DataError, match="no split 'test'"):
        evaluate(detector, scenes, split="test")


@pytest.mark.parametrize("given", [{"split": "val"}, {"format": "coco"}])
def test_a_data_set_that_is_open_has_been_chosen(detector, dataset, given):
    with pytest.raises(ConfigError, match="but the data set is already open; give its path instead"):
        evaluate(detector, dataset, **given)


def test_missing_images_of_a_path_are_skipped_and_counted(detector, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    (tmp_path / "data" / "val" / "scene_00001.jpg").unlink()
    with pytest.raises(DataError, match="scene_00001"):
        evaluate(detector, tmp_path / "data")
    report = evaluate(detector, tmp_path / "data", skip_bad_images=True)
    assert (len(report.dataset), report.num_skipped) == (2, 1)


def test_other_classes_are_an_error_with_both_counts(detector, dataset):
    other = replace(dataset, classes=("disc", "square", "star", "cube"), category_ids=(1, 2, 3, 4))
    assert evaluate(detector, other.subset([0])).dataset.classes == detector.classes  # none is labelled cube
    first = other.samples[0]
    other = replace(other, samples=[replace(first, class_ids=first.class_ids * 0 + 3)])
    with pytest.raises(CheckpointError) as caught:
        evaluate(detector, other)
    assert "the checkpoint has 3 classes (disc, square, star)" in str(caught.value)
    assert "the data set has 4 classes (disc, square, star, cube)" in str(caught.value)


def test_damaged_images_are_an_error_or_skipped_and_listed(detector, dataset, tmp_path):
    bad = tmp_path / "cut.jpg"
    bad.write_bytes(dataset.samples[2].path.read_bytes()[:900])
    samples = list(dataset.samples)
    samples[2] = replace(samples[2], path=bad)
    dataset = replace(dataset, samples=samples)
    with pytest.raises(DataError, match=r"cut\.jpg"):
        evaluate(detector, dataset)
    report = evaluate(detector, dataset, skip_bad_images=True)
    assert list(report.skipped) == [str(bad)]
    assert (len(report.dataset), report.num_skipped) == (7, 1)
    with pytest.raises(DataError, match="none of the 1 images could be read"):
        evaluate(detector, dataset.subset([2]), skip_bad_images=True)


def test_a_network_from_the_middle_of_a_training_is_judged_as_it_will_be_used(detector, dataset):
    expected = evaluate(detector, dataset).detections
    detector.model.train()  # where dropout drops
    judged = evaluate(detector, dataset).detections
    assert all(torch.equal(one.scores, other.scores) for one, other in zip(expected, judged, strict=True))


def test_views_are_merged_as_in_prediction(detector, dataset):
    """Three sizes, each mirrored: as `predict` sees every picture alone, whatever the batch."""
    tta = TTA(scales=(0.8, 1.0, 1.2), iou=0.6)
    reports = [evaluate(detector, dataset, tta=tta, batch_size=size) for size in (1, 4)]
    assert reports[0].metrics == reports[1].metrics
    exact = detector.around(detector.model, as_it_is=True)
    for sample, one in zip(dataset.samples, reports[0].detections, strict=True):
        alone = exact.predict(sample.path, threshold=0.0, tta=tta)
        torch.testing.assert_close(one.scores, alone.scores, rtol=0, atol=1e-5)
        assert len(one) <= 100


def test_views_of_a_detector_that_knows_are_merged_to_what_is_there(knowing, dataset, monkeypatch):
    know = Detector.detect

    def detect(self, images, sizes_wh, **rest):
        """What it knows; of the mirrored pictures, which have the odd turns, mirrored."""
        turns.append(len(images))
        found = know(self, images, sizes_wh, **rest)
        if len(turns) % 2:
            return found
        return [flipped_back(one, size, Flip(True, False)) for one, size in zip(found, sizes_wh, strict=True)]

    turns = []
    monkeypatch.setattr(Detector, "detect", detect)
    assert evaluate(knowing, dataset, tta=True).metrics.ap == pytest.approx(1)
    assert sum(turns) == 6 * len(dataset)


@pytest.mark.parametrize(
    ("tta", "max_detections", "expected"),
    [(False, 11, 100), (False, 150, 150), (True, 11, 130), (True, 100, 130), (True, 150, 150)],
)
def test_each_view_is_asked_for_what_metrics_and_merging_need(
    knowing, dataset, monkeypatch, tta, max_detections, expected
):
    know, asked = Detector.detect, set()

    def detect(self, images, sizes_wh, *, max_detections):
        asked.add(max_detections)
        return know(self, images, sizes_wh)

    monkeypatch.setattr(Detector, "detect", detect)
    monkeypatch.setattr("deformable_detr.evaluation.evaluate.MOST_PER_VIEW", 130)
    evaluate(knowing, dataset.subset([0, 1]), tta=tta, max_detections=max_detections)
    assert asked == {expected}


def test_a_picture_that_cannot_be_read_is_left_out_of_all_views(detector, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    bad = tmp_path / "data" / "val" / "scene_00001.jpg"
    bad.write_bytes(bad.read_bytes()[:700])
    report = evaluate(detector, tmp_path / "data", tta=TTA(hflip=False), skip_bad_images=True)
    assert (len(report.dataset), report.num_skipped) == (2, 1)
