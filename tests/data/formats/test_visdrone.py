import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.formats.records import ObjectRecord
from deformable_detr.data.formats.visdrone import CLASSES, find_splits, visdrone_object
from deformable_detr.evaluation.coco_metrics import coco_metrics


@pytest.fixture
def original(tmp_path: Path, photo: Callable[..., Path]) -> Path:
    """Two splits as the benchmark has them, with the trailing comma that some of its files have."""
    files = {
        "VisDrone2019-DET-train": "684,8,273,116,0,0,0,0\n406,119,265,70,1,4,0,2,\n255,22,119,128,0,11,0,0\n",
        "VisDrone2019-DET-test-dev": "10,20,30,40,1,1,0,0\n",
    }
    for folder, text in files.items():
        photo(tmp_path / folder / "images/0000002_00005_d_0000014.jpg", (960, 540))
        (tmp_path / folder / "annotations").mkdir()
        (tmp_path / folder / "annotations/0000002_00005_d_0000014.txt").write_text(text)
    return tmp_path


def test_ignored_regions_are_crowd_regions_of_each_class(original: Path) -> None:
    assert list_splits(original) == ("train", "test")
    dataset = open_dataset(original)
    assert dataset.classes == CLASSES
    assert dataset.category_ids == tuple(range(1, 12))
    assert dataset.problems == ()
    (sample,) = dataset.samples
    region = [684, 8, 957, 124]
    assert sample.boxes_xyxy.tolist() == [region] * 11 + [[406, 119, 671, 189], [255, 22, 374, 150]]
    assert sample.class_ids.tolist() == [*range(11), 3, 10]
    assert sample.is_crowd.tolist() == [True] * 11 + [False, True]
    assert len(set(sample.object_ids)) == 13


def test_detections_in_an_ignored_region_are_not_wrong(original: Path) -> None:
    """A better scored car in the region leaves the precision whole; the same car elsewhere halves it."""
    dataset = open_dataset(original)
    for left, precision in ((700.0, 1.0), (20.0, 0.5)):
        boxes = torch.tensor([[left, 20.0, left + 90, 60.0], [406.0, 119.0, 671.0, 189.0]])
        cars = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([3, 3]))
        assert coco_metrics([cars], dataset).per_class["car"].ap50 == pytest.approx(precision)


def test_one_split_by_its_folder(original: Path) -> None:
    assert list_splits(original / "VisDrone2019-DET-test-dev") == ("train",)
    assert open_dataset(original / "VisDrone2019-DET-test-dev").num_objects == 1


def test_faults_of_a_region_are_said_once(original: Path) -> None:
    file = original / "VisDrone2019-DET-train/annotations/0000002_00005_d_0000014.txt"
    file.write_text("1,2,0,4,0,0,0,0\n2000,2,5,4,0,0,0,0\n3,3,4,4,1,4,0,0\n")
    dataset = open_dataset(original, strict=False)
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [
        ("outside_box", True),
        ("degenerate_box", False),
    ]
    with pytest.raises(DataError, match=r"_0000014\.txt:2: the box from \(2000, 2\) .* lies outside its image"):
        open_dataset(original)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,1,4,0", "7 values"),
        ("1,2,3,4,1,4,0,0,0", "9 values"),
        ("a,2,3,4,1,4,0,0", "expected numbers"),
        ("1,2,3,4,0.93,4,-1,-1", r"the score must be 1, or 0 for what is ignored, not '0\.93'; are these detections"),
        ("1,2,3,4,1,12,0,0", "the category must be from 0 to 11, not '12'"),
        ("1,2,3,4,1,1.5,0,0", r"not '1\.5'"),
        ("1,2,3,4,1,nan,0,0", "not 'nan'"),
    ],
)
def test_lines_that_cannot_be_used(line: str, message: str) -> None:
    found = visdrone_object(line, "x:1")
    assert isinstance(found, str)
    assert re.search(message, found)


def test_a_line() -> None:
    assert visdrone_object(" 1, 2 ,3,4,1,10,1,2, \n", "x:1") == ObjectRecord("motor", (1, 2, 4, 6), "x:1")
    assert visdrone_object("1,2,3,4,0,5,0,0", "x:1") == ObjectRecord("van", (1, 2, 4, 6), "x:1", is_crowd=True)


@pytest.mark.parametrize("text", ["0 0.5 0.5 0.1 0.1\n", "1,1,10,20,30,40,1,4,0,0\n", "1,2,3,4,0.9,4,-1,-1\n", "[]"])
def test_other_text_is_something_else(text: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    """Of YOLO; of tracks with a frame and an identity; of detections."""
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.txt").write_text(text)
    assert find_splits(tmp_path) == {}
