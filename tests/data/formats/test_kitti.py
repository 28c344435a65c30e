import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.formats.kitti import find_splits, holds_kitti, kitti_object
from deformable_detr.data.formats.records import ObjectRecord
from deformable_detr.data.open import recognise

CAR = "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
REGION = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10\n"


def write(folder: Path, image: Path, labels: str, photo: Callable[..., Path]) -> Path:
    photo(image, (1242, 375))
    (folder / "000001.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "000001.txt").write_text(labels)
    return folder


def test_the_benchmark(tmp_path: Path, photo: Callable[..., Path]) -> None:
    cyclist = CAR.replace("Car", "Cyclist").replace("387.63", "676.60").replace("423.81", "688.98")
    write(tmp_path / "training/label_2", tmp_path / "training/image_2/000001.png", CAR + cyclist + REGION, photo)
    photo(tmp_path / "testing/image_2/000000.png")
    assert list_splits(tmp_path) == ("train",)
    for path in (tmp_path, tmp_path / "training"):
        dataset = open_dataset(path)
        assert dataset.source.startswith("KITTI")
        assert dataset.classes == ("Car", "Cyclist")
        assert dataset.problems == ()
        (sample,) = dataset.samples
        assert sample.size_wh == (1242, 375)
        region = [503.89, 169.71, 590.61, 190.13]
        expected = [[387.63, 181.54, 423.81, 203.12], [676.60, 181.54, 688.98, 203.12], region, region]
        assert sample.boxes_xyxy.tolist() == expected
        assert sample.class_ids.tolist() == [0, 1, 0, 1]
        assert sample.is_crowd.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("image_2", "label_2"),
        ("image", "label"),
        ("images", "labels"),
        ("data", "labels"),
        ("images/train", "labels/train"),
        ("train/images", "train/labels"),
        ("data_object_image_2/training/image_2", "data_object_label_2/training/label_2"),
    ],
)
def test_other_folders(images: str, labels: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    """Those that YOLO has, too, are told apart by what is in the files."""
    write(tmp_path / labels, tmp_path / images / "000001.png", CAR, photo)
    (tmp_path / "classes.txt").write_text("Car\n")
    assert recognise(tmp_path).format == "kitti"
    assert open_dataset(tmp_path).num_objects == 1


def test_yolo_is_something_else(tmp_path: Path, photo: Callable[..., Path]) -> None:
    polygon = "0 " + " ".join(["0.1"] * 14)
    write(tmp_path / "labels", tmp_path / "images/000001.png", f"0 0.5 0.5 0.1 0.2\n{polygon}\n", photo)
    assert find_splits(tmp_path) == {}
    assert not holds_kitti(tmp_path / "labels")


def test_lines() -> None:
    box = (387.63, 181.54, 423.81, 203.12)
    assert kitti_object(CAR, "x:1") == ObjectRecord("Car", box, "x:1")
    assert kitti_object(f"{CAR.strip()} 0.97", "x:1") == ObjectRecord("Car", box, "x:1")
    assert kitti_object(CAR.replace("Car", "traffic light"), "x:1") == ObjectRecord("traffic light", box, "x:1")
    assert kitti_object(CAR.replace("Car", "1"), "x:1") == "expected a type before the numbers, not '1'"
    for line, count in (("Car 1 2 3", 3), ("Car", 0), (f"{CAR.strip()} 0.97 1", 16), (CAR.replace("1.85", "x"), 11)):
        found = kitti_object(line, "x:1")
        assert isinstance(found, str)
        assert re.match(f"{count} numbers after the type; .* are 14", found)


def test_faults_name_their_line(tmp_path: Path, photo: Callable[..., Path]) -> None:
    write(tmp_path / "label_2", tmp_path / "image_2/000001.png", CAR + "Van 1 2 3\n", photo)
    with pytest.raises(DataError, match=r"000001\.txt:2: 3 numbers after the type"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, strict=False).num_objects == 1
