from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.formats.dota import dota_object, find_splits
from deformable_detr.data.formats.records import ObjectRecord

LABELS = """imagesource:GoogleEarth
gsd:0.146343590398
275.0 463.0 411.0 587.0 312.0 600.0 222.0 532.0 small-vehicle 1
10 20 30 15 35 40 12 44 plane 0
"""


def write(folder: Path, photo: Callable[..., Path], labels: str = "labelTxt", text: str = LABELS) -> Path:
    photo(folder / "images/P0000.png", (700, 650))
    (folder / labels).mkdir(parents=True, exist_ok=True)
    (folder / labels / "P0000.txt").write_text(text)
    return folder


def test_the_benchmark(tmp_path: Path, photo: Callable[..., Path]) -> None:
    write(tmp_path / "train", photo)
    write(tmp_path / "val", photo, text=LABELS.replace("plane", "harbor"))
    photo(tmp_path / "test/images/P0006.png")
    assert list_splits(tmp_path) == ("train", "val")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("harbor", "plane", "small-vehicle")
    assert dataset.problems == ()
    (sample,) = dataset.samples
    assert sample.boxes_xyxy.tolist() == [[222, 463, 411, 600], [10, 15, 35, 44]]
    assert [dataset.classes[class_id] for class_id in sample.class_ids] == ["small-vehicle", "plane"]
    assert not sample.is_crowd.any()
    assert open_dataset(tmp_path / "val").num_objects == 2


@pytest.mark.parametrize("labels", ["labelTxt-v1.0", "labelTxt-v1.5/DOTA-v1.5_train", "annfiles", "labeltxt"])
def test_other_folders(labels: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    write(tmp_path, photo, labels)
    assert open_dataset(tmp_path).num_objects == 2


def test_upright_copies_beside_the_corners(tmp_path: Path, photo: Callable[..., Path]) -> None:
    """Archives of version 1.5 have both, for the same images."""
    write(tmp_path, photo, "labelTxt-v1.5/DOTA-v1.5_train")
    write(tmp_path, photo, "labelTxt-v1.5/DOTA-v1.5_train_hbb", LABELS.replace("275.0", "200.0"))
    dataset = open_dataset(tmp_path)
    assert dataset.problems == ()
    assert dataset.samples[0].boxes_xyxy[0].tolist() == [222, 463, 411, 600]


def test_two_versions_of_labels(tmp_path: Path, photo: Callable[..., Path]) -> None:
    write(tmp_path, photo, "labelTxt-v1.0")
    write(tmp_path, photo, "labelTxt-v1.5", LABELS + "1 1 5 1 5 5 1 5 plane 0\n")
    dataset = open_dataset(tmp_path)
    assert dataset.num_objects == 2
    assert dataset.problems[0].where == str(tmp_path / "labelTxt-v1.0")
    assert dataset.problems[0].message == "is read; labelTxt-v1.5 beside it is not"


def test_lines() -> None:
    box = (1.0, 1.5, 5.0, 6.0)
    corners = "1 1.5 5 2 5 6 1 5"
    for end, name in (("plane 0", "plane"), ("plane", "plane"), ("storage tank 2", "storage tank"), ("a 7x", "a 7x")):
        assert dota_object(f"{corners} {end}\n", "x:1") == ObjectRecord(name, box, "x:1")
    assert dota_object("ImageSource:Google Earth", "x:1") is dota_object("gsd:null", "x:1") is None
    for line, message in (
        ("1 2 3 4 5 6 7 plane 0", "expected four corners x y and a class, not '1 2 3 4 5 6 7 plane 0'"),
        (corners, "expected a class after the four corners: '1 1.5 5 2 5 6 1 5'"),
        (f"{corners} 0", f"expected a class after the four corners: '{corners} 0'"),
        (f"0 {corners}", f"expected a class after the four corners: '0 {corners}'"),
    ):
        assert dota_object(line, "x:1") == message


def test_boxes_past_their_image(tmp_path: Path, photo: Callable[..., Path]) -> None:
    write(tmp_path, photo, text="-4 2 30 2 30 20 -4 20 plane 0\n800 2 900 2 900 9 800 9 plane 0\n")
    with pytest.raises(DataError, match=r"P0000\.txt:2: the box from \(800, 2\) to \(900, 9\) lies outside"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, strict=False)
    assert dataset.samples[0].boxes_xyxy.tolist() == [[0, 2, 30, 20]]


def test_other_text_is_something_else(tmp_path: Path, photo: Callable[..., Path]) -> None:
    write(tmp_path, photo, text="0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n")
    assert find_splits(tmp_path) == {}
