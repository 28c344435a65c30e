import unicodedata
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


def test_keypoints_that_the_yaml_declares(yolo_folder: Callable[..., Path]) -> None:
    keypoints = " .45 .5 2 .5 .6 1"
    folder = yolo_folder(
        a=f"0 .5 .4 .8 .6{keypoints}\n1 .4 .5 .2 .4{keypoints}\n",
        b="0 .5 .4 .8 .6\n",
        yaml="train: images/train\nnames: [cat, dog]\nkpt_shape: [2, 3]\n",
    )
    dataset = open_dataset(folder)
    np.testing.assert_allclose(dataset.samples[0].boxes_xyxy, [[5, 3, 45, 21], [15, 9, 25, 21]])
    np.testing.assert_allclose(dataset.samples[1].boxes_xyxy, [[5, 3, 45, 21]])
    (problem,) = dataset.problems
    assert (problem.kind, problem.fatal, problem.where) == ("not_kept", False, f"{folder / 'data.yaml'} (train)")
    assert problem.message == "the box alone is read, not the 2 keypoints after it (kpt_shape: [2, 3]), in 2 lines"


def test_keypoints_that_nobody_declares_stop(yolo_folder: Callable[..., Path]) -> None:
    line = "0 .5 .5 .8 .6 .45 .45 .55 .45 .5 .5 .5 .55\n"
    folder = yolo_folder(a=f"0 .5 .5 .1 .1\n{line}", b=line)
    with pytest.raises(DataError, match=r"a\.txt:2: 13 columns may be a box with 4 keypoints or .*1 more of so"):
        open_dataset(folder)
    dataset = open_dataset(folder, strict=False)
    assert [len(sample.class_ids) for sample in dataset.samples] == [1, 0]
    for declared, box in (("[4, 2]", [5, 6, 45, 24]), ("null", [22.5, 13.5, 40, 18])):
        yolo_folder(a="", b=line, yaml=f"train: images/train\nnames: [cat, dog]\nkpt_shape: {declared}\n")
        np.testing.assert_allclose(open_dataset(folder).samples[1].boxes_xyxy, [box])


def test_other_splits_tell_polygons_from_keypoints(
    tmp_path: Path, photo: Callable[..., Path], yolo_folder: Callable[..., Path]
) -> None:
    line = "0 .5 .4 .55 .45 .55 .5 .52 .55 .48 .55\n"
    folder = yolo_folder(a=line, b="", yaml="train: images/train\nval: images/val\nnames: [cat, dog]\n")
    photo(tmp_path / "images/val/c.png")
    (tmp_path / "labels/val").mkdir()
    (tmp_path / "labels/val/c.txt").write_text("0 .1 .1 .2 .1 .2 .2\n")
    assert not open_dataset(folder).problems
    (tmp_path / "labels/val/c.txt").write_text("0 .1 .1 .2 .2\n")
    with pytest.raises(DataError, match=r"a\.txt:1: 11 columns may be"):
        open_dataset(folder)


def test_tracks_are_boxes_and_said_once(yolo_folder: Callable[..., Path]) -> None:
    lines = "0 0.5 0.5 0.2 0.2 0.91 3\n0 0.3 0.6 0.1 0.1 0.91 1\n"
    dataset = open_dataset(yolo_folder(a=lines, b=lines))
    for sample in dataset.samples:
        np.testing.assert_allclose(sample.boxes_xyxy, [[20, 12, 30, 18], [12.5, 16.5, 17.5, 19.5]])
    assert [problem.message for problem in dataset.problems] == [
        "the box alone is read, not the confidence and the track id after it, in 4 lines"
    ]


def test_polygons_outside_the_image_stop(yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder(a="0 .1 .2 .5 .9 .3 .1\n", b="0 .5 .5 .1 .1\n0 5 6 25 6 25 20 5 20\n")
    with pytest.raises(DataError, match=r"b\.txt:2: its 9 columns are no polygon: .* from \(5, 6\) to \(25, 20\)"):
        open_dataset(folder)
    assert [len(sample.class_ids) for sample in open_dataset(folder, strict=False).samples] == [1, 1]


def test_labels_of_nearly_the_same_name(yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder()
    labels = folder / "labels/train"
    (labels / "a.txt").rename(labels / "a.TXT")
    assert [len(sample.class_ids) for sample in open_dataset(folder).samples] == [1, 0]
    composed, apart = unicodedata.normalize("NFC", "müñé"), unicodedata.normalize("NFD", "müñé")
    (folder / "images/train/b.png").rename(folder / f"images/train/{composed}.png")
    (labels / "b.txt").write_text("1 .5 .5 .2 .4\n")
    (labels / "b.txt").rename(labels / f"{apart}.txt")
    assert [len(sample.class_ids) for sample in open_dataset(folder).samples] == [1, 1]
    for name in ("a.png.txt", "A.txt"):
        next(labels.glob("[aA].*")).rename(labels / name)
        with pytest.raises(DataError, match=rf"{name}: its name is nearly that of the image 'a\.png'"):
            open_dataset(folder)


def test_two_images_of_one_label_file(photo: Callable[..., Path], yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder()
    photo(folder / "images/train/a.jpg")
    with pytest.raises(DataError, match=r"a\.txt: the images 'a\.jpg', 'a\.png' share this label file"):
        open_dataset(folder)


def test_an_image_may_have_the_name_of_a_list(photo: Callable[..., Path], yolo_folder: Callable[..., Path]) -> None:
    folder = yolo_folder()
    photo(folder / "images/train/test.png")
    (folder / "labels/train/test.txt").write_text("0 .5 .5 .2 .4\n")
    (folder / "labels/train/notes.txt").write_text("no labels\n")
    assert [len(sample.class_ids) for sample in open_dataset(folder).samples] == [1, 0, 1]


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
        ("train: images/train\nnames: [cat, dog]\nkpt_shape: 17", r"kpt_shape must be two numbers, such as \[17, 3\]"),
        ("train: images/train\nnames: [cat, dog]\nkpt_shape: [17, x]", "kpt_shape must be a whole number, not 'x'"),
        ("train: images/train\nnames: [cat, dog]\nkpt_shape: [3, 17]", "each keypoint has 2 numbers, or 3"),
        ("train: images/train\nnames: [cat, dog]\nkpt_shape: [-1, 2]", "each keypoint has 2 numbers, or 3"),
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
