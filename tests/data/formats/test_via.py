import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.via import class_attribute
from deformable_detr.data.open import list_splits, open_dataset, recognise

SHAPES: list[dict[str, Any]] = [
    {"name": "rect", "x": 1, "y": 2, "width": 10, "height": 20},
    {"name": "polygon", "all_points_x": [3, 9, 6], "all_points_y": [4, 5, 20]},
    {"name": "circle", "cx": 20, "cy": 15, "r": 4.5},
    {"name": "ellipse", "cx": 20, "cy": 15, "rx": 8, "ry": 3},
    {"name": "ellipse", "cx": 20, "cy": 15, "rx": 8, "ry": 3, "theta": np.pi / 2},
    {"name": "point", "cx": 1, "cy": 1},
    {"name": "polyline", "all_points_x": [3, 9], "all_points_y": [4, 5]},
]
BOXES = [[1, 2, 11, 22], [3, 4, 9, 20], [15.5, 10.5, 24.5, 19.5], [12, 12, 28, 18], [17, 7, 23, 23]]


def entry(name: str, shapes: Sequence[dict[str, Any]], /, **attributes: Any) -> dict[str, Any]:
    regions = [{"shape_attributes": shape, "region_attributes": attributes} for shape in shapes]
    return {"filename": name, "size": 99, "regions": regions, "file_attributes": {}}


def write_project(path: Path, *entries: dict[str, Any]) -> None:
    images = {f"{one['filename']}99": one for one in entries}
    path.write_text(json.dumps({"_via_settings": {"core": {}}, "_via_img_metadata": images, "_via_attributes": {}}))


def write_export(path: Path, *entries: dict[str, Any]) -> None:
    path.write_text(json.dumps({f"{one['filename']}99": one for one in entries}))


def write_version_1(path: Path, *entries: dict[str, Any]) -> None:
    numbered = [{**one, "regions": {str(n): region for n, region in enumerate(one["regions"])}} for one in entries]
    write_export(path, *numbered)


def write_table(path: Path, *entries: dict[str, Any]) -> None:
    header = ["filename", "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes"]
    rows = [[*header, "region_attributes"]]
    for one in entries:
        regions = one["regions"] or [{"shape_attributes": {}, "region_attributes": {}}]
        for number, region in enumerate(regions):
            cells = [json.dumps(region[key]) for key in ("shape_attributes", "region_attributes")]
            rows.append([one["filename"], "99", "{}", str(len(one["regions"])), str(number), *cells])
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def opened(folder: Path, *entries: dict[str, Any], strict: bool = True) -> DetectionDataset:
    write_export(folder / "via_region_data.json", *entries)
    return open_dataset(folder, strict=strict)


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., Path]) -> Path:
    photo(tmp_path / "a.png", (50, 30))
    photo(tmp_path / "b.JPG", (20, 40))
    return tmp_path


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_project, "via_project.json"),
        (write_export, "via_region_data.json"),
        (write_version_1, "via_region_data.json"),
        (write_table, "via_export_csv.csv"),
    ],
)
def test_every_form_of_file(write: Callable[..., None], name: str, folder: Path) -> None:
    write(folder / name, entry("a.png", SHAPES, class_id="leaf", name="x"), entry("b.JPG", []))
    assert recognise(folder).format == recognise(folder / name).format == "via"
    dataset = open_dataset(folder)
    assert dataset.classes == ("leaf",)
    first, second = dataset.samples
    np.testing.assert_allclose(first.boxes_xyxy, BOXES, atol=1e-9)
    assert len(second.class_ids) == 0
    (ignored,) = dataset.problems
    assert ignored.message == "shapes without a box: 2 (point 1, polyline 1); left out"


def test_folders_of_splits_share_their_classes(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split, name in (("train", "cat"), ("val", "dog")):
        photo(tmp_path / split / "a.png", (50, 30))
        write_export(tmp_path / split / "via_region_data.json", entry("a.png", SHAPES[:1], object=name))
    assert list_splits(tmp_path) == ("train", "val")
    assert open_dataset(tmp_path).classes == open_dataset(tmp_path, split="val").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("regions", "attribute"),
    [
        ([{"class": "cat", "name": "Tom", "type": "tabby"}], "class"),
        ([{"Class ID": 3, "colour": "red"}], "Class ID"),
        ([{"type": "cat", "colour": "red"}, {"type": "dog"}], "type"),
        ([{"animal": "cat"}, {"animal": "dog", "colour": "red"}], "animal"),
        ([{"animal": {"cat": True}}, {}], "animal"),
        ([{}, {"animal": ""}], None),
        ([], None),
    ],
)
def test_the_attribute_that_is_the_class(regions: list[dict[str, Any]], attribute: str | None) -> None:
    assert class_attribute(regions, "x") == attribute


@pytest.mark.parametrize(
    ("regions", "names"),
    [
        ([{"class": "cat", "label": "Tom"}], "'class', 'label'"),
        ([{"name": "cat", "type": "Tom"}], "'name', 'type'"),
        ([{"animal": "cat", "colour": "red"}], "'animal', 'colour'"),
        ([{"animal": "cat"}, {"colour": "red"}], "'animal', 'colour'"),
    ],
)
def test_an_uncertain_class_is_refused(regions: list[dict[str, Any]], names: str) -> None:
    with pytest.raises(DataError, match=f"x: which attribute of a region is its class. It could be {names}; name"):
        class_attribute(regions, "x")


def test_regions_without_attributes_are_of_one_class(folder: Path) -> None:
    dataset = opened(folder, entry("a.png", SHAPES[:2]))
    assert dataset.classes == ("object",)
    assert [problem.message for problem in dataset.problems] == [
        "nothing names the class of an object: all are of the one class 'object'"
    ]


def test_ticked_boxes_and_regions_without_a_class(folder: Path) -> None:
    item = entry("a.png", SHAPES[:4])
    for region, value in zip(item["regions"], ({"cat": True}, {"dog": True, "cat": True}, {}, 7), strict=True):
        region["region_attributes"] = {"class": value}
    dataset = opened(folder, item, strict=False)
    assert dataset.classes == ("7", "cat")
    assert [(problem.where.split(": ")[1], problem.message) for problem in dataset.problems] == [
        ("a.png99, region 2", "class has several values: 'dog', 'cat'"),
        ("a.png99, region 3", "it has no 'class', which is the class of the others"),
    ]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"name": "rect", "x": 1, "y": 2, "width": 3}, "a.png99, region 1: height must be a number, not None"),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}, "it has 3 values of x and 2 of y"),
        ({"name": "polygon", "all_points_x": [1, 2, 3]}, "x and y of the points must be lists"),
        ({}, "the name of the shape must be text, not None"),
        ({"name": "circle", "cx": 1, "cy": 2, "r": -3}, "has a negative width or height"),
        (3, "expected shape_attributes and region_attributes, found 3"),
    ],
)
def test_regions_that_cannot_be_used(shape: Any, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened(folder, entry("a.png", [shape], label="cat"))


def test_rows_that_cannot_be_used(folder: Path) -> None:
    write_table(folder / "via.csv", entry("a.png", SHAPES[:3], label="cat"))
    lines = (folder / "via.csv").read_text().splitlines()
    lines[2] = lines[2].replace('""name""', '""name')
    lines[3] = "a.png,99"
    (folder / "via.csv").write_text("\n".join(lines))
    dataset = open_dataset(folder, strict=False)
    assert dataset.num_objects == 1
    assert [problem.where for problem in dataset.fatal_problems] == [f"{folder}/via.csv:3", f"{folder}/via.csv:4"]
    assert dataset.fatal_problems[1].message == "2 columns, and 7 are expected"
