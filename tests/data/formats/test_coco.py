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
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "category name 'a' is used twice"),
        ({"categories": [{"id": "one", "name": "a"}]}, "category id must be a whole number, not 'one'"),
        ({"categories": [{"id": True, "name": "a"}]}, "category id must be a whole number, not True"),
        ({"categories": [{"id": 1}]}, "category name must be text, not None"),
        ({"images": [*IMAGES, *IMAGES]}, "image id 3 is used twice"),
        ({"images": [{"id": 1, "file_name": None}]}, r"images\[0\]: the file_name must be text"),
        ({"images": [{**IMAGES[0], "width": "wide"}]}, "the width must be a whole number"),
        ({"images": [{**IMAGES[0], "width": 0}]}, "cannot be 0 x 30 pixels"),
        ({"images": [{**IMAGES[0], "height": 10**9}]}, "cannot be 50 x 1000000000"),
        ({"annotations": [annotation(bbox=[1, 2, 3])]}, r"annotation 1: bbox must be \[left"),
        ({"annotations": [annotation(bbox=None)]}, r"annotation 1: bbox must be \[left"),
        ({"annotations": [annotation(bbox=[1, 2, "3", 4])]}, "each value of bbox must be a number, not '3'"),
        ({"annotations": [annotation(bbox=[1, 2, True, 4])]}, "each value of bbox must be a number, not True"),
        ({"annotations": [annotation(bbox=[1, 2, 10**400, 4])]}, "each value of bbox must be a number, not 1000"),
        ({"annotations": [annotation(iscrowd=2)]}, "iscrowd must be 0 or 1, not 2"),
        ({"annotations": [annotation(iscrowd="0")]}, "iscrowd must be 0 or 1, not '0'"),
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


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}", '{"images": []}'])
def test_json_of_something_else(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.json: not COCO annotations"):
        open_dataset(path)


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
