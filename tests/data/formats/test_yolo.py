from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import yolo
from deformable_detr.data.formats.yolo import LabelFault, LabelledBox, parse_labels
from deformable_detr.data.open import open_dataset


@pytest.fixture
def yolo_folder(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """Writes data.yaml, images/train/{a,b}.png of 50 x 30 and the given labels of each."""

    def write(a: str | bytes | None = "0 0.5 0.5 0.2 0.4\n", b: str | None = "", yaml: str = "") -> Path:
        for name, labels in (("a", a), ("b", b)):
            photo(tmp_path / f"images/train/{name}.png")
            label_file = tmp_path / f"labels/train/{name}.txt"
            label_file.parent.mkdir(parents=True, exist_ok=True)
            if labels is not None:
                label_file.write_bytes(labels.encode() if isinstance(labels, str) else labels)
        (tmp_path / "data.yaml").write_text(yaml or "train: images/train\nnames: [cat, dog]\n")
        return tmp_path

    return write


def test_samples(yolo_folder: Callable[..., Path]) -> None:
    dataset = open_dataset(yolo_folder(a="1 0.5 0.5 0.2 0.4\n\n0 .1 .2 .1 .2\n"))
    assert dataset.classes == ("cat", "dog")
    assert dataset.category_ids == (0, 1)
    assert not dataset.problems
    first, second = dataset.samples
    assert (first.path.name, first.size_wh, first.image_id, first.object_ids) == ("a.png", (50, 30), 1, (1, 2))
    np.testing.assert_allclose(first.boxes_xyxy, [[20, 9, 30, 21], [2.5, 3, 7.5, 9]])
    assert first.class_ids.tolist() == [1, 0]
    assert len(second.class_ids) == 0


def test_label_lines() -> None:
    text = "3 .5 .5 1 .5\r\n  \n0 .1 .2 .5 .9 .3 .1\nx 1 2 3 4\n0 1 2\n0 1 2 3 4 5\n1.5 1 2 3 4\n-1 1 2 3 4\n"
    assert parse_labels(text) == [
        LabelledBox(1, 3, (0, 0.25, 1, 0.75)),
        LabelledBox(3, 0, (0.1, 0.1, 0.5, 0.9)),
        LabelFault(4, "expected numbers, not 'x 1 2 3 4'"),
        LabelFault(5, "3 columns; a box has 5 (class, centre x, centre y, width, height), a polygon 7, 9, ..."),
        LabelFault(6, "6 columns; a box has 5 (class, centre x, centre y, width, height), a polygon 7, 9, ..."),
        LabelFault(7, "the class must be a whole number from 0, not '1.5'"),
        LabelFault(8, "the class must be a whole number from 0, not '-1'"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 .5 .5 .1 .1", r"a\.txt:2: class 2 is not among the 2"),
        ("0 .5 .5 nan .1", r"a\.txt:2: .* not a finite number"),
        ("0 .1 .1 .2 .2 nan .3", r"a\.txt:2: .* not a finite number"),
        ("0 .5 .5 1e308 .1", r"a\.txt:2: .* not a finite number"),
        ("0 .5 .5 -.1 .1", r"a\.txt:2: .* negative width"),
        ("0 3 .5 .1 .1", r"a\.txt:2: .* outside its image"),
        ("cat .5 .5 .1 .1", r"a\.txt:2: expected numbers"),
        ("0 .5 .5 .1", r"a\.txt:2: 4 columns"),
    ],
)
def test_lines_that_would_stop_training(line: str, message: str, yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder(a=f"0 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(DataError, match=message):
        open_dataset(folder)
    assert len(open_dataset(folder, strict=False).samples[0].class_ids) == 1


def test_labels_that_are_not_text(yolo_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"a\.txt: line 1: not UTF-8"):
        open_dataset(yolo_folder(a=b"\xff\xfe0"))


def test_a_missing_label_file_is_counted(yolo_folder: Callable[..., Path]) -> None:
    dataset = open_dataset(yolo_folder(b=None))
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [("unannotated_image", False)]
    assert [len(sample.class_ids) for sample in dataset.samples] == [1, 0]


def test_most_label_files_missing_is_fatal(yolo_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="2 of 2 images have no label file"):
        open_dataset(yolo_folder(a=None, b=None))


def test_orphan_labels_are_reported(yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder()
    (folder / "labels/train/c.txt").write_text("0 .5 .5 .1 .1")
    (folder / "labels/train/classes.txt").write_text("cat\ndog\n")
    dataset = open_dataset(folder)
    assert [(problem.kind, Path(problem.where).name) for problem in dataset.problems] == [
        ("orphan_annotation", "c.txt")
    ]


def test_unreadable_images_are_left_out(yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder()
    (folder / "images/train/a.png").write_bytes(b"nonsense")
    dataset = open_dataset(folder, strict=False)
    assert [sample.path.name for sample in dataset.samples] == ["b.png"]
    assert [problem.kind for problem in dataset.problems] == ["unreadable_image"]


def test_shares_are_of_the_displayed_image(tmp_path: Path, yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder(a="0 .5 .5 1 .5")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 30)).save(folder / "images/train/a.png", exif=exif)
    sample = open_dataset(folder).samples[0]
    assert sample.size_wh == (30, 50)
    assert sample.boxes_xyxy.tolist() == [[0, 12.5, 30, 37.5]]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("- 1", "not a YOLO data set"),
        ("train: images/train", "names must list the classes, not None"),
        ("train: images/train\nnames: []", "names must list the classes"),
        ("train: images/train\nnames: cat", "names must list the classes, not 'cat'"),
        ("train: images/train\nnames: [cat, no]", "class 1 is read as False; write it in quotes"),
        ("train: images/train\nnames: [cat, ~]", "class 1 is read as None"),
        ("train: images/train\nnames: [cat, [a]]", "the name of class 1 must be text"),
        ("train: images/train\nnames: [cat, cat]", "same class twice"),
        ("train: images/train\nnames: {a: cat}", "number of a class must be a whole number, not 'a'"),
        ("train: images/train\nnames: {-1: cat}", "number of a class cannot be -1"),
        ("train: images/train\nnames: {1: cat, '01': dog}", "same class twice"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3", "nc is 3 but names lists 2"),
        ("train: images/train\nnames: [cat, dog]\nnc: two", "nc must be a whole number"),
        ("train: [1]\nnames: [cat, dog]", "train must be text, not 1"),
        ("train: images/train\nnames: [cat, dog]\npath: [x]", "path must be text"),
        ("names: [cat, dog]", "names no split"),
        ("train: elsewhere\nnames: [cat, dog]", "no such folder or list: .*elsewhere"),
        ("train: images\nnames: [cat, dog", r"line 2, column \d+: not YAML"),
    ],
)
def test_descriptions_that_cannot_be_used(yaml: str, message: str, yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder(yaml=yaml)
    for path in (folder, folder / "data.yaml"):
        with pytest.raises(DataError, match=rf"data\.yaml.*{message}"):
            open_dataset(path)


def test_class_numbers_with_gaps_and_names_that_are_numbers(yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder(a="7 .5 .5 .1 .1", yaml="train: images/train\nnames: {7: 8, 2: ten}\nnc: 2")
    dataset = open_dataset(folder)
    assert (dataset.classes, dataset.category_ids) == (("ten", "8"), (2, 7))
    assert dataset.samples[0].class_ids.tolist() == [1]


def test_round_trip(drawn: DetectionDataset, tmp_path: Path) -> None:
    problems = yolo.save(drawn, tmp_path / "out", split="train")
    assert [(problem.kind, problem.message[:11]) for problem in problems] == [("not_kept", "1 crowd box")]
    yolo.save(drawn.subset([1, 2]), tmp_path / "out", split="val", images="link")
    again = open_dataset(tmp_path / "out")
    assert again.classes == drawn.classes
    assert not again.problems
    for before, after in zip(drawn.samples, again.samples, strict=True):
        np.testing.assert_allclose(before.boxes_xyxy, after.boxes_xyxy, atol=1e-9)
        np.testing.assert_array_equal(before.class_ids, after.class_ids)
    assert len(open_dataset(tmp_path / "out" / "data.yaml", split="val")) == 2


def test_areas_that_are_lost_are_reported(drawn: DetectionDataset, tmp_path: Path) -> None:
    samples = [replace(sample, areas=sample.areas * 0.7) for sample in drawn.samples[:1]]
    problems = yolo.save(replace(drawn, samples=samples), tmp_path / "out")
    assert [problem.message[:26] for problem in problems] == ["3 objects lose their own a"]


def test_writing_refuses_what_would_be_wrong(drawn: DetectionDataset, tmp_path: Path) -> None:
    yolo.save(drawn, tmp_path / "out")
    with pytest.raises(DataError, match="already holds a data set of other classes"):
        yolo.save(replace(drawn, classes=("a", "b", "c")), tmp_path / "out", split="val")
    with pytest.raises(DataError, match="knows the splits train, val and test, not 'fold'"):
        yolo.save(drawn, tmp_path / "out", split="fold")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", drawn.samples[0].size_wh).save(drawn.samples[0].path, exif=exif)
    with pytest.raises(DataError, match="as it is stored, which is displayed turned"):
        yolo.save(drawn, tmp_path / "other")


def test_loading_names_the_splits_there_are(yolo_folder: Callable[..., Any]) -> None:
    folder = yolo_folder()
    assert len(yolo.load(folder)) == 2
    with pytest.raises(DataError, match="no YOLO split 'val' here; there are train"):
        yolo.load(folder, split="val")
