"""Held against counting in plain words, against AP computed anew, and against cases done by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from deformable_detr.core.detections import Detections
from deformable_detr.evaluation.analysis import THRESHOLDS, analyse
from deformable_detr.evaluation.box_outcomes import fault
from deformable_detr.evaluation.coco_metrics import coco_metrics
from deformable_detr.evaluation.evaluate import EvaluationReport
from tests.report.cases import dataset, detections, random_case, sample


def evaluation(found, data):
    return EvaluationReport(
        metrics=coco_metrics(found, data), detections=found, dataset=data, skipped={}, num_skipped=0, seconds=0.1
    )


def by_hand():
    """Each kind of error once; of a cat (0), two dogs (1), no emu (2), and a crowd of cats."""
    first = sample([[0, 0, 20, 10], [50, 0, 70, 10]], [0, 1], image_id=4)
    second = sample([[0, 0, 100, 100], [100, 100, 160, 190]], [1, 0], is_crowd=[0, 1], image_id=2, first_id=3)
    found = [
        detections(
            [[0, 0, 20, 10], [0, 0, 20, 9], [50, 0, 70, 10], [0, 0, 20, 3], [200, 100, 220, 130]],
            [0.9, 0.85, 0.8, 0.75, 0.7],
            [0, 0, 0, 0, 1],
        ),
        detections([[110, 110, 150, 180], [0, 0, 100, 90]], [0.95, 0.02], [0, 1]),
    ]
    return found, dataset(first, second)


def test_everything_by_hand():
    analysis = analyse(evaluation(*by_hand()))
    cat, dog, emu = analysis.classes
    assert [one.num_objects for one in analysis.classes] == [1, 2, 0]
    at = {round(float(threshold), 2): position for position, threshold in enumerate(THRESHOLDS)}
    assert (cat.precision[at[0.88]], cat.recall[at[0.88]], cat.f1[at[0.88]]) == (1, 1, 1)
    assert (cat.precision[at[0.5]], cat.f1[at[0.5]]) == (0.25, 2 / 5)
    assert (dog.precision[at[0.02]], dog.recall[at[0.02]], dog.f1[at[0.02]]) == (0.5, 0.5, 0.5)
    assert math.isnan(emu.precision[at[0.5]])
    assert math.isnan(emu.recall[at[0.5]])
    # Equal from 0.86 to 0.90; the middle of them, not the edge.
    assert cat.threshold == pytest.approx(0.88)
    # The mean is over cat and dog: emu has no objects.
    np.testing.assert_allclose(analysis.overall.f1, (cat.f1 + dog.f1) / 2)
    # At 0.88 only the cat is found, without a mistake; at 0.02 a dog, too, among many.
    assert analysis.threshold == pytest.approx(0.88)
    counts = [(size.name, size.objects, size.found) for size in analysis.sizes]
    assert counts == [("small", 2, 1), ("medium", 0, 0), ("large", 1, 0)]


def test_the_confusion_matrix_by_hand():
    found, data = by_hand()
    # Without the dog of the second image the best threshold would cut everything else off.
    low = [Detections(one.boxes_xyxy, one.scores * 0 + 0.5, one.class_ids) for one in found]
    matrix = analyse(evaluation(low, data)).confusion
    expected = np.zeros((4, 4), dtype=int)
    expected[0, 0] = 1  # the cat
    expected[1, 0] = 1  # a dog taken for a cat
    expected[1, 1] = 1  # the dog of the second image
    expected[3, 0] = 2  # found twice, and a poor box
    expected[3, 1] = 1  # nothing there
    np.testing.assert_array_equal(matrix, expected)


def test_each_kind_of_error_is_counted_by_hand():
    found, data = by_hand()
    low = [Detections(one.boxes_xyxy, one.scores * 0 + 0.5, one.class_ids) for one in found]
    counts = {one.name: one.at_threshold for one in analyse(evaluation(low, data)).errors}
    assert counts == {
        "wrong class": 1,
        "poor box": 1,
        "wrong class, poor box": 0,
        "duplicate": 1,
        "background": 1,
        "missed": 0,
    }
    nobody = dataset(sample([[0, 0, 30, 40]], [2], image_id=1), sample([[5, 5, 9, 9]], [2], image_id=2, first_id=2))
    nothing = [detections([[200, 100, 250, 160]], [0.5], [2]), detections([], [], [])]
    counts = {one.name: one.at_threshold for one in analyse(evaluation(nothing, nobody)).errors}
    assert (counts["background"], counts["missed"]) == (1, 2)


@pytest.mark.parametrize("seed", range(6))
def test_what_an_error_costs_is_ap_without_it(seed):
    """Mending detections that are about nothing, or duplicates, is leaving them out.

    Without crowds: hotcoco calls a detection at the border of one a poor box, we call it background.
    """
    found, data = random_case(seed, crowd_share=0.0)
    report = evaluation(found, data)
    analysis = analyse(report)
    assert {one.name for one in analysis.errors} >= {"background", "duplicate"}
    boxes = analysis.found
    for one in analysis.errors:
        if one.name not in ("background", "duplicate"):
            continue
        kept = []
        for image, (own, truth) in enumerate(zip(found, data.samples, strict=True)):
            drop = {
                int(row)
                for row, hit, class_id in zip(
                    boxes.row[boxes.image == image],
                    boxes.is_hit[boxes.image == image],
                    boxes.class_ids[boxes.image == image],
                    strict=True,
                )
                if not hit and fault(own.boxes_xyxy[row].double().numpy(), int(class_id), truth)[0] == one.name
            }
            rows = [row for row in range(len(own.scores)) if row not in drop]
            kept.append(own[rows])
        gain = coco_metrics(kept, data).ap50 - report.metrics.ap50
        assert one.lost == pytest.approx(gain, abs=1e-6), one.name


@pytest.mark.parametrize("seed", range(6))
def test_curves_are_counts(seed):
    found, data = random_case(seed)
    report = evaluation(found, data)
    analysis = analyse(report)
    boxes, truth = analysis.found, analysis.truth
    for class_id, (one, own) in enumerate(zip(analysis.classes, report.metrics.per_class.values(), strict=True)):
        objects = int(sum(truth.class_ids == class_id))
        for position in (0, 29, 59, 98):
            above = [
                hit
                for hit, score, c in zip(boxes.is_hit, boxes.scores, boxes.class_ids, strict=True)
                if c == class_id and score >= THRESHOLDS[position]
            ]
            hits = sum(above)
            assert one.f1[position] == pytest.approx(2 * hits / max(1, len(above) + objects))
            assert one.recall[position] == pytest.approx(hits / objects if objects else math.nan, nan_ok=True)
            expected = hits / len(above) if above else math.nan
            assert one.precision[position] == pytest.approx(expected, nan_ok=True)
        assert one.precision_at.mean() == pytest.approx(own.ap50 if objects else math.nan, nan_ok=True)
    assert analysis.confusion[:-1].sum() == len(truth.areas)


@pytest.mark.parametrize("seed", range(4))
def test_calibration_is_bins(seed):
    found, data = random_case(seed)
    analysis = analyse(evaluation(found, data))
    scores, hits = analysis.found.scores, analysis.found.is_hit
    error = 0.0
    for number in range(10):
        inside = [(s, h) for s, h in zip(scores, hits, strict=True) if int(s * 10) == number]
        assert analysis.calibration.counts[number] == len(inside)
        if inside:
            score, share = (float(np.mean(column)) for column in zip(*inside, strict=True))
            assert analysis.calibration.scores[number] == pytest.approx(score)
            assert analysis.calibration.shares[number] == pytest.approx(share)
            error += abs(score - share) * len(inside) / len(scores)
        else:
            assert math.isnan(analysis.calibration.shares[number])
    assert analysis.calibration.error == pytest.approx(error)


def test_nothing_found_and_nothing_to_find():
    found, data = by_hand()
    none = [detections([], [], [])] * 2
    analysis = analyse(evaluation(none, data))
    assert analysis.overall.f1.max() == 0
    assert analysis.confusion[:, -1].tolist() == [1, 2, 0, 0]
    assert [one.lost for one in analysis.errors] == [None] * 6
    empty = dataset(sample([], [], image_id=1), sample([], [], image_id=2))
    analysis = analyse(evaluation(found, empty))
    assert (analysis.overall.num_objects, analysis.errors) == (0, [])
    assert all(math.isnan(value) for value in analysis.overall.recall)
    assert analysis.confusion[:-1].sum() == 0
    assert analyse(evaluation(none, empty)).confusion.sum() == 0


def test_one_class_and_a_name_that_occurs_twice():
    found, data = random_case(1, num_classes=1)
    assert analyse(evaluation(found, data)).confusion.shape == (2, 2)
    found, data = random_case(1, num_classes=2)
    twice = replace(data, classes=("cat", "cat"))
    assert len({one.name for one in analyse(evaluation(found, twice)).classes}) == 2
