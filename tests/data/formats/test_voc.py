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
        (annotation("<object><name>cat</name></object>"), r"object 1 has no <bndbox>, <robndbox> or <polygon>"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            annotation(box(corners=("5,5", 5, "40,2", 20))),
            "object 1: <xmin> must be a number, not '5,5'; write decimals",
        ),
        (annotation(box("salt & pepper")), r"line 1, column \d+: not XML: .*; a bare & must be written &amp;"),
        (annotation(box("Kätzchen")).encode("latin-1"), "line 1 is not UTF-8; save the file as UTF-8, or begin it"),
        ("<root>" + box() + "</root>", "not a VOC annotation: the outer element is <root>"),
        (annotation("<object><name>cat</name><polygon/></object>"), "object 1: an area needs 3 points or more"),
    ],
)
def test_a_flaw_of_all_files_is_told_by_the_first(text: str | bytes, message: str, flat: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(flat(a=text))
    assert "that cannot be read" not in str(caught.value)
    with pytest.raises(DataError, match=rf"a\.xml: .*{message}.* \(and 2 more xml files that cannot be read\)"):
        open_dataset(flat(a=text, b=text, c=text, d=annotation()))


@pytest.mark.parametrize("encoding", ["GBK", "UTF-16", "utf-8", "Big5"])
def test_encodings(encoding: str, flat: Callable[..., Path]) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + annotation(box("貓"))
    dataset = open_dataset(flat(a=text.encode(encoding)))
    assert dataset.classes == ("貓",)
    assert dataset.samples[0].boxes_xyxy.tolist() == [[1, 2, 11, 22]]


def test_other_shapes_become_boxes_and_are_said_once(flat: Callable[..., Path]) -> None:
    rotated = "<robndbox><cx>20</cx><cy>15</cy><w>10</w><h>6</h><angle>1.5707963267948966</angle></robndbox>"
    polygon = "<polygon><x1>5</x1><y1>8.5</y1><x2>30</x2><y2>7</y2><x3>21</x3><y3>25</y3></polygon>"
    shapes = [f"<object><name>cat</name>{shape}</object>" for shape in (rotated, polygon, rotated)]
    dataset = open_dataset(flat(a=annotation(*shapes), b=annotation(shapes[1], box())))
    np.testing.assert_allclose(dataset.samples[0].boxes_xyxy[:2], [[17, 10, 23, 20], [5, 7, 30, 25]])
    np.testing.assert_allclose(dataset.samples[1].boxes_xyxy, [[5, 7, 30, 25], [1, 2, 11, 22]])
    assert [(problem.kind, problem.message) for problem in dataset.problems if problem.kind == "not_kept"] == [
        ("not_kept", "a rotated box (<robndbox>) becomes the box around it, in 2 cases"),
        ("not_kept", "a polygon without <bndbox> becomes the box around it, in 2 cases"),
    ]


def test_namespaces(flat: Callable[..., Path]) -> None:
    text = annotation(box()).replace("<annotation>", '<annotation xmlns="http://example.org/voc">')
    assert open_dataset(flat(a=text)).samples[0].boxes_xyxy.tolist() == [[1, 2, 11, 22]]


def test_xml_of_nearly_the_same_name(flat: Callable[..., Path], photo: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box()), b=annotation(box()), c=annotation(box()))
    (folder / "a.xml").rename(folder / "a.XML")
    assert not open_dataset(folder).problems
    (folder / "a.XML").rename(folder / "a.JPG.xml")
    with pytest.raises(DataError, match=r"a\.JPG\.xml: its name is nearly that of the image 'a\.JPG'") as caught:
        open_dataset(folder)
    assert "more" not in str(caught.value)
    # It belongs to the image that it names.
    (folder / "a.JPG.xml").write_text(annotation(box(), name="a.JPG"))
    assert not open_dataset(folder).problems


def test_twins(flat: Callable[..., Path], photo: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box()), b=annotation(box()))
    photo(folder / "a.png")
    with pytest.raises(DataError, match=r"a\.xml: the images 'a\.JPG', 'a\.png' are of its stem, and .* names neither"):
        open_dataset(folder)
    (folder / "a.xml").write_text(annotation(box(), name="a.png"))
    dataset = open_dataset(folder)
    assert [sample.path.name for sample in dataset.samples] == ["a.png", "b.JPG"]
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [("duplicate_image", False)]
    (folder / "b.XML").write_text(annotation(box()))
    with pytest.raises(DataError, match=r"b\.XML: 'b\.XML', 'b\.xml' are of one stem; keep one of them"):
        open_dataset(folder)


def test_an_xml_without_its_image_does_not_annotate_another(flat: Callable[..., Path]) -> None:
    folder = flat(a=annotation(box()), b=annotation(box(), name="a.JPG"))
    (folder / "b.JPG").unlink()
    with pytest.raises(DataError, match=r"b\.xml: its image 'a\.JPG' is that of .*a\.xml, too; is its own im"):
        open_dataset(folder)


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
