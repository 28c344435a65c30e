import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco
from deformable_detr.data.open import open_dataset

IMAGES = [{"id": 3, "file_name": "a.png", "width": 50, "height": 30}]


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 2, 3, 4], **changes}


def test_samples(coco_json: Callable[..., Path]) -> None:
    dataset = coco.load(coco_json())
    assert dataset.classes == ("dog", "cat")
    assert dataset.category_ids == (2, 9)
    assert not dataset.problems
    first, second = dataset.samples
    assert (first.path.name, first.size_wh, first.image_id, first.object_ids) == ("b.png", (20, 40), 7, (12,))
    assert first.is_crowd.tolist() == [True]
    assert first.areas.tolist() == [800]
    assert second.object_ids == (11, 10)
    assert second.boxes_xyxy.tolist() == [[1, 2.5, 11, 22.5], [4, 4, 7, 6]]
    assert second.class_ids.tolist() == [1, 0]
    assert second.is_crowd.tolist() == [False, False]
    assert second.areas.tolist() == [77.5, 6]


def test_images_without_objects_stay(coco_json: Callable[..., Path]) -> None:
    dataset = coco.load(coco_json(annotations=[]))
    assert [sample.boxes_xyxy.shape for sample in dataset.samples] == [(0, 4), (0, 4)]


def test_ids_in_quotes_are_ids(coco_json: Callable[..., Path]) -> None:
    path = coco_json(
        images=[{"id": "0003", "file_name": "a.png"}],
        categories=[{"id": "2", "name": "dog"}],
        annotations=[annotation(category_id="2"), annotation(id=2, image_id=3.0)],
    )
    dataset = coco.load(path)
    assert dataset.category_ids == (2,)
    assert dataset.samples[0].image_id == 3
    assert len(dataset.samples[0].class_ids) == 2


def test_image_ids_of_text_are_replaced(coco_json: Callable[..., Path]) -> None:
    images = [{"id": "x-1", "file_name": "a.png"}, {"id": "y", "file_name": "b.png"}]
    dataset = coco.load(coco_json(images=images, annotations=[annotation(image_id="y")]))
    assert [sample.image_id for sample in dataset.samples] == [1, 2]
    assert [len(sample.class_ids) for sample in dataset.samples] == [0, 1]
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [("invalid_annotation", False)]


def test_repeated_annotation_ids_are_replaced(coco_json: Callable[..., Path]) -> None:
    dataset = coco.load(coco_json(images=IMAGES, annotations=[annotation(id=5), annotation(id=5, category_id=9)]))
    assert dataset.samples[0].object_ids == (1, 2)
    assert [problem.fatal for problem in dataset.problems] == [False]
    without = annotation()
    del without["id"]
    dataset = coco.load(coco_json(images=IMAGES, annotations=[without]))
    assert dataset.samples[0].object_ids == (1,)
    assert not dataset.problems


def test_sizes_come_from_the_image_where_the_json_has_none(coco_json: Callable[..., Path]) -> None:
    dataset = coco.load(coco_json(images=[{"id": 3, "file_name": "a.png", "width": None, "height": 9}], annotations=[]))
    assert dataset.samples[0].size_wh == (50, 30)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"images": {}}, "'images' is {}, not a list"),
        ({"images": [3]}, r"images\[0\] is 3, not an object"),
        ({"annotations": None}, "'annotations' is None"),
        ({"categories": []}, "nothing to detect"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1 is used twice"),
        (
            {"categories": [{"id": 9, "name": "a"}, {"id": 2, "name": "a"}]},
            "category name 'a' is used twice, with the ids 2 and 9, and both have objects",
        ),
        ({"categories": [{"id": "one", "name": "a"}]}, "category id must be a whole number, not 'one'"),
        ({"categories": [{"id": True, "name": "a"}]}, "category id must be a whole number, not True"),
        ({"categories": [{"id": 1}]}, "category name must be text, not None"),
        ({"images": [*IMAGES, *IMAGES]}, "image id 3 is used twice"),
        ({"images": [{"id": 1, "file_name": None}]}, r"images\[0\]: the file_name must be text"),
        ({"images": [{**IMAGES[0], "width": "wide"}]}, "the width must be a whole number"),
        ({"images": [{**IMAGES[0], "width": 0}]}, "cannot be 0 x 30 pixels"),
        ({"images": [{**IMAGES[0], "height": 10**9}]}, "cannot be 50 x 1000000000"),
        ({"annotations": [annotation(bbox=[1, 2, 3])]}, r"annotation 1: bbox must be \[left"),
        ({"annotations": [annotation(bbox=None)]}, r"annotation 1: it has no bbox, and no segmentation"),
        ({"annotations": [annotation(bbox=[1, 2, "3,5", 4])]}, "each value of bbox must be a number, not '3,5'"),
        ({"annotations": [annotation(bbox=[1, 2, True, 4])]}, "each value of bbox must be a number, not True"),
        ({"annotations": [annotation(bbox=[1, 2, 10**400, 4])]}, "each value of bbox must be a number, not 1000"),
        ({"annotations": [annotation(iscrowd=2)]}, "iscrowd must be 0 or 1, not 2"),
        ({"annotations": [annotation(iscrowd="no")]}, "iscrowd must be 0 or 1, not 'no'"),
        ({"annotations": [annotation(iscrowd=[])]}, r"iscrowd must be 0 or 1, not \[\]"),
        ({"annotations": [annotation(area="big")]}, "area must be a number, not 'big'"),
        ({"annotations": [annotation(image_id=None)]}, "image id must be a whole number, not None"),
        ({"annotations": [annotation(category_id="dog")]}, "category_id must be a whole number, not 'dog'"),
        ({"annotations": [annotation(category_id=[])]}, "category_id must be a whole number"),
    ],
)
def test_values_that_cannot_be_what_they_are(
    sections: dict[str, Any], message: str, coco_json: Callable[..., Path]
) -> None:
    path = coco_json(**sections)
    with pytest.raises(DataError, match=rf"data\.json.*{message}"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"image_id": 99}, "invalid_annotation", "annotation 1: image_id 99 is not among the images"),
        ({"image_id": "none"}, "invalid_annotation", "image_id 'none' is not among the images"),
        ({"category_id": 3}, "unknown_class", "annotation 1: category_id 3 is not among"),
        ({"bbox": [1, 2, -3, 4]}, "invalid_box", "annotation 1 of a.png: .* negative width"),
        ({"bbox": [1, 2, float("nan"), 4]}, "invalid_box", "annotation 1 of a.png: .* not a finite number"),
        ({"bbox": [1e308, 2, 1e308, 4]}, "invalid_box", "not a finite number"),
        ({"bbox": [60, 2, 5, 4]}, "outside_box", "outside its image; the image is 50 x 30"),
    ],
)
def test_annotations_that_would_stop_training(
    changes: dict[str, Any], kind: str, message: str, coco_json: Callable[..., Path]
) -> None:
    path = coco_json(annotations=[annotation(**changes), annotation(id=2)])
    with pytest.raises(DataError, match=message):
        open_dataset(path)
    dataset = open_dataset(path, strict=False)
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [(kind, True)]
    assert sum(len(sample.class_ids) for sample in dataset.samples) == 1


def test_several_problems_are_counted(coco_json: Callable[..., Path]) -> None:
    path = coco_json(annotations=[annotation(id=n, image_id=99) for n in range(1, 4)])
    with pytest.raises(DataError, match=r"annotation 1: .* \(and 2 more: `ddetr check-data .*` lists them\)"):
        open_dataset(path)


def test_a_missing_image_goes_with_its_objects(coco_json: Callable[..., Path]) -> None:
    path = coco_json()
    (path.parent / "b.png").unlink()
    with pytest.raises(DataError, match=r"images\[0\]: the image 'b.png' is missing; expected it at"):
        open_dataset(path)
    dataset = open_dataset(path, strict=False)
    assert [sample.object_ids for sample in dataset.samples] == [(11, 10)]


def test_all_images_missing_is_one_problem(coco_json: Callable[..., Path]) -> None:
    path = coco_json()
    for name in ("a.png", "b.png"):
        (path.parent / name).unlink()
    dataset = open_dataset(path, strict=False)
    assert [problem.kind for problem in dataset.problems] == ["missing_image"]
    assert "none of its 2 images is there" in dataset.problems[0].message
    assert len(dataset) == 0
    elsewhere = coco.load(path, images=path.parent / "elsewhere")
    assert "looked in" in elsewhere.problems[0].message


def test_no_images(coco_json: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="'images' is empty"):
        open_dataset(coco_json(images=[], annotations=[]))


def test_an_unreadable_image_without_size_is_left_out(coco_json: Callable[..., Path]) -> None:
    path = coco_json(images=[{"id": 3, "file_name": "a.png"}, {"id": 7, "file_name": "b.png"}])
    (path.parent / "a.png").write_bytes(b"nonsense")
    dataset = open_dataset(path, strict=False)
    assert [sample.path.name for sample in dataset.samples] == ["b.png"]
    assert [problem.kind for problem in dataset.problems] == ["unreadable_image"]


def test_an_image_listed_twice_is_reported(coco_json: Callable[..., Path]) -> None:
    dataset = open_dataset(coco_json(images=[*IMAGES, {**IMAGES[0], "id": 4}], annotations=[annotation()]))
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [("duplicate_image", False)]
    assert len(dataset) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"no data set recognised here: it is one file, 'a\.json', not an object but \[\]"),
        ("null", "not an object but None"),
        ('{"forms": [], "at": "a.png"}', "an object with 'forms', 'at'"),
        ("{}", "an object with nothing"),
        ('{"images": []}', r"a\.json: not COCO annotations: it has no 'annotations'"),
        ('{"images": [', r"a\.json, line 1, column 13: not JSON"),
        ("[" * 100_000, r"a\.json: not usable JSON: its values are nested too deeply"),
    ],
)
def test_json_of_something_else(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset(path)
    with pytest.raises(DataError, match=r"a\.json"):
        coco.load(path)


def test_numbers_as_text_are_numbers(coco_json: Callable[..., Path]) -> None:
    path = coco_json(
        images=[{"id": "3", "file_name": "a.png", "width": "50", "height": "30.0"}],
        annotations=[
            annotation(bbox=["1", "2.5", "1e1", "4"], area="38.5", iscrowd="1", id="4"),
            annotation(bbox="[5, 6, 7, 8]", iscrowd=0.0),
            annotation(bbox=["1", "2", "nan", "4"]),
        ],
    )
    dataset = open_dataset(path, strict=False)
    assert dataset.samples[0].size_wh == (50, 30)
    assert dataset.samples[0].boxes_xyxy.tolist() == [[1, 2.5, 11, 6.5], [5, 6, 12, 14]]
    assert dataset.samples[0].areas.tolist() == [38.5, 56]
    assert dataset.samples[0].is_crowd.tolist() == [True, False]
    assert [problem.kind for problem in dataset.fatal_problems] == ["invalid_box"]


def test_class_names_may_be_numbers(coco_json: Callable[..., Path]) -> None:
    dataset = coco.load(coco_json(categories=[{"id": 9, "name": 0}, {"id": 2, "name": 1.5}]))
    assert dataset.classes == ("1.5", "0")


def test_a_category_for_the_whole_project_is_no_class(coco_json: Callable[..., Path]) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 9, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    dataset = coco.load(coco_json(categories=categories))
    assert (dataset.classes, dataset.category_ids) == (("dog", "cat"), (2, 9))
    assert [sample.class_ids.tolist() for sample in dataset.samples] == [[0], [1, 0]]
    (problem,) = dataset.problems
    assert problem.message == "the category 'pets' (id 0) only groups others, and no object has it: left out"
    labelled = [annotation(category_id="0")]  # as text, it is used all the same
    assert coco.load(coco_json(categories=categories, annotations=labelled)).classes == ("pets", "dog", "cat")


def test_annotations_that_cannot_be_used_are_all_listed(coco_json: Callable[..., Path]) -> None:
    bad = [annotation(id=n, **change) for n, change in enumerate(({"bbox": 3}, {"area": "?"}, {"category_id": None}))]
    dataset = open_dataset(coco_json(annotations=[*bad, annotation(id=9)]), strict=False)
    assert [problem.message.partition(":")[0] for problem in dataset.fatal_problems] == [
        "annotation 0",
        "annotation 1",
        "annotation 2",
    ]
    assert [sample.object_ids for sample in dataset.samples] == [(), (9,)]


@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}, {"bbox": [None] * 4}])
def test_without_a_bbox_the_box_is_around_the_segmentation(
    bbox: dict[str, Any], coco_json: Callable[..., Path]
) -> None:
    polygon = {"id": 1, "image_id": 3, "category_id": 2, "segmentation": [[5, 5, 25, 5, 25, 20, 5, 20]], "area": 0}
    dataset = open_dataset(coco_json(annotations=[{**polygon, **bbox}, annotation(id=2)]))
    sample = dataset.samples[1]
    assert (sample.boxes_xyxy.tolist(), sample.areas.tolist()) == ([[5, 5, 25, 20], [1, 2, 4, 6]], [300, 12])
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [("invalid_annotation", False)]
    assert "1 of 2 annotations have no bbox" in dataset.problems[0].message


def test_boxes_in_another_unit_or_form_stop(coco_json: Callable[..., Path]) -> None:
    shares = [annotation(id=n, bbox=[0.25, 0.25, 0.5, 0.5]) for n in range(3)]
    with pytest.raises(DataError, match=r"data\.json: all 3 boxes lie within the first pixel .* are shares of width"):
        open_dataset(coco_json(annotations=shares))
    corners = [annotation(id=n, bbox=[20 + n, 12, 40, 28 - n]) for n in range(4)]
    with pytest.raises(DataError, match=r"4 of 4 boxes reach past their images, and none would .* right and bottom"):
        open_dataset(coco_json(annotations=corners))


def test_round_trip_keeps_everything(drawn: DetectionDataset, tmp_path: Path) -> None:
    for images in ("copy", "link"):
        folder = tmp_path / images
        assert coco.save(drawn, folder, split="val", images=images) == ()
        again = open_dataset(folder, split="val")
        assert (again.classes, again.category_ids) == (drawn.classes, drawn.category_ids)
        for before, after in zip(drawn.samples, again.samples, strict=True):
            assert before.size_wh == after.size_wh
            assert (before.image_id, before.object_ids) == (after.image_id, after.object_ids)
            np.testing.assert_allclose(before.boxes_xyxy, after.boxes_xyxy, atol=1e-9)
            np.testing.assert_array_equal(before.class_ids, after.class_ids)
            np.testing.assert_array_equal(before.is_crowd, after.is_crowd)
            np.testing.assert_array_equal(before.areas, after.areas)
            assert before.path.read_bytes() == after.path.read_bytes()
            assert after.path.is_symlink() == (images == "link")


def test_writing_without_moving_images(drawn: DetectionDataset, tmp_path: Path) -> None:
    coco.save(drawn, tmp_path / "out", images=None)
    again = open_dataset(tmp_path / "out")
    assert [sample.path for sample in again.samples] == [sample.path for sample in drawn.samples]


def test_a_folder_that_cannot_be_written(drawn: DetectionDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        coco.save(drawn, tmp_path / "file", images=None)


def test_nothing_partial_is_left(drawn: DetectionDataset, tmp_path: Path) -> None:
    coco.save(drawn, tmp_path / "out")
    coco.save(drawn, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["a.jpg", "train.json", "z.png", "z_2.jpg"]
    json.loads((tmp_path / "out/annotations/train.json").read_text())
