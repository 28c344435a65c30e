import contextlib
import copy
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import ConfigError, DataError
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.evaluation.coco_metrics import (
    ClassMetrics,
    Metrics,
    check_metric_name,
    coco_ground_truth,
    coco_metrics,
    metrics_from_coco,
    to_coco_results,
)


def pycocotools(
    ground_truth: dict, results: list[dict], max_detections: int = 100
) -> tuple[list[float], list[list[float]]]:
    """The twelve numbers, and AP, AP50, AP75, AR of each category in the order of ids."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return values.mean() if values.size else -1.0

    classes = []
    for k in range(precision.shape[2]):
        own = precision[:, :, k, 0, 2]
        classes.append([mean(own), mean(own[0]), mean(own[5]), mean(recall[:, k, 0, 2])])
    # With another number than 100, pycocotools prints -1 as its AP and has it in its arrays.
    return [mean(precision[:, :, :, 0, 2]), *evaluation.stats[1:]], classes


def agree(metrics: Metrics, ground_truth: dict, results: list[dict]) -> None:
    twelve, classes = pycocotools(ground_truth, results, metrics.max_detections)
    np.testing.assert_allclose(list(metrics.twelve().values()), twelve, rtol=0, atol=1e-9)
    by_id = sorted(ground_truth["categories"], key=lambda category: category["id"])
    for category, expected in zip(by_id, classes, strict=True):
        np.testing.assert_allclose(metrics.per_class[category["name"]], expected, rtol=0, atol=1e-9)


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Boxes on a grid so that overlaps hit thresholds exactly; equal scores; crowds; areas that are not w x h."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(60, rng.integers(1, 7), replace=False).tolist()
    category_ids = rng.choice(95, rng.integers(1, 5), replace=False).tolist()
    annotated = category_ids[: max(1, len(category_ids) - 1)]
    grid, size = rng.choice([0.25, 1, 8]), rng.choice([40, 130, 400])

    def box() -> list[float]:
        corner = np.floor(rng.random(2) * size / grid) * grid
        extent = np.ceil(rng.random(2) * size / grid) * grid
        return [*corner.tolist(), *extent.tolist()]

    annotations, results = [], []
    for image_id in image_ids:
        own = []
        for _ in range(rng.integers(0, 8)):
            x, y, w, h = box()
            own.append(
                {
                    "id": len(annotations) + len(own) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(annotated)),
                    "bbox": [x, y, w, h],
                    "area": w * h * float(rng.choice([1, 0.5, 0.01])),
                    "iscrowd": int(rng.random() < 0.25),
                }
            )
        annotations += own
        for _ in range(rng.integers(0, 12) * (15 if rng.random() < 0.05 else 1)):
            bbox, category_id = box(), int(rng.choice(category_ids))
            if own and rng.random() < 0.7:
                near = own[rng.integers(len(own))]
                bbox = (np.array(near["bbox"]) + rng.choice([0, 0, grid, -grid], 4)).tolist()
                bbox[2:] = [max(grid, bbox[2]), max(0.0, bbox[3])]
                category_id = near["category_id"]
            score = float(rng.choice([rng.random(), rng.integers(0, 5) / 5]))
            results.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})
    images = [{"id": i, "width": 900, "height": 800, "file_name": f"{i}.png"} for i in image_ids]
    categories = [{"id": i, "name": f"class {i}", "supercategory": ""} for i in category_ids]
    empty = {"info": {}, "licenses": []}
    return {**empty, "images": images, "categories": categories, "annotations": annotations}, results


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_equals_pycocotools(seed):
    ground_truth, results = random_case(seed)
    if results:
        agree(metrics_from_coco(ground_truth, results), ground_truth, results)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(11, 15))
def test_equals_pycocotools_with_any_number_of_detections(seed, max_detections):
    ground_truth, results = random_case(seed)
    if results:
        agree(metrics_from_coco(ground_truth, results, max_detections=max_detections), ground_truth, results)


def dataset_of(ground_truth: dict) -> DetectionDataset:
    category_ids = [category["id"] for category in ground_truth["categories"]]
    samples = []
    for image in ground_truth["images"]:
        own = [a for a in ground_truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        samples.append(
            Sample(
                path=Path(image["file_name"]),
                size_wh=(image["width"], image["height"]),
                boxes_xyxy=boxes,
                class_ids=np.array([category_ids.index(a["category_id"]) for a in own], dtype=np.int64),
                is_crowd=np.array([a["iscrowd"] for a in own], dtype=bool),
                areas=np.array([a["area"] for a in own], dtype=np.float64),
                image_id=image["id"],
                object_ids=tuple(a["id"] for a in own),
            )
        )
    return DetectionDataset(
        classes=tuple(category["name"] for category in ground_truth["categories"]),
        category_ids=tuple(category_ids),
        samples=samples,
    )


def detections_of(ground_truth: dict, results: list[dict]) -> list[Detections]:
    category_ids = [category["id"] for category in ground_truth["categories"]]
    found = []
    for image in ground_truth["images"]:
        own = [r for r in results if r["image_id"] == image["id"]]
        boxes = torch.tensor([r["bbox"] for r in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.append(
            Detections(
                boxes,
                torch.tensor([r["score"] for r in own], dtype=torch.float32),
                torch.tensor([category_ids.index(r["category_id"]) for r in own], dtype=torch.int64),
            )
        )
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_tensors_and_samples_give_what_their_files_give(seed):
    ground_truth, results = random_case(seed)
    dataset, detections = dataset_of(ground_truth), detections_of(ground_truth, results)
    metrics = coco_metrics(detections, dataset)
    written = json.loads(json.dumps(to_coco_results(detections, dataset)))
    truth = json.loads(json.dumps(coco_ground_truth(dataset)))
    assert truth == ground_truth
    assert metrics_from_coco(truth, written) == metrics
    if written:
        agree(metrics, truth, written)


def test_more_than_100_detections_may_count():
    """With 150 objects of a class in an image, and as many detections, 100 of them find two thirds."""
    boxes = [[3 * (n % 25), 4 * (n // 25), 2, 3] for n in range(150)]
    truth = one_object() | {
        "annotations": [
            {"id": n + 1, "image_id": 3, "category_id": 8, "bbox": box, "area": 6, "iscrowd": 0}
            for n, box in enumerate(boxes)
        ]
    }
    results = [{"image_id": 3, "category_id": 8, "bbox": box, "score": 1 - n / 200} for n, box in enumerate(boxes)]
    assert metrics_from_coco(truth, results).ar_100 == pytest.approx(100 / 150)
    metrics = metrics_from_coco(truth, results, max_detections=150)
    assert (metrics.ap, metrics.ar_100) == (pytest.approx(1), pytest.approx(1))
    assert metrics.max_detections == 150
    # What is not COCO's is not called so.
    assert list(metrics.twelve()) == [
        *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
        *("ar_1", "ar_10", "ar_150", "ar_small", "ar_medium", "ar_large"),
    ]
    assert metrics.twelve()["ar_150"] == metrics.ar_100
    agree(metrics, truth, results)
    assert (metrics.ar_1, metrics.ar_10) == (pytest.approx(1 / 150), pytest.approx(10 / 150))
    with pytest.raises(ValueError, match="max_detections is 10; it must be at least 11"):
        metrics_from_coco(truth, results, max_detections=10)


def one_object(**changes) -> dict:
    annotation = {"id": 5, "image_id": 3, "category_id": 8, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0}
    return {
        "images": [{"id": 3, "width": 90, "height": 70}, {"id": 1, "width": 90, "height": 70}],
        "categories": [{"id": 8, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [annotation | changes],
    }


def found(**changes) -> dict:
    return {"image_id": 3, "category_id": 8, "bbox": [10, 10, 20, 30], "score": 0.5} | changes


def test_a_perfect_detector():
    metrics = metrics_from_coco(one_object(), [found()])
    assert metrics.twelve() == pytest.approx(
        {
            "ap": 1,
            "ap50": 1,
            "ap75": 1,
            "ap_small": 1,
            "ap_medium": -1,
            "ap_large": -1,
            "ar_1": 1,
            "ar_10": 1,
            "ar_100": 1,
            "ar_small": 1,
            "ar_medium": -1,
            "ar_large": -1,
        }
    )
    assert metrics.per_class["cat"] == pytest.approx((1, 1, 1, 1))
    assert metrics.per_class["dog"] == ClassMetrics(-1, -1, -1, -1)
    assert list(metrics.per_class) == ["cat", "dog"]


def test_no_detections_is_zero_not_undefined():
    metrics = metrics_from_coco(one_object(), [])
    assert (metrics.ap, metrics.ar_100, metrics.ap_small, metrics.ap_large) == (0, 0, 0, -1)


def test_no_objects_is_undefined():
    nothing = one_object() | {"annotations": []}
    assert set(metrics_from_coco(nothing, [found()]).twelve().values()) == {-1}
    assert set(metrics_from_coco(nothing, []).twelve().values()) == {-1}


def test_a_detection_on_a_crowd_is_not_held_against_the_detector():
    truth = one_object()
    truth["annotations"].append(
        {"id": 6, "image_id": 3, "category_id": 8, "bbox": [50, 0, 40, 70], "area": 2800, "iscrowd": 1}
    )
    extra = [found(bbox=[55, 5, 10, 10], score=0.9), found(bbox=[60, 30, 9, 7], score=0.8)]
    assert metrics_from_coco(truth, [found(), *extra]).ap == pytest.approx(1)
    assert metrics_from_coco(one_object(), [found(), *extra]).ap < 0.5


def test_the_annotation_s_area_decides_the_size():
    assert metrics_from_coco(one_object(area=5000), [found()]).ap_small == -1
    assert metrics_from_coco(one_object(area=5000), [found()]).ap_medium == pytest.approx(1)


def test_an_object_with_id_zero_is_found_like_any_other():
    assert metrics_from_coco(one_object(id=0), [found()]).ap == pytest.approx(1)


def test_negative_ids_work():
    truth = one_object(image_id=-3)
    truth["images"][0]["id"] = -3
    assert metrics_from_coco(truth, [found(image_id=-3)]).ap == pytest.approx(1)


def test_nothing_is_printed(capfd):
    metrics_from_coco(one_object(), [found()])
    metrics_from_coco(one_object(), [])
    assert capfd.readouterr() == ("", "")


def test_a_name_that_occurs_twice_gets_its_id():
    truth = one_object()
    truth["categories"][1]["name"] = "cat"
    assert list(metrics_from_coco(truth, []).per_class) == ["cat (8)", "cat (2)"]


@pytest.mark.parametrize("changes", [{"image_id": 4}, {"category_id": 9}])
def test_detections_of_something_else(changes):
    with pytest.raises(DataError, match="ground truth does not have both"):
        metrics_from_coco(one_object(), [found(**changes)])


def test_ids_that_occur_twice():
    truth = one_object()
    truth["images"].append(truth["images"][0])
    with pytest.raises(DataError, match="image id 3 occurs more than once"):
        metrics_from_coco(truth, [])


def test_nothing_to_evaluate():
    with pytest.raises(DataError, match="0 images"):
        metrics_from_coco({"images": [], "categories": [], "annotations": []}, [])


def test_detections_must_fit_the_data_set():
    dataset = dataset_of(one_object() | {"images": [{"id": 3, "width": 9, "height": 7, "file_name": "x"}]})
    with pytest.raises(ValueError, match="2 images, the data set has 1"):
        coco_metrics([Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))] * 2, dataset)
    unknown = Detections(torch.zeros(1, 4), torch.zeros(1), torch.tensor([2]))
    with pytest.raises(ValueError, match="from 2 to 2, but there are names for 2 classes"):
        coco_metrics([unknown], dataset)


def test_a_number_by_its_name():
    twelve = {field.name: 0.1 for field in dataclasses.fields(Metrics) if field.type is float}
    metrics = Metrics(**twelve | {"ap50": 0.7}, per_class={"a/b": ClassMetrics(0.2, 0.3, 0.4, 0.5)})
    assert metrics.value("ap50") == 0.7
    assert metrics.value("a/b/ap75") == 0.4
    for name in ("ap90", "per_class", "a/b/ap_small"):
        with pytest.raises(ConfigError, match=f"no metric '{name}'; there are ap, ap50"):
            metrics.value(name)
    with pytest.raises(ConfigError, match="there is no cat/ap: the classes are a/b"):
        metrics.value("cat/ap")


@pytest.mark.parametrize("name", ["ar_300@queries", "ar_300"])
def test_a_name_of_the_records_is_answered_with_that_of_the_setting(name):
    with pytest.raises(ConfigError, match=f"no metric '{name}'.*such as ar_300, is ar_100@queries$"):
        check_metric_name(name)
    with pytest.raises(ConfigError, match="no metric 'ap_300@queries'") as caught:
        check_metric_name("ap_300@queries")
    assert "ar_100@queries" not in str(caught.value)
