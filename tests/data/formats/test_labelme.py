import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.data.open import list_splits, open_dataset, recognise


def shape(label: Any, points: Any, kind: str | None = "rectangle", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def write(path: Path, *shapes: Any, image: str | None = None, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": image or f"{path.stem}.png"}
    path.write_text(json.dumps({**document, "imageData": None, "imageHeight": 30, "imageWidth": 50, **more}))
    return path


BOX = shape("cat", [[1, 2], [11, 22.5]])


def test_every_shape_that_has_a_box(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))
    write(
        tmp_path / "a.json",
        shape("cat", [[11, 2], [1, 22.5]]),
        shape("dog", [[3, 4], [9, 5], [6, 20]], "polygon"),
        shape("dog", [[3, 4], [9, 5], [6, 20]], None),
        shape("cat", [[20, 15], [23, 19]], "circle"),
        shape("cat", [[7, 9], [9, 10]], "mask", mask="iVBORw0KGgo="),
        shape("dog", [[30, 10], [40, 12], [38, 22], [28, 20]], "oriented_rectangle"),
        shape("cat", [[1, 2], [5, 2], [5, 9]], "polygon", group_id=7),
        shape("dog", [[1, 2], [5, 2], [5, 9]], "polygon", group_id=7),
        shape("cat", [[11, 12], [15, 12], [15, 19]], "polygon", group_id=7),
        shape("cat", [[1, 1], [9, 9]], "line"),
        shape("cat", [[1, 1]], "point"),
        shape(4, [[1, 1], [2, 3]]),
    )
    assert recognise(tmp_path).format == "labelme"
    dataset = open_dataset(tmp_path)
    (sample,) = dataset.samples
    assert sample.path == tmp_path / "a.png"
    expected = [[1, 2, 11, 22.5], [3, 4, 9, 20], [3, 4, 9, 20], [15, 10, 25, 20], [7, 9, 10, 11], [28, 10, 40, 22],
                [1, 2, 15, 19], [1, 2, 5, 9], [1, 1, 2, 3]]  # fmt: skip
    np.testing.assert_allclose(sample.boxes_xyxy, expected)
    assert [dataset.classes[class_id] for class_id in sample.class_ids] == [
        "cat", "dog", "dog", "cat", "cat", "dog", "cat", "dog", "4",
    ]  # fmt: skip
    ignored, grouped, twice = dataset.problems
    assert ignored.message == "shapes without a box: 2 (line 1, point 1); left out"
    assert grouped.message == "shapes that belong to another one by group_id: 1; one box is around all of a group"
    assert (twice.kind, twice.where) == ("duplicate_box", f"{tmp_path}/a.json: shape 3")


@pytest.mark.parametrize(
    ("jsons", "images", "image"),
    [
        ("{split}/a.json", "{split}/a.png", None),
        ("labels/{split}/a.json", "images/{split}/a.png", None),
        ("{split}/labels/a.json", "{split}/images/a.png", "../images/a.png"),
        ("{split}/a.JSON", "{split}/a.png", "C:\\photos\\a.png"),
    ],
)
def test_splits(jsons: str, images: str, image: str | None, tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split, label in (("train", "cat"), ("val", "dog")):
        photo(tmp_path / images.format(split=split), (50, 30))
        write(tmp_path / jsons.format(split=split), shape(label, BOX["points"]), image=image)
    assert list_splits(tmp_path) == ("train", "val")
    for split in ("train", "val"):
        dataset = open_dataset(tmp_path, split=split)
        assert [sample.path.resolve() for sample in dataset.samples] == [tmp_path / images.format(split=split)]
        assert dataset.classes == ("cat", "dog")
        assert dataset.problems == ()


def test_one_json_is_a_data_set_of_one_image(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name in "ab":
        photo(tmp_path / f"{name}.png", (50, 30))
        write(tmp_path / f"{name}.json", BOX)
    assert [sample.path.name for sample in open_dataset(tmp_path / "b.json").samples] == ["b.png"]


def test_an_image_that_was_renamed_with_its_json(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "new.png", (50, 30))
    photo(tmp_path / "b.png", (50, 30), 7)
    write(tmp_path / "new.json", BOX, image="old.png")
    write(tmp_path / "b.json", BOX)
    dataset = open_dataset(tmp_path)
    assert [sample.path.name for sample in dataset.samples] == ["b.png", "new.png"]
    (remark,) = dataset.problems
    assert remark.where == str(tmp_path / "new.json")
    assert remark.message == "imagePath names 'old.png', which is not there: new.png is taken, by its own name"


def test_two_files_for_one_image_stop(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))
    photo(tmp_path / "b.png", (50, 30), 7)
    write(tmp_path / "a.json", BOX)
    write(tmp_path / "b.json", BOX, image="a.png")
    with pytest.raises(DataError, match=r"b\.json: .*a\.png is also the image of .*a\.json; each image has one json"):
        open_dataset(tmp_path)


def test_images_without_a_json_are_left_out_and_counted(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name in "abc":
        photo(tmp_path / f"{name}.png", (50, 30))
    write(tmp_path / "a.json", BOX)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1
    assert [problem.message for problem in dataset.problems] == [
        "images without a json, as if not annotated yet: 2 of 3; left out"
    ]


def test_a_picture_within_the_json_is_unpacked(
    tmp_path: Path, photo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    content = photo(tmp_path / "elsewhere/x.png", (50, 30)).read_bytes()
    data = base64.b64encode(content).decode()
    for name in ("a.png", "../photos/b.png", "no ending"):
        write(tmp_path / f"set/{Path(name).stem}.json", BOX, image=name, imageData=data)
    for _ in range(2):
        dataset = open_dataset(tmp_path / "set")
        assert sorted(sample.path.name for sample in dataset.samples) == ["a.png", "b.png", "picture.png"]
        assert all(sample.path.read_bytes() == content for sample in dataset.samples)
        (remark,) = dataset.problems
        expected = f"pictures that are only within a json: 3; unpacked into {tmp_path}/cache/labelme"
        assert remark.message == expected
    photo(tmp_path / "set/a.png", (50, 30))
    assert open_dataset(tmp_path / "set").samples[0].path == tmp_path / "set/a.png"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OutputError,
        match=r"cannot write .*; DEFORMABLE_DETR_CACHE names another folder for the picture within .*b\.json",
    ):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"a\.json: the image 'a.png' is missing, there is none named 'a' either, and the json holds no picture"),
        ("%%%", r"a\.json: imageData is not base64 text"),
        (base64.b64encode(b"%!PS-Adobe").decode(), r"a\.json: imageData cannot be read: not an image in a format"),
    ],
)
def test_no_picture_at_all(data: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set/a.json", BOX, imageData=data)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "set")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "a.json: shape 1 is 3, not an object"),
        (shape("", [[1, 2], [3, 4]]), "a.json: shape 1: the label must be text, not ''"),
        (shape("cat", [[1, 2]]), "a.json: shape 1: it has 1 points and needs 2 at least"),
        (shape("cat", [[1, 2], [3, 4]], "polygon"), "it has 2 points and needs 3 at least"),
        (shape("cat", None), "the points must be pairs of numbers, not None"),
        (shape("cat", [[1, "x"], [3, 4]]), "y of a point must be a number, not 'x'"),
        (shape("cat", [[1, math.nan], [3, 4]]), "not a finite number"),
    ],
)
def test_shapes_that_cannot_be_used(item: Any, message: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))
    write(tmp_path / "a.json", item)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_files_that_are_something_else_or_broken(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))
    write(tmp_path / "a.json", BOX)
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "b.json").write_text('{"shapes": [')
    write(tmp_path / "c.json", BOX, imageWidth=-3)
    write(tmp_path / "d.json", shapes=4)
    problems = {Path(one.where).name: (one.fatal, one.message) for one in open_dataset(tmp_path, strict=False).problems}
    assert problems["settings.json"] == (False, "it has no LabelMe shapes: ignored")
    assert problems["b.json"][0]
    assert "the file seems to be cut off" in problems["b.json"][1]
    assert problems["c.json"] == (True, "an image cannot be -3 x 30 pixels")
    assert problems["d.json"] == (True, "shapes must be a list, not 4")
