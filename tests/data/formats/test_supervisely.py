import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.formats.supervisely import find_splits
from deformable_detr.data.open import recognise
from tests.data.written_others import bitmap_data

RECTANGLE = {
    "classTitle": "car",
    "geometryType": "rectangle",
    "points": {"exterior": [[30, 20], [2, 4]], "interior": []},
}
POLYGON = {
    "classTitle": "tree",
    "geometryType": "polygon",
    "points": {"exterior": [[1, 1], [20, 2.5], [15, 30]], "interior": [[[3, 3], [4, 4], [5, 3]]]},
}
BITMAP = {
    "classTitle": "blob",
    "geometryType": "bitmap",
    "bitmap": {
        "origin": [3, 5],
        # 17 x 7 pixels, as the SDK writes them.
        "data": "eJzrDPBz5+WS4mJgYOD19HAJAtKCQMzOyAwkr+iY2AMptgCfEFcg/f///6U3598FshhLgvyCGRye3UgDciQ8XRxDKuYk/zl/4cSTA"
        "wcOlDQ0NnYyijIz2MQx9a0/v94RqIbB09XPZZ1TQhMAKXghxQ==",
    },
}
POINT = {"classTitle": "car", "geometryType": "point", "points": {"exterior": [[4, 3]], "interior": []}}


@pytest.fixture
def project(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """Writes data sets of one image each, with these objects, into one project."""

    def write(*objects: Any, folders: tuple[str, ...] = ("ds0",), name: str = "im 1.jpg", **more: Any) -> Path:
        classes = [{"title": title, "shape": "any", "color": "#8A0F21"} for title in ("tree", "car", "blob")]
        (tmp_path / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
        for shade, folder in enumerate(folders):
            photo(tmp_path / folder / "img" / name, (61, 37), shade)
            (tmp_path / folder / "ann").mkdir(parents=True, exist_ok=True)
            content = {"description": "", "size": {"height": 37, "width": 61}, "objects": list(objects), **more}
            (tmp_path / folder / "ann" / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_shapes(project: Callable[..., Path]) -> None:
    path = project(RECTANGLE, POLYGON, BITMAP, POINT)
    assert recognise(path).format == "supervisely"
    dataset = open_dataset(path)
    assert dataset.classes == ("tree", "car", "blob")
    assert [problem.message for problem in dataset.problems] == [
        "1 objects of shape 'point', which have no box: left out"
    ]
    (sample,) = dataset.samples
    assert sample.size_wh == (61, 37)
    assert sample.boxes_xyxy.tolist() == [[2, 4, 30, 20], [1, 1, 20, 30], [3, 5, 20, 12]]
    assert sample.class_ids.tolist() == [1, 0, 2]


def test_older_exports(project: Callable[..., Path]) -> None:
    """No kind of geometry, and files without the ending of the image in their names."""
    polygon, bitmap = ({key: one[key] for key in one if key != "geometryType"} for one in (POLYGON, BITMAP))
    path = project({**polygon, "bitmap": None}, {**bitmap, "points": None})
    (path / "ds0/ann/im 1.jpg.json").rename(path / "ds0/ann/im 1.json")
    dataset = open_dataset(path)
    assert dataset.problems == ()
    assert dataset.samples[0].boxes_xyxy.tolist() == [[1, 1, 20, 30], [3, 5, 20, 12]]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val"), ("train", "val")),
        (("train", "val-2"), ("train", "val")),
        (("ds0", "ds1", "test"), ("test", "ds0", "ds1")),
        (("ds0", "ds1"), ("train",)),
        (("",), ("train",)),
        (("a/datasets/b", "a"), ("train",)),
    ],
)
def test_splits(folders: tuple[str, ...], splits: tuple[str, ...], project: Callable[..., Path]) -> None:
    path = project(RECTANGLE, folders=folders)
    assert list_splits(path) == splits
    images = [sample.path for split in splits for sample in open_dataset(path, split=split).samples]
    assert sorted(images) == sorted(path / folder / "img/im 1.jpg" for folder in folders)


def test_one_data_set_of_a_project(project: Callable[..., Path]) -> None:
    path = project(RECTANGLE, folders=("a", "val"))
    assert list_splits(path / "a") == ("train",)
    assert list_splits(path / "val") == ("val",)
    assert open_dataset(path / "val").classes == ("tree", "car", "blob")


def test_large_bitmaps_are_not_unpacked(project: Callable[..., Path]) -> None:
    header = base64.b64decode(bitmap_data(17, 7))
    png = zlib.decompress(header)
    bomb = base64.b64encode(zlib.compress(png + bytes(50_000_000), 9)).decode()
    for data in (bomb, base64.b64encode(png).decode(), bitmap_data(17, 7)):
        dataset = open_dataset(project({**BITMAP, "bitmap": {"origin": [3, 5], "data": data}}))
        assert dataset.samples[0].boxes_xyxy.tolist() == [[3, 5, 20, 12]]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, "it is 7, not an object"),
        ({**RECTANGLE, "classTitle": None}, "classTitle must be text, not None"),
        ({**RECTANGLE, "classTitle": "yak"}, "'yak' is not among the 3 classes"),
        (
            {**RECTANGLE, "points": {"exterior": [[1, 2]]}},
            r"points\.exterior must be 2 points or more, not \[\[1, 2\]\]",
        ),
        ({**RECTANGLE, "points": None}, r"points\.exterior must be 2 points or more, not None"),
        ({**RECTANGLE, "points": {"exterior": [[1, 2], [3]]}}, r"a point must be \[x, y\], not \[3\]"),
        ({**RECTANGLE, "points": {"exterior": [[1, 2], [3, "x"]]}}, "a coordinate must be a number, not 'x'"),
        ({**POLYGON, "points": {"exterior": [[1, 2], [3, 4]]}}, r"points\.exterior must be 3 points"),
        ({**BITMAP, "bitmap": {"origin": [1, 2]}}, "bitmap must have data and origin"),
        ({**BITMAP, "bitmap": {"origin": [1, 2], "data": "!"}}, "no packed PNG"),
        ({**BITMAP, "bitmap": {"origin": [1, 2], "data": "AAAA"}}, "no packed PNG"),
        ({**BITMAP, "bitmap": {"origin": [1, 2], "data": bitmap_data(1, 1)[:12]}}, "no packed PNG"),
        ({**RECTANGLE, "geometryType": 3}, "geometryType must be text, not 3"),
    ],
)
def test_objects_that_cannot_be_used(item: Any, message: str, project: Callable[..., Path]) -> None:
    path = project(RECTANGLE, item)
    with pytest.raises(DataError, match=rf"im 1\.jpg\.json: object 2: {message}|{message}"):
        open_dataset(path)
    dataset = open_dataset(path, strict=False)
    assert dataset.num_objects == 1
    assert dataset.fatal_problems[0].where.endswith("im 1.jpg.json: object 2")


def test_bitmaps_of_no_size(project: Callable[..., Path]) -> None:
    item = {**BITMAP, "bitmap": {"origin": [1, 2], "data": bitmap_data(0, 7)}}
    with pytest.raises(DataError, match="a bitmap cannot be 0 x 7 pixels"):
        open_dataset(project(item))


def test_files_that_cannot_be_used(project: Callable[..., Path]) -> None:
    path = project(RECTANGLE, folders=("a", "b"))
    (path / "a/ann/im 1.jpg.json").write_text('{"objects": 7}')
    (path / "b/ann/im 1.jpg.json").write_text("{")
    dataset = open_dataset(path, strict=False)
    assert len(dataset) == 0
    assert "its objects are 7, not a list" in dataset.fatal_problems[0].message
    assert "not JSON" in dataset.fatal_problems[1].message
    (path / "meta.json").write_text('{"classes": {"title": 3}}')
    with pytest.raises(DataError, match=r"meta\.json: classes must be a list of objects"):
        open_dataset(path)


def test_what_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"name": "a package"}')
    for folder in ("img", "ann"):
        (tmp_path / folder).mkdir()
    assert find_splits(tmp_path) == {}
    (tmp_path / "meta.json").write_text('{"classes": [], "tags": []}')
    assert find_splits(tmp_path) == {}
