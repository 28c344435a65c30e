"""Statistics of the comparison agree with values by hand, and its AP with that of the evaluators."""

import math

import numpy as np
import pytest

from benchmarks.accuracy.convergence.measures import (
    average_precision,
    bootstrap,
    match,
    metrics_by_size,
    read_results,
    write_results,
)
from benchmarks.accuracy.convergence.significance import (
    exponent,
    first_reached,
    mean_and_spread,
    permutation_test,
)
from deformable_detr.evaluation.coco_metrics import metrics_from_coco


def test_the_permutation_test_by_hand():
    # Of the 10 ways to choose 2 of 5 only {4, 5} has a sum of at least 9.
    clear = permutation_test([5.0, 4.0], [1.0, 2.0, 3.0])
    assert clear == (pytest.approx(4.5 - 2.0), 0.1, 10)
    # {5, 2}: sums of at least 7 are {2,5}, {3,4}, {3,5}, {4,5}.
    assert permutation_test([5.0, 2.0], [1.0, 3.0, 4.0]).p == 0.4
    # One-sided: the worst division is no evidence.
    assert permutation_test([1.0, 2.0], [3.0, 4.0, 5.0]).p == 1.0
    five = permutation_test([0.61, 0.62, 0.63, 0.64, 0.65], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert (five.divisions, five.p) == (252, 1 / 252)
    # Equal values everywhere: every division is as good as the one observed, in spite of rounding.
    assert permutation_test([0.1] * 5, [0.1] * 5).p == 1.0
    with pytest.raises(ValueError, match="0 and 1"):
        permutation_test([], [1.0])


def test_growth_and_spread_by_hand():
    assert exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    assert exponent([10.0, 20.0], [7.0, 7.0]) == pytest.approx(0.0)
    # Logarithms 0, 1, 2 and 0, 1, 1: slope 1 * (-1) * (-2/3) + 1 * (1/3) over 2.
    assert exponent([1.0, math.e, math.e**2], [1.0, math.e, math.e]) == pytest.approx(0.5)
    for sizes, values in (([2.0, 2.0], [1.0, 3.0]), ([1.0, 2.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match="growth"):
            exponent(sizes, values)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert math.isnan(mean_and_spread([4.0])[1])


def test_the_first_epoch_that_reaches_it():
    rows = [{"epoch": number, "ap": ap} for number, ap in enumerate((0.1, 0.3, 0.2, 0.4), start=1)]
    assert first_reached(rows, 0.3)["epoch"] == 2
    assert first_reached(rows, 0.31)["epoch"] == 4
    assert first_reached(rows, 0.5) is None


def drawn(num_images=7, seed=0):
    """Objects of two classes, and detections near some of them, among others; ids are neither dense nor in order."""
    rng = np.random.default_rng(seed)
    images = [{"id": 50 - 3 * i, "width": 160, "height": 128} for i in range(num_images)]
    objects, found = [], []
    for image in images[:-1]:  # the last has nothing but detections
        for _ in range(rng.integers(1, 5)):
            box = [*rng.uniform(0, 90, 2), *rng.uniform(3, 40, 2)]
            category = int(rng.choice([4, 9]))
            objects.append(
                {"id": len(objects) + 1, "image_id": image["id"], "category_id": category}
                | {"bbox": [float(side) for side in box], "area": float(0.7 * box[2] * box[3]), "iscrowd": 0}
            )
            for _ in range(rng.integers(0, 4)):
                moved = np.asarray(box) * (1 + rng.normal(0, 0.1, 4))
                found.append((image["id"], category, moved, rng.uniform(0.2, 1)))
    for image in images:
        for _ in range(5):
            found.append((image["id"], int(rng.choice([4, 9])), rng.uniform(5, 60, 4), rng.uniform(0, 0.9)))
    results = [
        # Scores in steps of 0.1, so that some are equal.
        {"image_id": i, "category_id": c, "bbox": [float(x) for x in box], "score": round(float(score), 1)}
        for i, c, box, score in found
    ]
    return {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}],
    }, results


@pytest.mark.parametrize("seed", range(4))
def test_matches_give_the_evaluator_s_ap(seed):
    document, results = drawn(seed=seed)
    classes = match(document, results)
    ones = np.ones(len(document["images"]), dtype=np.int64)
    assert average_precision(classes, ones) == pytest.approx(metrics_from_coco(document, results).ap, abs=1e-12)


def several_times(document, results, times):
    """Data set in which each image, in the order of the ids, is there so many times, copies one after another."""
    images, objects, found = [], [], []
    for image, count in zip(sorted(document["images"], key=lambda one: one["id"]), times, strict=True):
        for _ in range(count):
            number = len(images) + 1
            images.append({**image, "id": number})
            own = [one for one in document["annotations"] if one["image_id"] == image["id"]]
            objects += [{**one, "id": len(objects) + 1 + i, "image_id": number} for i, one in enumerate(own)]
            found += [{**one, "image_id": number} for one in results if one["image_id"] == image["id"]]
    return {**document, "images": images, "annotations": objects}, found


@pytest.mark.parametrize("times", [(2, 1, 0, 3, 1, 1, 0), (0, 0, 5, 0, 1, 0, 1), (1, 4, 1, 2, 0, 0, 6)])
def test_an_image_that_counts_twice_is_an_image_that_is_there_twice(times):
    document, results = drawn(seed=5)
    # No equal scores: which of two images comes first would then depend on their ids.
    results = [{**one, "score": one["score"] + 1e-4 * i} for i, one in enumerate(results)]
    expected = metrics_from_coco(*several_times(document, results, times)).ap
    found = average_precision(match(document, results), np.asarray(times))
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < found < 1


def test_no_object_is_no_number_and_crowds_are_refused():
    document, results = drawn()
    nothing = np.zeros(7, dtype=np.int64)
    assert math.isnan(average_precision(match(document, results), nothing))
    document["annotations"][0]["iscrowd"] = 1
    with pytest.raises(ValueError, match="crowd"):
        match(document, results)


def test_the_bootstrap_draws_the_same_images_for_all():
    document, results = drawn(seed=2)
    good = match(document, results)
    values = bootstrap([good, good, match(document, results[:10])], 7, 30, seed=3)
    assert values.shape == (30, 3)
    assert (values[:, 0] == values[:, 1]).all()
    assert (values[:, 0] >= values[:, 2]).all()
    assert values[:, 0].std() > 0
    assert (values == bootstrap([good, good, match(document, results[:10])], 7, 30, seed=3)).all()


def test_sizes_are_counted_as_pycocotools_does_with_these_bounds():
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    document, results = drawn(12, seed=4)
    truth = coco.COCO()
    truth.dataset = document
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes([dict(one) for one in results]), "bbox")
    evaluation.params.areaRng = [[0, 1e10], [0, 64], [64, 576], [576, 1e10]]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    found = metrics_by_size(document, results)
    expected = evaluation.stats
    assert [found.ap, found.ap50] == pytest.approx(expected[:2], abs=1e-9)
    assert [found.ap_small, found.ap_medium, found.ap_large] == pytest.approx(expected[3:6], abs=1e-9)
    assert len({round(float(value), 6) for value in expected[3:6]}) == 3
    plain = metrics_from_coco(document, results)
    assert plain.ap == found.ap
    assert plain.ap_small != found.ap_small


def test_detections_on_disk_are_exact(tmp_path):
    _, results = drawn()
    write_results(tmp_path / "found.json.gz", results)
    first = (tmp_path / "found.json.gz").read_bytes()
    assert read_results(tmp_path / "found.json.gz") == results
    write_results(tmp_path / "found.json.gz", results)
    assert (tmp_path / "found.json.gz").read_bytes() == first
