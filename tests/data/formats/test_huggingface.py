import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.huggingface import find_splits
from deformable_detr.data.open import recognise

Rows = list[Any]


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """Writes metadata.jsonl, and an image of 50 x 30 for each row that names one."""

    def write(rows: Rows, place: str = "train") -> Path:
        for row in rows:
            if isinstance(row, dict) and isinstance(row.get("file_name"), str):
                photo(tmp_path / place / row["file_name"], (50, 30))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "metadata.jsonl").write_text(text)
        return tmp_path

    return write


def row(name: str = "a.png", objects: Any = None, **more: Any) -> dict[str, Any]:
    usual = {"bbox": [[1, 2, 10.5, 8], [3, 4, 5, 6]], "categories": [1, 0]}
    return {"file_name": name, "objects": usual if objects is None else objects, **more}


def objects(dataset: DetectionDataset, position: int = 0) -> list[tuple[str, list[float]]]:
    sample = dataset.samples[position]
    names = [dataset.classes[class_id] for class_id in sample.class_ids]
    return list(zip(names, sample.boxes_xyxy.tolist(), strict=True))


BOTH = [("1", [1, 2, 11.5, 10]), ("0", [3, 4, 8, 10])]


def card(names: str, indent: str = "          ") -> str:
    return (
        "---\nlicense: mit\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n"
        "    dtype:\n      class_label:\n        names:\n          '0': indoors\n  - name: objects\n    sequence:\n"
        f"    - name: categories\n      dtype:\n        class_label:\n{indent}names:{names}\n---\n# Title\n"
    )


def test_splits_and_numbers_as_names(folder: Callable[..., Path]) -> None:
    folder([row(), row("b.png", {"bbox": [], "categories": []})])
    path = folder([row("c.png", {"bbox": [[1, 2, 3, 4]], "categories": [10]})], "validation")
    assert recognise(path).format == "huggingface"
    assert list_splits(path) == ("train", "val")
    dataset = open_dataset(path)
    assert dataset.classes == ("0", "1", "10")
    assert dataset.problems == ()
    assert objects(dataset) == BOTH
    assert objects(dataset, 1) == []
    assert objects(open_dataset(path, split="val")) == [("10", [1, 2, 4, 6])]


@pytest.mark.parametrize("place", ["", "data/train", "train"])
def test_places(place: str, folder: Callable[..., Path]) -> None:
    path = folder([row("sub/a.png")], place)
    assert list_splits(path) == ("train",)
    assert open_dataset(path).num_objects == 2
    assert open_dataset(path / place / "metadata.jsonl").num_objects == 2


def test_one_file_for_all_splits(folder: Callable[..., Path]) -> None:
    rows = [row("train/a.png"), row("test/a.png", {"bbox": [[1, 2, 3, 4]], "categories": [5]}), row("other/a.png")]
    path = folder(rows, "")
    assert list_splits(path) == ("train", "test")
    dataset = open_dataset(path)
    assert [sample.path for sample in dataset.samples] == [path / "train/a.png"]
    assert dataset.classes == ("0", "1", "5")
    text = "1 rows name images in none of the folders test, train: left out"
    assert [problem.message for problem in dataset.problems] == [text]
    assert [sample.path for sample in open_dataset(path, split="test").samples] == [path / "test/a.png"]


def test_a_row_that_cannot_be_used_is_an_error_of_its_split(folder: Callable[..., Path]) -> None:
    rows: Rows = [
        row("val/a.png"),
        row("train/a.png", width=-3, height=30),
        row("val/b.png"),
        row("train/b.png", width=-4),
    ]
    path = folder(rows, "")
    found = recognise(path)
    for _ in range(2):
        assert len(found.open("val", strict=True)) == 2
        with pytest.raises(DataError, match=r"metadata\.jsonl:2: .*-3"):
            found.open("train", strict=False)
    text = (path / "metadata.jsonl").read_text()
    (path / "metadata.jsonl").write_text(text + "{\n")  # of no split
    with pytest.raises(DataError, match=r"metadata\.jsonl:2: .*-3"):
        open_dataset(path)
    with pytest.raises(DataError, match=r"metadata\.jsonl:5: not JSON"):
        open_dataset(path, split="val")


@pytest.mark.parametrize(
    "content",
    [
        {"bboxes": [[1, 2, 10.5, 8], [3, 4, 5, 6]], "category": [1, 0], "id": [7, 8]},
        {"bbox": [[1, 2, 10.5, 8], [3, 4, 5, 6]], "label": ["1", "0"]},
        [{"bbox": [1, 2, 10.5, 8], "category_id": 1}, {"bbox": [3, 4, 5, 6], "category_id": 0}],
    ],
)
def test_forms_of_objects(content: Any, folder: Callable[..., Path]) -> None:
    assert objects(open_dataset(folder([row(objects=content)]))) == BOTH


def test_crowds_areas_and_sizes(folder: Callable[..., Path]) -> None:
    content = {"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]], "category": ["a", "b"], "iscrowd": [0, 1], "area": [7.5, None]}
    (sample,) = open_dataset(folder([row(objects=content, width=50, height=30)])).samples
    assert sample.is_crowd.tolist() == [False, True]
    assert sample.areas.tolist() == [7.5, 12]
    assert sample.size_wh == (50, 30)


def test_names_from_the_card(folder: Callable[..., Path]) -> None:
    path = folder([row()])
    for names in ("\n            '0': cat\n            '1': dog\n            '2': yak", " [cat, dog, yak]"):
        (path / "README.md").write_text(card(names))
        dataset = open_dataset(path)
        assert dataset.classes == ("cat", "dog", "yak")
        assert [name for name, _ in objects(dataset)] == ["dog", "cat"]
    folder([row(objects={"bbox": [[1, 2, 3, 4]] * 2, "categories": [3, "yak"]})])
    dataset = open_dataset(path, strict=False)
    assert objects(dataset) == [("yak", [1, 2, 4, 6])]
    assert dataset.fatal_problems[0].message == "the class 3 is not among the 3 in the card of the data set"


@pytest.mark.parametrize("text", ["# Title\n", "---\nlicense: mit\n---\n", "---\ndataset_info: [3]\n---\n", "---\n"])
def test_cards_without_names(text: str, folder: Callable[..., Path]) -> None:
    path = folder([row()])
    (path / "README.md").write_text(text)
    assert open_dataset(path).classes == ("0", "1")


def test_a_card_that_multiplies(folder: Callable[..., Path]) -> None:
    path = folder([row()])
    lines = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    (path / "README.md").write_text(f"---\na0: &a0 [1]\n{lines}dataset_info: *a59\n---\n")
    assert open_dataset(path).classes == ("0", "1")


def test_a_broken_card_is_reported(folder: Callable[..., Path]) -> None:
    path = folder([row()])
    (path / "README.md").write_text("---\na: [\n---\n")
    (problem,) = open_dataset(path).problems
    assert problem.where == str(path / "README.md")
    assert problem.message.startswith("this card cannot be read, so numbers of classes are their names: not YAML")


def test_a_csv_with_json_in_it(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "train/a.png", (50, 30))
    content = json.dumps({"bbox": [[1, 2, 10.5, 8], [3, 4, 5, 6]], "categories": [1, 0]})
    with (tmp_path / "train/metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file_name", "objects"], ["a.png", content]])
    assert recognise(tmp_path).format == "huggingface"
    assert objects(open_dataset(tmp_path)) == BOTH
    (tmp_path / "train/metadata.csv").write_text("file_name,objects\na.png,{'bbox': []}\n")
    with pytest.raises(DataError, match=r"metadata\.csv:2: its objects are no JSON: .*; write metadata\.jsonl"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"bbox": [[1, 2, 3]], "categories": [0]},
            r"object 1: a box must be \[left, top, width, height\], not \[1, 2, 3",
        ),
        ({"bbox": [[1, 2, 3, "x"]], "categories": [0]}, "object 1: each value of a box must be a number"),
        ({"bbox": [[1, 2, 3, 4]], "categories": [None]}, "object 1: a class must be a whole number, not None"),
        ({"bbox": [[1, 2, 3, 4]], "categories": [0, 1]}, "objects has 1 bbox and 2 categories"),
        ({"bbox": [[1, 2, 3, 4]]}, "objects must have a list of boxes"),
        ({"corners": [[1, 2, 3, 4]], "label": [1]}, "objects must have a list of boxes"),
        ([{"bbox": [1, 2, 3, 4]}], "each of objects must have a box and a class"),
        (7, "objects must be lists of boxes and classes, not 7"),
        ({"bbox": [[1, 2, 3, 4]], "label": [0], "iscrowd": [3]}, "object 1: iscrowd must be 0 or 1, not 3"),
        ({"bbox": [[1, 2, -3, 4]], "label": [0]}, "object 1: the box .* has a negative width or height"),
    ],
)
def test_objects_that_cannot_be_used(content: Any, message: str, folder: Callable[..., Path]) -> None:
    path = folder([row(), row("b.png", content)])
    with pytest.raises(DataError, match=rf"metadata\.jsonl:2: {message}"):
        open_dataset(path)
    assert open_dataset(path, strict=False).num_objects == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.png", "objects": {}\n', r":1: not JSON"),
        ('{"file_name": "a.png", "objects": {}}\n\n[1]\n', r":3: expected an object, not \[1\]"),
        ('{"file_name": "a.png", "objects": {}}\n{"objects": {}}\n', ":2: it has no file_name"),
        ('{"file_name": 7, "objects": {}}\n', ":1: file_name must be text, not 7"),
    ],
)
def test_rows_that_cannot_be_used(text: str, message: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=rf"metadata\.jsonl{message}"):
        open_dataset(tmp_path)


def test_corners_in_place_of_sizes_stop(folder: Callable[..., Path]) -> None:
    corners = {"bbox": [[20, 10, 45, 28], [5, 6, 40, 29], [30, 2, 48, 30]], "categories": [0, 0, 0]}
    with pytest.raises(
        DataError, match="3 of 3 boxes reach past their images, and none would if the last two of the four"
    ):
        open_dataset(folder([row(objects=corners)]))
    corners["bbox"][0] = [1, 2, 1, 1]  # no corners
    assert open_dataset(folder([row(objects=corners)])).num_objects == 3


def test_metadata_of_other_tasks_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,3\n")
    for path in (tmp_path, tmp_path / "metadata.jsonl", tmp_path / "metadata.csv"):
        assert find_splits(path) == {}
