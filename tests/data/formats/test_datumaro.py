import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.datumaro import find_splits
from deformable_detr.data.formats.json_kinds import start_of_json
from deformable_detr.data.open import recognise

LABELS = [("zebra", ""), ("ant", ""), ("stripe", "zebra")]


@pytest.fixture
def project(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a project with one image of 61 x 37 and these annotations, as the exporter does."""

    def write(
        annotations: list[Any], labels: list[tuple[str, str]] = LABELS, split: str = "train", **item: Any
    ) -> Path:
        photo(tmp_path / "images" / split / "a.png", (61, 37))
        names = [{"name": name, "parent": parent, "attributes": []} for name, parent in labels]
        described = {"id": "a", "annotations": annotations, "image": {"path": "a.png", "size": [37, 61]}, **item}
        categories = {"label": {"labels": names, "label_groups": [], "attributes": []}}
        document = {"dm_format_version": "1.0", "infos": {}, "categories": categories, "items": [described]}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/{split}.json").write_text(json.dumps(document))
        return tmp_path

    return write


def bbox(label: int = 0, box: Any = (2.0, 3.0, 10.0, 8.0), **more: Any) -> dict[str, Any]:
    return {"id": 0, "type": "bbox", "attributes": {}, "group": 0, "label_id": label, "bbox": list(box), **more}


def polygon(*points: float, label: int = 1, group: int = 0) -> dict[str, Any]:
    return {"type": "polygon", "attributes": {}, "group": group, "label_id": label, "points": list(points)}


def mask(label: int = 1, crowd: bool = True) -> dict[str, Any]:
    pixels = np.zeros((37, 61), dtype=np.uint8)
    pixels[5:12, 3:20] = 1
    counts = coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()
    rle = {"counts": counts, "size": [37, 61]}
    return {"type": "mask", "attributes": {"is_crowd": crowd}, "group": 0, "label_id": label, "rle": rle}


def objects(dataset: DetectionDataset) -> list[tuple[str, list[float], bool]]:
    (sample,) = dataset.samples
    names = [dataset.classes[class_id] for class_id in sample.class_ids]
    return list(zip(names, sample.boxes_xyxy.tolist(), sample.is_crowd.tolist(), strict=True))


def test_boxes_polygons_and_masks(project: Callable[..., Path]) -> None:
    parts = [polygon(1, 1, 6, 2, 6, 6, label=2, group=3), polygon(11, 11, 16, 12, 16, 16, label=2, group=3)]
    ellipse = {**polygon(20, 20, 30, 28.5, label=0), "type": "ellipse"}
    path = project([bbox(), polygon(1, 1, 20, 2, 15, 25.5), *parts, mask(), ellipse])
    assert recognise(path).format == "datumaro"
    assert recognise(path / "annotations/train.json").format == "datumaro"
    dataset = open_dataset(path)
    assert dataset.classes == ("zebra", "ant", "stripe")
    assert dataset.problems == ()
    assert objects(dataset) == [
        ("zebra", [2, 3, 12, 11], False),
        ("ant", [1, 1, 20, 25.5], False),
        ("stripe", [1, 1, 16, 16], False),
        ("ant", [3, 5, 20, 12], True),
        ("zebra", [20, 20, 30, 28.5], False),
    ]


def test_what_has_no_box_is_counted(project: Callable[..., Path]) -> None:
    whole = {"type": "label", "label_id": 0, "group": 0}
    points = {"type": "points", "label_id": 0, "points": [1, 2], "group": 0}
    empty = {**mask(), "rle": {"counts": [37 * 61], "size": [37, 61]}}
    dataset = open_dataset(project([bbox(), whole, whole, points, empty]))
    assert dataset.num_objects == 1
    assert {problem.message for problem in dataset.problems} == {
        "2 annotations of type 'label' of whole images: left out",
        "1 annotations of type 'points', which have no box: left out",
        "1 annotations of type 'mask without a pixel', which have no box: left out",
    }


def test_polygons_that_belong_to_boxes(project: Callable[..., Path]) -> None:
    inside = polygon(3, 4, 9, 4, 9, 9, label=0, group=5)
    other = polygon(3, 4, 9, 4, 9, 9, label=1, group=5)  # a part of another class, such as a head
    dataset = open_dataset(project([bbox(group=5), inside, other, bbox(box=(20, 20, 5, 5), group=5)]))
    assert [name for name, _, _ in objects(dataset)] == ["zebra", "zebra", "ant"]
    assert [one.message for one in dataset.problems] == [
        "1 polygons and masks belong to boxes of their group: the boxes are read"
    ]


def test_labels_with_parents(project: Callable[..., Path]) -> None:
    """A name under two parents is told apart; a parent without an object in any split is no class."""
    labels = [("animal", ""), ("plant", ""), ("leaf", "plant"), ("leaf", "animal")]
    path = project([bbox(2), bbox(3, (20, 20, 5, 5))], labels)
    dataset = open_dataset(path)
    assert dataset.classes == ("plant/leaf", "animal/leaf")
    assert [one.message for one in dataset.problems] == ["the label 'animal', 'plant' only groups others: left out"]
    project([bbox(0)], labels, split="val")
    assert list_splits(path) == ("train", "val")
    assert open_dataset(path).classes == ("animal", "plant/leaf", "animal/leaf")
    assert open_dataset(path, split="val").classes == ("animal", "plant/leaf", "animal/leaf")


def test_images_without_a_path_are_found_by_id(project: Callable[..., Path], photo: Callable[..., Path]) -> None:
    for image in ({"size": [37, 61]}, {"path": ""}, {"path": None}):
        (sample,) = open_dataset(project([bbox()], image=image)).samples
        assert sample.path.name == "a.png"
    path = project([bbox()], id="sub/b", image={"path": ""})
    photo(path / "images/sub/b.jpg", (50, 30))
    assert open_dataset(path).samples[0].path == path / "images/sub/b.jpg"
    with pytest.raises(DataError, match="none of its 1 images is there, the first being 'gone'"):
        open_dataset(project([bbox()], id="gone", image={}))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (bbox(3), "label_id is 3, and there are 3 labels"),
        (bbox(-1), "label_id is -1"),
        ({**bbox(), "label_id": None}, "label_id must be a whole number, not None"),
        (bbox(box=(1, 2, 3)), r"bbox must be 4 numbers, not \[1, 2, 3\]"),
        (bbox(box=(1, 2, 3, "x")), "bbox must be a number, not 'x'"),
        (polygon(1, 2, 3, 4), "points must be three points or more"),
        (polygon(1, 2, 3, 4, 5, 6, 7), "points must be three points or more"),
        ({**mask(), "rle": {"counts": "abc", "size": [37, 61]}}, "runs"),
        ({**mask(), "rle": {"counts": [1, 2, 3], "size": [37, 61]}}, "6 pixels, and 61 x 37 are 2257"),
        ({**mask(), "rle": {"counts": [1, 2, 3], "size": [0, 61]}}, "the size of a mask must be"),
        ({**mask(), "rle": None}, "rle must have counts and size, not None"),
        ({**bbox(), "attributes": {"is_crowd": "no"}}, "is_crowd must be true or false, not 'no'"),
        ({**bbox(), "type": None}, "the type must be text, not None"),
        ([], r"it is \[\], not an object"),
        (bbox(box=(1, 2, -3, 4)), "has a negative width or height"),
        (bbox(box=(1, 2, 10**400, 4)), "bbox must be a number"),
    ],
)
def test_annotations_that_cannot_be_used(annotation: Any, message: str, project: Callable[..., Path]) -> None:
    path = project([bbox(1), annotation])
    with pytest.raises(DataError, match=rf"train\.json: item 'a', annotation 2: .*{message}"):
        open_dataset(path)
    assert open_dataset(path, strict=False).num_objects == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"categories": {"label": {"labels": []}}, "items": []}', "its categories name no labels"),
        ('{"categories": {"label": {"labels": [7]}}, "items": []}', "label 0 is 7, not an object"),
        ('{"categories": {"label": {"labels": [{"name": "a"}]}}}', "'items' is None, not a list"),
        ('{"categories": {"label": {"labels": [{"name": "a"}]}}, "items": [1]}', "item 1 is 1, not an object"),
        ('{"categories": {"label": {"labels": [{"name": "a"}]}}, "items": [{"id": "a"}]}', "its annotations are None"),
        ('{"categories": {"label": {"labels": [{"name": "a"}]}}, "items": []}', "there are no images to read here"),
        ('{"categories": {"label": {"labels": [{"name": "a"}]}}, "items": [{"annotations": []}]}', "the id of an item"),
        ('{"categories": {"label": {"labels": [', "not JSON"),
    ],
)
def test_files_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_coco_is_something_else(coco_json: Callable[..., Path]) -> None:
    assert start_of_json(coco_json()).kind != "datumaro"
    assert find_splits(coco_json()) == {}
    assert start_of_json(Path("nowhere.json")).kind != "datumaro"
    file = coco_json()
    file.write_text('{"categories": {"colours": {"red": 1}}, "items": []}')
    assert start_of_json(file).kind != "datumaro"
