import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.core.format_names import TargetName
from deformable_detr.data import convert
from deformable_detr.data.convert import convert_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, voc
from deformable_detr.data.open import list_splits, open_dataset

TARGETS: tuple[TargetName, ...] = ("coco", "yolo", "voc")


@pytest.fixture
def source(drawn: DetectionDataset, tmp_path: Path) -> Path:
    """A COCO data set in two splits, with a crowd region, areas of its own, and ids with gaps."""
    first = replace(drawn.samples[0], areas=drawn.samples[0].areas / 2)
    coco.save(replace(drawn, samples=[first, *drawn.samples[1:]]), tmp_path / "in", split="train")
    coco.save(drawn.subset([2, 1]), tmp_path / "in", split="val")
    return tmp_path / "in"


def content(dataset: DetectionDataset) -> list[tuple[object, ...]]:
    """All of it that every format can hold: sizes, classes by name, boxes to a thousandth of a pixel."""
    return [
        (
            sample.size_wh,
            [dataset.classes[index] for index in sample.class_ids.tolist()],
            np.round(sample.boxes_xyxy, 3).tolist(),
            Image.open(sample.path).convert("RGB").tobytes(),
        )
        for sample in dataset.samples
    ]


@pytest.mark.parametrize("images", ["copy", "link"])
@pytest.mark.parametrize("to", TARGETS)
def test_all_splits_arrive(to: TargetName, images: str, source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = convert_dataset(
        source, tmp_path / "out", to=to, images=images, on_progress=lambda *numbers: seen.append(numbers)
    )
    assert seen == [(number, 5) for number in range(1, 6)]
    assert (done.to, done.source_format, done.classes) == (to, "coco", ("zebra", "ant", "été"))
    assert [(one.name, one.images, one.objects) for one in done.splits] == [("train", 3, 8), ("val", 2, 5)]
    assert list_splits(tmp_path / "out", format=to) == ("train", "val")
    for split in ("train", "val"):
        before, after = (open_dataset(path, split=split) for path in (source, tmp_path / "out"))
        assert content(after) == content(before)
        assert {sample.path.is_symlink() for sample in after.samples} == {images == "link"}
    lost = [(problem.where, problem.message.partition(":")[0]) for problem in done.not_kept]
    assert lost == (
        [
            ("split train", "1 crowd boxes are written as ordinary objects"),
            ("split train", "3 objects lose their own area"),
            ("split val", "1 crowd boxes are written as ordinary objects"),
        ]
        if to == "yolo"
        else []
    )
    assert not (tmp_path / "out" / ".partial").exists()


def test_a_way_through_all_formats_ends_where_it_began(source: Path, tmp_path: Path) -> None:
    for before, after, to in (("in", "1", "voc"), ("1", "2", "yolo"), ("2", "3", "voc"), ("3", "4", "coco")):
        convert_dataset(tmp_path / before, tmp_path / after, to=to)
    for split in ("train", "val"):
        first, last = (open_dataset(tmp_path / name, split=split) for name in ("in", "4"))
        assert content(last) == content(first)


def test_images_that_cannot_be_used_are_counted(source: Path, tmp_path: Path) -> None:
    (source / "images/train/a.jpg").unlink()
    done = convert_dataset(source, tmp_path / "out", to="coco")
    assert [(one.name, one.images) for one in done.splits] == [("train", 2), ("val", 2)]
    assert [(problem.where, problem.message) for problem in done.not_kept] == [
        ("split train", f"1 image left out as missing; `ddetr check-data {source}` lists them")
    ]
    for image in (source / "images/train").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="none of its 3 images is there"):
        convert_dataset(source, tmp_path / "out2", to="coco")
    assert not (tmp_path / "out2").exists()


def test_what_was_mended_is_counted(source: Path, tmp_path: Path) -> None:
    path = source / "annotations/val.json"
    document = json.loads(path.read_text())
    document["annotations"] += [
        {"id": 900 + n, "image_id": 42, "category_id": 8, "bbox": box}
        for n, box in enumerate(([1, 1, 0, 5], [2, 2, 3, 3], [2, 2, 3, 3], [30, 80, 20, 20]))
    ]
    path.write_text(json.dumps(document))
    done = convert_dataset(source, tmp_path / "out", to="voc")
    assert done.mended == {"degenerate_box": 1, "duplicate_box": 1, "clipped_box": 1}
    document["annotations"][-1]["bbox"] = [1, 1, -4, 5]
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="negative width"):
        convert_dataset(source, tmp_path / "out2", to="voc")


def test_splits_that_yolo_does_not_have(drawn: DetectionDataset, tmp_path: Path) -> None:
    voc.save(drawn, tmp_path / "in", split="train")
    stems = (tmp_path / "in/ImageSets/Main/train.txt").read_text().split()
    for name, lines in (("train", stems[:1]), ("val", stems[1:2]), ("trainval", stems)):
        (tmp_path / f"in/ImageSets/Main/{name}.txt").write_text("\n".join(lines))
    done = convert_dataset(tmp_path / "in", tmp_path / "yolo", to="yolo")
    assert [one.name for one in done.splits] == ["train", "val"]
    assert ("split trainval", "YOLO has no such split: left out, and 1 of its 3 images are in no other") in [
        (problem.where, problem.message) for problem in done.not_kept
    ]
    done = convert_dataset(tmp_path / "in", tmp_path / "coco", to="coco")
    assert [(one.name, one.images) for one in done.splits] == [("train", 1), ("val", 1), ("trainval", 3)]
    for name in ("train", "val"):
        (tmp_path / f"in/ImageSets/Main/{name}.txt").rename(tmp_path / f"in/ImageSets/Main/my{name}.txt")
    with pytest.raises(DataError, match="YOLO has the splits train, val, test, and this data set has mytrain, myval"):
        convert_dataset(tmp_path / "in", tmp_path / "no", to="yolo")


def test_classes_that_only_some_splits_have(drawn: DetectionDataset, tmp_path: Path) -> None:
    coco.save(drawn, tmp_path / "in", split="train")
    other = replace(drawn, classes=("owl", "ant", "zebra"), category_ids=(3, 4, 5))
    coco.save(other, tmp_path / "in", split="val")
    for to in TARGETS:
        done = convert_dataset(tmp_path / "in", tmp_path / to, to=to)
        assert done.classes == ("zebra", "ant", "été", "owl")
        for split in ("train", "val"):
            before, after = (open_dataset(tmp_path / name, split=split) for name in ("in", to))
            assert content(after) == content(before)
            assert set(after.classes) == set(done.classes)
    # The id of owl in val is that of zebra in train.
    assert open_dataset(tmp_path / "coco").category_ids == (3, 8, 90, 91)


def test_a_split_without_images_is_not_written(drawn: DetectionDataset, tmp_path: Path) -> None:
    """As for YOLO, where none of its images can be expressed."""
    coco.save(drawn, tmp_path / "in", split="train")
    coco.save(drawn.subset([0]), tmp_path / "in", split="val")
    Image.new("RGB", (9, 8)).save(tmp_path / "in/images/val/z.png")
    done = convert_dataset(tmp_path / "in", tmp_path / "out", to="yolo")
    assert [one.name for one in done.splits] == ["train"]
    assert ("split val", "it has no images: not written") in [
        (problem.where, problem.message) for problem in done.not_kept
    ]
    for name in ("z.png", "a.jpg", "z_2.jpg"):
        Image.new("RGB", (9, 8)).save(tmp_path / "in/images/train" / name)
    with pytest.raises(DataError, match="there are no images to convert in train, val"):
        convert_dataset(tmp_path / "in", tmp_path / "out2", to="yolo")


def test_pictures_that_are_displayed_turned(drawn: DetectionDataset, tmp_path: Path) -> None:
    """Boxes of the stored picture are no shares of the displayed one."""
    coco.save(drawn, tmp_path / "in", split="train")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (23, 59)).save(tmp_path / "in/images/train/a.jpg", exif=exif)
    done = convert_dataset(tmp_path / "in", tmp_path / "yolo", to="yolo")
    assert done.splits[0].images == 2
    assert done.not_kept[0].message.startswith("1 image left out as annotated in another size than displayed")
    done = convert_dataset(tmp_path / "in", tmp_path / "voc", to="voc")
    assert (done.splits[0].images, done.not_kept) == (3, ())


def test_folders_that_are_not_written_to(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("mine")
    for output, message in (
        ("full", "full is not empty; name another one"),
        ("full/a.txt", "a.txt is not a folder; name another one"),
        ("in", "in is not empty"),
        ("in/images/train/out", "lies among the images in"),
        ("full/a.txt/b", "cannot write to the output folder"),
        ("x" * 999, "cannot write to the output folder"),
        ("a\0b", "cannot write to the output folder"),
    ):
        with pytest.raises(OutputError, match=message):
            convert_dataset(source, tmp_path / output, to="coco")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a.txt"]
    assert not (source / "images/train/out").exists()
    (tmp_path / "empty").mkdir()
    convert_dataset(source, tmp_path / "empty", to="coco")
    convert_dataset(source, source / "inside", to="voc")  # beside the images
    assert len(open_dataset(source / "inside")) == 3


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_conversion_that_fails(
    error: BaseException, exists: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[object] = []
    copy = shutil.copyfile

    def fail(*places: Path) -> None:
        copies.append(copy(*places))
        if len(copies) == 4:
            raise error

    monkeypatch.setattr(shutil, "copyfile", fail)
    if exists:
        (tmp_path / "out").mkdir()
    with pytest.raises((OutputError, KeyboardInterrupt)):
        convert_dataset(source, tmp_path / "out", to="yolo")
    assert len(copies) == 4
    assert (tmp_path / "out").exists() is exists
    assert not exists or list((tmp_path / "out").iterdir()) == []


def test_a_class_name_that_the_format_cannot_hold(source: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        path = source / f"annotations/{split}.json"
        path.write_text(path.read_text().replace('"ant"', '" ant"'))
    with pytest.raises(DataError, match="VOC cannot hold the class name"):
        convert_dataset(source, tmp_path / "out", to="voc")
    assert not (tmp_path / "out").exists()


def test_what_is_read_back_otherwise_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(dataset: DetectionDataset, folder: Path, **options: object) -> tuple[()]:
        return coco.save(dataset.subset([0]), folder, **options)

    monkeypatch.setitem(convert._WRITERS, "coco", half)
    with pytest.raises(OutputError, match=r"split train is read back from COCO with 1 images, 3 objects .* and has 3"):
        convert_dataset(source, tmp_path / "out", to="coco")
    assert not (tmp_path / "out").exists()


def test_names_of_splits_that_would_change(drawn: DetectionDataset, tmp_path: Path) -> None:
    for split in ("captions_a", "b"):
        voc.save(drawn, tmp_path / "in", split=split)
    with pytest.raises(OutputError, match="splits b, captions_a are read back from COCO as train; rename them first"):
        convert_dataset(tmp_path / "in", tmp_path / "out", to="coco")
