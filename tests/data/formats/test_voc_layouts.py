from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.data.open import list_splits, open_dataset

XML = """<annotation><filename>{name}</filename><object><name>{label}</name><bndbox>
<xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox></object></annotation>"""


def put(folder: Path, photo: Callable[..., Path], image: str, xml: str, label: str = "cat") -> None:
    path = photo(folder / image)
    (folder / xml).parent.mkdir(parents=True, exist_ok=True)
    (folder / xml).write_text(XML.format(name=path.name, label=label))


@pytest.mark.parametrize(
    ("image", "xml", "splits"),
    [
        ("JPEGImages/{stem}.jpg", "Annotations/{stem}.xml", "train"),
        ("images/{stem}.png", "annotations/{stem}.xml", "train"),
        ("{stem}.PNG", "{stem}.xml", "train"),
        ("{split}/{stem}.jpg", "{split}/{stem}.xml", "train val test"),
        ("images/{split}/{stem}.jpg", "images/{split}/{stem}.xml", "train val test"),
        ("{split}/images/{stem}.jpg", "{split}/annotations/{stem}.xml", "train val test"),
        ("VOC2007/JPEGImages/{stem}.jpg", "VOC2007/Annotations/{stem}.xml", "train"),
    ],
)
def test_layouts(image: str, xml: str, splits: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split in splits.split():
        for stem in ("one", "2.0 b"):
            put(tmp_path, photo, image.format(split=split, stem=stem), xml.format(split=split, stem=stem), split)
    assert list_splits(tmp_path) == tuple(splits.split())
    for split in splits.split():
        dataset = open_dataset(tmp_path, split=split)
        assert dataset.source.startswith("VOC")
        assert dataset.classes == tuple(sorted(splits.split()))
        assert [sample.path.stem for sample in dataset.samples] == ["2.0 b", "one"]
        assert dataset.objects_per_class()[split] == 2


@pytest.fixture
def listed(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """A folder of five images with the given lists: listed(train="a\\nb")."""

    def write(**lists: str) -> Path:
        for stem in ("a", "b", "c", "my d", "e"):
            put(tmp_path, photo, f"JPEGImages/{stem}.jpg", f"Annotations/{stem}.xml")
        for name, text in lists.items():
            path = tmp_path / f"ImageSets/Main/{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_lists_decide_order_and_splits(listed: Callable[..., Path]) -> None:
    folder = listed(
        train="c\na\n\n", val="my d\n", trainval="a\nc\nmy d\n", cat_train="a 1\nc -1\n", cat_trainval="a 1"
    )
    assert list_splits(folder) == ("train", "val", "trainval")
    assert [sample.path.stem for sample in open_dataset(folder).samples] == ["c", "a"]
    assert [sample.path.stem for sample in open_dataset(folder, split="val").samples] == ["my d"]


def test_lines_with_marks_endings_and_folders(listed: Callable[..., Path]) -> None:
    folder = listed(train="a  1\nb.jpg\nJPEGImages/c.jpg\nmy d -1\n")
    dataset = open_dataset(folder)
    assert [sample.path.stem for sample in dataset.samples] == ["a", "b", "c", "my d"]
    assert not dataset.problems


def test_repeated_and_missing_lines(listed: Callable[..., Path]) -> None:
    folder = listed(train="a\nb\na\nnothing.jpg\n")
    dataset = open_dataset(folder, strict=False)
    assert [(problem.kind, problem.fatal) for problem in dataset.problems] == [
        ("duplicate_image", False),
        ("missing_image", True),
    ]
    assert len(dataset) == 2


def test_an_image_is_found_by_what_the_xml_says_if_its_stem_is_not(tmp_path: Path, photo: Callable[..., Path]) -> None:
    put(tmp_path, photo, "JPEGImages/A1.jpg", "Annotations/a1.xml")
    put(tmp_path, photo, "JPEGImages/other.jpg", "Annotations/b.xml")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a1\nb\n")
    dataset = open_dataset(tmp_path)
    assert [sample.path.name for sample in dataset.samples] == ["A1.jpg", "other.jpg"]


def test_an_image_annotated_under_another_stem_is_there_once(tmp_path: Path, photo: Callable[..., Path]) -> None:
    put(tmp_path, photo, "a.jpg", "a.xml")
    put(tmp_path, photo, "b.jpg", "z.xml")
    dataset = open_dataset(tmp_path)
    assert [(sample.path.name, len(sample.class_ids)) for sample in dataset.samples] == [("a.jpg", 1), ("b.jpg", 1)]
    assert not dataset.problems
