from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import voc
from deformable_detr.data.open import list_splits, open_dataset


def box(name: str = "cat", corners: tuple[object, ...] = (1, 2, 11, 22), extra: str = "") -> str:
    sides = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{inner}</bndbox></object>"


def annotation(*objects: str, size: str = "<size><width>50</width><height>30</height></size>", name: str = "") -> str:
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def flat(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """Writes xml beside images of 50 x 30: flat(a=text, b=text)."""

    def write(**texts: str | bytes) -> Path:
        for stem, text in texts.items():
            photo(tmp_path / f"{stem}.JPG")
            (tmp_path / f"{stem}.xml").write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path

    return write


def test_samples(flat: Callable[..., Path]) -> None:
    folder = flat(
        a=annotation(
            box("dog"),
            box(" cat ", ("1.5", "2", " 3.25 ", "4"), "<difficult>1</difficult>"),
            box("cat", (0, 0, 50, 30), "<iscrowd>1</iscrowd><area>12.5</area>"),
        ),
        b=annotation(size=""),
    )
    dataset = open_dataset(folder)
    assert dataset.classes == ("cat", "dog")
    assert not dataset.problems
    first, second = dataset.samples
    assert (first.path.name, first.size_wh, first.image_id, first.object_ids) == ("a.JPG", (50, 30), 1, (1, 2, 3))
    assert first.boxes_xyxy.tolist() == [[1, 2, 11, 22], [1.5, 2, 3.25, 4], [0, 0, 50, 30]]
    assert first.class_ids.tolist() == [1, 0, 0]
    assert first.is_crowd.tolist() == [False, False, True]
    assert first.areas.tolist() == [200, 3.5, 12.5]
    assert (second.size_wh, len(second.class_ids)) == ((50, 30), 0)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size>none</size>"])
def test_sizes_that_are_none_come_from_the_image(size: str, flat: Callable[..., Path]) -> None:
    assert open_dataset(flat(a=annotation(box(), size=size))).samples[0].size_wh == (50, 30)


def test_classes_come_from_a_list_if_there_is_one(flat: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box("dog"), box("cat")))
    (folder / "labels.txt").write_text("wolf\ndog\n\n cat\n")
    dataset = open_dataset(folder)
    assert dataset.classes == ("wolf", "dog", "cat")
    assert dataset.samples[0].class_ids.tolist() == [1, 2]
    (folder / "labels.txt").write_text("dog\n")
    with pytest.raises(DataError, match=r"a\.xml: object 2 \(cat\): .*labels\.txt does not list 'cat'"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml: line 1, column 13: not XML"),
        ("<project/>", "not a VOC annotation: the outer element is <project>"),
        (annotation("<object><name>cat</name></object>"), r"object 1 has no <xmin> in a <bndbox>"),
        (annotation(box(), box(corners=(1, 2, "x", 4))), r"object 2: <xmax> must be a number, not 'x'"),
        (annotation(box(name="")), "object 1: <name> must be text"),
        (annotation(box(corners=(9, 2, 3, 4))), r"object 1 \(cat\): .*negative width"),
        (annotation(box(corners=("nan", 2, 3, 4))), r"object 1 \(cat\): .*not a finite"),
        (annotation(box(corners=(51, 2, 60, 4))), r"object 1 \(cat\): .*outside its image"),
        ('<!DOCTYPE a [<!ENTITY b "b">]><annotation>&b;</annotation>', "entities are not accepted"),
    ],
)
def test_annotations_that_would_stop_training(text: str, message: str, flat: Callable[..., Path]) -> None:
    folder = flat(a=text, b=annotation(box()), c=annotation(box("dog")))
    with pytest.raises(DataError, match=message):
        open_dataset(folder)
    dataset = open_dataset(folder, strict=False)
    assert [problem.fatal for problem in dataset.problems] == [True]
    assert dataset.classes == ("cat", "dog")


def test_images_without_xml_and_xml_without_images(flat: Callable[..., Path], photo: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box()), c=annotation(box()))
    photo(folder / "b.png")
    dataset = open_dataset(folder)
    assert [len(sample.class_ids) for sample in dataset.samples] == [1, 0, 1]
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [("unannotated_image", False)]
    (folder / "d.xml").write_text(annotation(box()))
    with pytest.raises(DataError, match=r"d\.xml: the image is missing: no file 'd'"):
        open_dataset(folder)


def test_most_xml_missing_is_fatal(flat: Callable[..., Path], photo: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box()))
    for name in "bc":
        photo(folder / f"{name}.png")
    with pytest.raises(DataError, match="2 of 3 images have no xml file"):
        open_dataset(folder)


def test_no_objects_at_all(flat: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no xml names an object"):
        open_dataset(flat(a=annotation()))


def test_an_unreadable_image_without_size(flat: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box(), size=""), b=annotation(box()))
    (folder / "a.JPG").write_bytes(b"nonsense")
    dataset = open_dataset(folder, strict=False)
    assert [problem.kind for problem in dataset.problems] == ["unreadable_image"]
    assert [sample.path.name for sample in dataset.samples] == ["b.JPG"]


def test_round_trip(drawn: DetectionDataset, tmp_path: Path) -> None:
    samples = [replace(sample, areas=sample.areas * 0.7) for sample in drawn.samples]
    own_areas = replace(drawn, samples=samples)
    folder = tmp_path / "out"
    assert voc.save(own_areas.subset([1, 2]), folder, split="val") == ()
    assert voc.save(own_areas, folder, split="train", images="link") == ()
    assert voc.save(own_areas, folder, split="train", images="link") == ()
    assert list_splits(folder) == ("train", "val")
    again = open_dataset(folder)
    assert again.classes == drawn.classes
    assert not again.problems
    for before, after in zip(samples, again.samples, strict=True):
        np.testing.assert_array_equal(before.boxes_xyxy, after.boxes_xyxy)
        np.testing.assert_array_equal(before.class_ids, after.class_ids)
        np.testing.assert_array_equal(before.is_crowd, after.is_crowd)
        np.testing.assert_array_equal(before.areas, after.areas)
    assert len(list((folder / "JPEGImages").iterdir())) == 5
    assert len(open_dataset(folder, split="val")) == 2


@pytest.mark.parametrize("name", [" cat", "two\nlines", "bell\a"])
def test_names_that_xml_or_lists_cannot_hold(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="VOC cannot hold the class name"):
        voc.save(replace(drawn, classes=("a", "b", name)), tmp_path / "out")


def test_other_classes_are_not_mixed_in(drawn: DetectionDataset, tmp_path: Path) -> None:
    voc.save(drawn, tmp_path / "out")
    with pytest.raises(DataError, match="already holds a data set of other classes"):
        voc.save(replace(drawn, classes=("a", "b", "c")), tmp_path / "out", split="val")


def test_loading_names_the_splits_there_are(flat: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box()))
    assert len(voc.load(folder)) == 1
    with pytest.raises(DataError, match="no VOC split 'val' here; there are train"):
        voc.load(folder, split="val")
