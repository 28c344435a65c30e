import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.open import list_splits, open_dataset, recognise

RECT = {"x": 10, "y": 20, "width": 30, "height": 25, "rotation": 0, "rectanglelabels": ["cat"]}


def result(value: Any, kind: str = "rectanglelabels", **more: Any) -> dict[str, Any]:
    return {"type": kind, "original_width": 50, "original_height": 30, "image_rotation": 0, "value": value, **more}


def task(number: int, image: str, *results: Any, **annotation: Any) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"image": image},
        "annotations": [{"id": number, "result": list(results), "was_cancelled": False, **annotation}],
        "predictions": [{"result": [result(RECT), result(RECT)]}],
    }


@pytest.fixture
def opened(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., DetectionDataset]:
    """Opens a document beside images/a.png and images/b.png, both 50 x 30."""

    def write(document: Any, strict: bool = True) -> DetectionDataset:
        photo(tmp_path / "images/a.png", (50, 30))
        photo(tmp_path / "images/b.png", (50, 30), 9)
        (tmp_path / "export.json").write_text(json.dumps(document))
        assert recognise(tmp_path).format == recognise(tmp_path / "export.json").format == "labelstudio"
        return open_dataset(tmp_path, strict=strict)

    return write


def test_every_shape_that_has_a_box(opened: Callable[..., DetectionDataset]) -> None:
    turned = {"x": 50, "y": 20, "width": 30, "height": 25, "rotation": 30, "rectanglelabels": ["dog"]}
    polygon = {"points": [[10, 10], [40, 20], [30, 60]], "closed": True, "polygonlabels": ["cat"]}
    ellipse = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 90, "ellipselabels": ["dog"]}
    brush = {"format": "rle", "rle": [0, 1, 2], "brushlabels": ["cat"]}
    point = {"x": 1, "y": 2, "width": 0.5, "keypointlabels": ["cat"]}
    results = [
        result(RECT, id="1"),
        result(turned, id="2"),
        result(polygon, "polygonlabels", id="3"),
        result(ellipse, "ellipselabels", id="4"),
        result(brush, "brushlabels", id="5"),
        result(point, "keypointlabels", id="6"),
        # The shape and its label apart, as with the tags Rectangle and Labels.
        result({"x": 2, "y": 10, "width": 4, "height": 20}, "rectangle", id="7"),
        result({"x": 2, "y": 10, "width": 4, "height": 20, "labels": ["dog"]}, "labels", id="7"),
        result({"choices": ["blurred"]}, "choices", id="8"),
        {"type": "relation", "from_id": "1", "to_id": "2"},
    ]
    dataset = opened([task(1, "/data/upload/1/a.png", *results), task(2, "/data/upload/1/b.png")])
    first, second = dataset.samples
    # The turned one: corners (25, 6), (38, 13.5), (34.2, 20.0), (21.2, 12.5), turned about the first.
    half = np.sqrt(3) / 2
    turned_box = [25 - 7.5 / 2, 6, 25 + 15 * half, 6 + 7.5 + 7.5 * half]
    expected = [[5, 6, 20, 13.5], turned_box, [5, 3, 20, 18], [22, 5, 28, 25], [1, 3, 3, 9]]
    np.testing.assert_allclose(first.boxes_xyxy, expected, atol=1e-9)
    assert [dataset.classes[class_id] for class_id in first.class_ids] == ["cat", "dog", "cat", "dog", "dog"]
    assert first.size_wh == (50, 30)
    assert len(second.class_ids) == 0
    (ignored,) = dataset.problems
    assert ignored.message == "shapes without a box: 2 (brushlabels 1, keypointlabels 1); left out"


def test_one_annotation_of_each_task(opened: Callable[..., DetectionDataset]) -> None:
    several = task(1, "a.png", result(RECT), updated_at="2024-05-02T10:00:00Z")
    newer = {"result": [result(RECT), result({**RECT, "x": 1})], "updated_at": "2024-05-03T09:00:00Z"}
    cancelled = {"result": [result(RECT)] * 3, "was_cancelled": True, "updated_at": "2024-06-03T09:00:00Z"}
    several["annotations"] += [newer, cancelled]
    skipped = task(2, "b.png", result(RECT), was_cancelled=True)
    unfinished = {"id": 3, "data": {"image": "b.png"}, "annotations": []}
    dataset = opened([several, skipped, unfinished])
    assert [(sample.path.name, len(sample.class_ids)) for sample in dataset.samples] == [("a.png", 2)]
    assert [problem.message for problem in dataset.problems] == [
        "tasks without an annotation, or with cancelled ones alone: 2; their images are left out",
        "tasks with several annotations: 1; the ground truth is taken, else the most recent",
    ]
    several["annotations"][0]["ground_truth"] = True
    assert opened([several]).num_objects == 1


def test_json_min(opened: Callable[..., DetectionDataset]) -> None:
    box = {**RECT, "original_width": 50, "original_height": 30}
    polygon = {"points": [[10, 10], [40, 20], [30, 60]], "polygonlabels": ["dog"], "original_width": 50}
    dataset = opened(
        [
            {"image": "/data/upload/1/a.png", "id": 1, "box": [box], "updated_at": "2024-05-01"},
            {
                "image": "/data/upload/1/b.png",
                "id": 2,
                "annotation_id": 4,
                "quality": "good",
                "annotator": 1,
                "lead_time": 3.5,
            },
            {
                "image": "/data/upload/1/a.png",
                "id": 1,
                "box": [box],
                "area": [polygon],
                "updated_at": "2024-05-02",
            },
        ]
    )
    assert dataset.classes == ("cat", "dog")
    assert [len(sample.class_ids) for sample in dataset.samples] == [2, 0]
    np.testing.assert_allclose(dataset.samples[0].boxes_xyxy, [[5, 6, 20, 13.5], [5, 3, 20, 18]])
    assert [problem.message for problem in dataset.problems] == [
        "tasks with several annotations: 1; the ground truth is taken, else the most recent"
    ]


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/upload/1/0a1b2c3d-a.png", "images/0a1b2c3d-a.png"),
        ("/data/upload/1/0a1b2c3d-a.png", "images/a.png"),
        ("/data/local-files/?d=photos/cam%201/a.png", "photos/cam 1/a.png"),
        ("/data/local-files/?d=photos/cam%201/a.png", "images/a.png"),
        ("https://host.example/x/a%20b.png?X-Amz-Signature=b.png", "images/a b.png"),
        ("s3://bucket/key/a.png", "images/key/a.png"),
        ("C:\\photos\\a.png", "images/a.png"),
        ("100%.png", "images/100%.png"),
    ],
)
def test_addresses_of_images(address: str, file: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / file, (50, 30))
    (tmp_path / "train.json").write_text(json.dumps([task(1, address, result(RECT))]))
    assert list_splits(tmp_path) == ("train",)
    assert [sample.path for sample in open_dataset(tmp_path).samples] == [tmp_path / file]


def test_uploads_of_one_name_are_not_mixed_up(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/1.png", (50, 30))
    tasks = [task(1, "/data/upload/1/0a1b2c3d-1.png", result(RECT)), task(2, "/data/upload/1/0a1b2c3e-1.png")]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError, match=r"none of its images is there .* and '1\.png' is the name of several uploads"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([task(1, "no image")], "no task names an image file; its data has 'image'"),
        (
            [{"id": 1, "data": {"left": "a.png", "right": "b.png"}, "annotations": []}],
            "several images .*'left', 'right'",
        ),
        ([task(1, "a.png", result({**RECT, "rectanglelabels": []}))], "task 1, region .*: it has no label"),
        ([task(1, "a.png", result({**RECT, "width": "wide"}))], "width must be a number, not 'wide'"),
        ([task(1, "a.png", result({**RECT, "rotation": 9}, original_width=None))], "which needs original_width"),
        ([task(1, "a.png", result(RECT), result({**RECT, "x": 3}, original_width=60))], "images of different sizes"),
        ([task(1, "a.png", 3)], "task 1, result 1: expected an object with a value, found 3"),
        ([{"id": 1, "data": {"image": "a.png"}, "annotations": [3]}], "annotations must be a list of objects"),
        ([{"id": 1, "data": 3, "annotations": []}, task(2, "a.png")], "task 1: data must be an object, not 3"),
        ([task(1, "a.png", result({**RECT, "rectanglelabels": "cat"}))], "rectanglelabels must be a list, not 'cat'"),
        ([task(1, "a.png", result({"points": [[1, 2]], "polygonlabels": ["cat"]}))], "it has 1 points and needs 3"),
        ([task(1, "a.png", result(RECT)), 3], "expected a list of tasks"),
    ],
)
def test_what_cannot_be_used(document: Any, message: str, opened: Callable[..., DetectionDataset]) -> None:
    with pytest.raises(DataError, match=message):
        opened(document)


def test_a_region_of_two_labels_is_two_objects(opened: Callable[..., DetectionDataset]) -> None:
    dataset = opened([task(1, "a.png", result({**RECT, "rectanglelabels": ["cat", "small"]}, id="r"))])
    assert dataset.classes == ("cat", "small")
    assert dataset.num_objects == 2
    assert [problem.message for problem in dataset.problems] == [
        "it has the labels 'cat', 'small': taken as an object of each"
    ]
