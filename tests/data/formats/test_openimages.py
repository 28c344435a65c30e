from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data import list_splits, open_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.openimages import find_splits, is_openimages
from deformable_detr.data.open import recognise

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
ROWS = """000a,xclick,/m/01x,1,0.2,0.6,0.1,0.5,0,0,0,0,0
000b,xclick,/m/02y,1,0,1,0.25,0.75,0,1,1,0,0
000a,activemil,/m/02y,1,0.5,0.75,0.5,1,1,0,-1,0,0
"""
NAMES = "/m/01x,Tortoise\n/m/02y,Container\n/m/03z,Magpie\n"


@pytest.fixture
def original(tmp_path: Path, photo: Callable[..., Path]) -> Path:
    """Two splits with csv files and folders as they are downloaded."""
    for name, shade in (("train/000a.jpg", 1), ("train/000b.jpg", 2), ("validation/000c.jpg", 3)):
        photo(tmp_path / name, (50, 40), shade)
    (tmp_path / "oidv6-train-annotations-bbox.csv").write_text(f"{HEADER}\n{ROWS}")
    row = ROWS.splitlines()[0].replace("000a", "000c").replace("/m/01x", "/m/03z")
    (tmp_path / "validation-annotations-bbox.csv").write_text(f"{HEADER}\n{row}\n")
    (tmp_path / "class-descriptions-boxable.csv").write_text(NAMES)
    return tmp_path


def objects(dataset: DetectionDataset) -> dict[str, list[tuple[str, list[float], bool]]]:
    return {
        sample.path.name: [
            (dataset.classes[class_id], box, crowd)
            for class_id, box, crowd in zip(
                sample.class_ids, sample.boxes_xyxy.tolist(), sample.is_crowd.tolist(), strict=True
            )
        ]
        for sample in dataset.samples
    }


EXPECTED = {
    "000a.jpg": [("Tortoise", [10, 4, 30, 20], False), ("Container", [25, 20, 37.5, 40], False)],
    "000b.jpg": [("Container", [0, 10, 50, 30], True)],
}


def test_the_original(original: Path) -> None:
    assert recognise(original).format == "openimages"
    assert list_splits(original) == ("train", "val")
    dataset = open_dataset(original)
    assert dataset.classes == ("Container", "Magpie", "Tortoise")
    assert dataset.problems == ()
    assert objects(dataset) == EXPECTED
    assert list(objects(open_dataset(original, split="val"))) == ["000c.jpg"]
    alone = open_dataset(original / "oidv6-train-annotations-bbox.csv")
    assert alone.classes == ("Container", "Tortoise")
    assert objects(alone) == EXPECTED


@pytest.mark.parametrize(
    ("table", "names", "images"),
    [
        ("annotations/train-annotations-bbox.csv", "annotations/class-descriptions.csv", "images/train"),
        ("train/labels/detections.csv", "train/metadata/classes.csv", "train/data"),
        ("csv_folder/train-annotations-bbox.csv", "csv_folder/class-descriptions-boxable.csv", "train"),
        ("train/train-annotations-bbox.csv", "train/class-descriptions.csv", "train"),
        ("boxes.csv", "class-descriptions-boxable.csv", "images"),
        ("boxes.csv", "class-descriptions-boxable.csv", "data"),
        ("boxes.csv", "class-descriptions-boxable.csv", ""),
        ("train-annotations-bbox.csv", "class-descriptions-boxable.csv", "train/part"),
    ],
)
def test_other_layouts(table: str, names: str, images: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name, text in ((table, f"{HEADER}\n{ROWS}"), (names, f"LabelName,DisplayName\n{NAMES}")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for number in (0, 1):
        photo(tmp_path / images / f"000{'ab'[number]}.jpg", (50, 40), number)
    assert recognise(tmp_path).format == "openimages"
    assert list_splits(tmp_path) == ("train",)
    assert objects(open_dataset(tmp_path)) == EXPECTED


def test_parts_of_a_split(original: Path, photo: Callable[..., Path]) -> None:
    """The training images come in archives train_0, train_1, ...; nothing of another split is taken for them."""
    for number, name in enumerate(("000a.jpg", "000b.jpg")):
        (original / f"train_{number}").mkdir()
        (original / "train" / name).rename(original / f"train_{number}" / name)
    (original / "train").rmdir()
    photo(original / "validation/000a.jpg", (50, 40), 9)
    dataset = open_dataset(original)
    assert [sample.path.parent.name for sample in dataset.samples] == ["train_0", "train_1"]


def test_images_of_another_split_are_not_taken(original: Path, photo: Callable[..., Path]) -> None:
    (original / "train/000b.jpg").rename(original / "validation/000b.jpg")
    with pytest.raises(DataError, match=r"1 of 2 images are missing, the first being '000b'; --skip-bad-images"):
        open_dataset(original)
    dataset = open_dataset(original, strict=False)
    assert list(objects(dataset)) == ["000a.jpg"]
    assert dataset.fatal_problems[0].kind == "missing_image"


def test_codes_without_a_name(original: Path) -> None:
    (original / "class-descriptions-boxable.csv").write_text("/m/01x,Tortoise\n/m/03z,Tortoise\n")
    dataset = open_dataset(original)
    assert dataset.classes == ("/m/02y", "Tortoise (/m/01x)", "Tortoise (/m/03z)")
    assert [problem.message for problem in dataset.problems] == [
        "there is no description of '/m/02y': the codes are the names"
    ]
    (original / "class-descriptions-boxable.csv").unlink()
    assert open_dataset(original).classes == ("/m/01x", "/m/02y", "/m/03z")
    assert open_dataset(original).problems == ()


def test_columns_in_any_order_and_classes_not_seen(original: Path) -> None:
    text = (
        '"LabelName","ImageID","YMin","YMax","XMin","XMax","Confidence"\r\n"/m/01x","000a.jpg",0.1,0.5,0.2,0.6,1.0\r\n'
    )
    text += "/m/02y,000b,0.1,0.5,0.2,0.6,0\r\n"
    (original / "oidv6-train-annotations-bbox.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = open_dataset(original)
    assert objects(dataset) == {"000a.jpg": [("Tortoise", [10, 4, 30, 20], False)], "000b.jpg": []}
    assert [problem.message for problem in dataset.problems] == [
        "1 rows of classes that are not in the image (confidence 0): left out"
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("000a,x,/m/01x,1,0.2", r"bbox\.csv:5: 5 columns, and the header names 13"),
        ("000a,x,/m/01x,1,0.2,b,0.1,0.5,0,0,0,0,0", r"bbox\.csv:5: XMin, YMin, XMax, YMax must be numbers, not "),
        ("000a,x,,1,0.2,0.6,0.1,0.5,0,0,0,0,0", r"bbox\.csv:5: ImageID or LabelName is empty"),
        (",x,/m/01x,1,0.2,0.6,0.1,0.5,0,0,0,0,0", r"bbox\.csv:5: ImageID or LabelName is empty"),
        ("000a,x,/m/01x,1,0.6,0.2,0.1,0.5,0,0,0,0,0", r"bbox\.csv:5: the box .* has a negative width"),
        ("000a,x,/m/01x,1,nan,0.2,0.1,0.5,0,0,0,0,0", r"bbox\.csv:5: the box .* not a finite number"),
    ],
)
def test_rows_that_cannot_be_used(row: str, message: str, original: Path) -> None:
    with (original / "oidv6-train-annotations-bbox.csv").open("a") as stream:
        stream.write(f"{row}\n")
    with pytest.raises(DataError, match=message):
        open_dataset(original)
    assert objects(open_dataset(original, strict=False)) == EXPECTED


def test_files_that_cannot_be_used(original: Path) -> None:
    table = original / "oidv6-train-annotations-bbox.csv"
    table.write_bytes(f"{HEADER}\n".encode() + b"\xff,1\n")
    with pytest.raises(DataError, match=r"bbox\.csv, line 1: not csv in UTF-8"):
        open_dataset(original)
    table.write_text(f"{HEADER}\n" + "x" * 200_000)
    with pytest.raises(DataError, match=r"bbox\.csv, line 2: not csv in UTF-8: field larger than field limit"):
        open_dataset(original)
    table.write_text(HEADER)
    (original / "validation-annotations-bbox.csv").unlink()
    with pytest.raises(DataError, match=r"bbox\.csv: none of its boxes belongs to an image that is here"):
        open_dataset(original)


def test_other_tables_are_something_else(tmp_path: Path) -> None:
    for number, header in enumerate(
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "ImageID,Source,LabelName,Confidence", "a;b", "")
    ):
        (tmp_path / f"{number}.csv").write_text(f"{header}\n1,2,3,4,5,6,7,8\n")
        assert not is_openimages(tmp_path / f"{number}.csv")
    assert not is_openimages(tmp_path / "none.csv")
    assert find_splits(tmp_path) == {}
