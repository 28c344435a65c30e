import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
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
        ("images/{stem}.jpg", "annots/{stem}.xml", "train"),
        ("photos/{stem}.jpg", "labels/xmls/{stem}.xml", "train"),
        ("{stem}.jpg", "xmls/{stem}.xml", "train"),
        ("photos/{split}/{stem}.jpg", "annots/{split}/{stem}.xml", "train val test"),
        ("data/{split}/image/{stem}.jpg", "data/{split}/label/{stem}.xml", "train val test"),
        ("{split}_images/{stem}.jpg", "{split}_annots/{stem}.xml", "train"),
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


@pytest.mark.parametrize("image", ["photos/{split}/{split}{stem}.jpg", "photos/{split}{stem}.jpg"])
@pytest.mark.parametrize("xml", ["annots/{split}/{split}{stem}.xml", "annots/{split}{stem}.xml"])
def test_folders_that_splits_have_in_common(image: str, xml: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split in ("train", "val"):
        for stem in range(2 if split == "train" else 1):
            put(tmp_path, photo, image.format(split=split, stem=stem), xml.format(split=split, stem=stem), split)
    if "/{split}/" not in image + xml:
        assert list_splits(tmp_path) == ("train",)
        return
    assert list_splits(tmp_path) == ("train", "val")
    for split, stems in (("train", ["train0", "train1"]), ("val", ["val0"])):
        dataset = open_dataset(tmp_path, split=split)
        assert [sample.path.stem for sample in dataset.samples] == stems
        assert not dataset.problems
        assert dataset.objects_per_class()[split] == len(stems)


def test_a_devkit_beside_another_folder(tmp_path: Path, photo: Callable[..., Path]) -> None:
    put(tmp_path, photo, "VOC2007/JPEGImages/a.jpg", "VOC2007/Annotations/a.xml")
    for name, text in (("VOC2007/ImageSets/Main/train.txt", "a\n"), ("scripts/notes.txt", "a\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    dataset = open_dataset(tmp_path)
    assert [sample.path for sample in dataset.samples] == [tmp_path / "VOC2007/JPEGImages/a.jpg"]
    assert not dataset.problems


def test_an_xml_that_no_split_has_an_image_of(tmp_path: Path, photo: Callable[..., Path]) -> None:
    put(tmp_path, photo, "images/train/a.jpg", "annots/a.xml")
    put(tmp_path, photo, "images/val/b.jpg", "annots/b.xml")
    (tmp_path / "annots/c.xml").write_text(XML.format(name="c.jpg", label="cat"))
    with pytest.raises(DataError, match=r"c\.xml: the image is missing"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, split="val")) == 1
    photo(tmp_path / "images/val/a.jpg")
    with pytest.raises(DataError, match=r"annots: the xml of 'a' has images in .*train and .*val; keep one"):
        open_dataset(tmp_path)


def test_several_folders_of_xml(tmp_path: Path, photo: Callable[..., Path]) -> None:
    put(tmp_path, photo, "photos/a.jpg", "first/a.xml")
    put(tmp_path, photo, "photos/b.jpg", "second/b.xml")
    with pytest.raises(DataError, match=r"xml files of images are in .*first, .*second; put them into one folder"):
        open_dataset(tmp_path)
    put(tmp_path, photo, "images/a.jpg", "Annotations/a.xml")
    assert [sample.path for sample in open_dataset(tmp_path).samples] == [tmp_path / "images/a.jpg"]
    put(tmp_path, photo, "train/a.jpg", "train/a.xml")
    put(tmp_path, photo, "images/train/a.jpg", "images/train/a.xml")
    with pytest.raises(DataError, match="both have the xml files of a split train"):
        open_dataset(tmp_path)


def test_xml_that_keeps_the_ending_of_its_image(tmp_path: Path, photo: Callable[..., Path]) -> None:
    put(tmp_path, photo, "photos/a.jpg", "annots/a.jpg.xml")
    put(tmp_path, photo, "photos/b.jpg", "annots/b.xml")
    dataset = open_dataset(tmp_path)
    assert [(sample.path.name, len(sample.class_ids)) for sample in dataset.samples] == [("a.jpg", 1), ("b.jpg", 1)]
    (tmp_path / "annots/a.jpg.xml").write_text(XML.format(name="", label="cat"))
    with pytest.raises(DataError, match=r"a\.jpg\.xml: its name is nearly that of the image 'a\.jpg'"):
        open_dataset(tmp_path)


def test_names_that_all_differ_in_case(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for stem in ("one", "two"):
        photo(tmp_path / f"photos/{stem.upper()}.JPG")
        (tmp_path / "annots").mkdir(exist_ok=True)
        (tmp_path / f"annots/{stem}.xml").write_text(XML.format(name="x.jpg", label="cat"))
    with pytest.raises(DataError, match=r"one\.xml: its name is nearly that of the image 'ONE\.JPG'"):
        open_dataset(tmp_path)


def test_letters_with_marks_in_either_form(tmp_path: Path, photo: Callable[..., Path]) -> None:
    composed, apart = unicodedata.normalize("NFC", "müñé"), unicodedata.normalize("NFD", "müñé")
    put(tmp_path, photo, f"photos/{composed}.jpg", f"annots/{apart}.xml")
    put(tmp_path, photo, "photos/a.jpg", "annots/a.xml")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text(f"a\n{apart}\n", encoding="utf-8")
    dataset = open_dataset(tmp_path)
    assert [(sample.path.stem, len(sample.class_ids)) for sample in dataset.samples] == [("a", 1), (composed, 1)]


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
