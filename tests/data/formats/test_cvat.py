import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.open import list_splits, open_dataset, recognise

META = (
    "<version>1.1</version><meta><task><labels><label><name>dog</name></label><label><name>cat</name></label>"
    "<label><name>paw</name><type>points</type><parent>dog</parent></label></labels></task></meta>"
)

BOX = '<box label="cat" xtl="1" ytl="2" xbr="11" ybr="9"></box>'


def write(path: Path, images: str, meta: str = META) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<!-- made by hand -->\n<annotations>{meta}{images}</annotations>'
    path.write_text(text, encoding="utf-8")


def image(name: str, shapes: str = "", attributes: str = "") -> str:
    return f'<image id="0" name="{name}" width="50" height="30" {attributes}>{shapes}</image>'


def test_every_shape_that_has_a_box(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.png", (50, 30))
    photo(tmp_path / "images/b.png", (50, 30))
    shapes = """
        <box label="cat" source="manual" occluded="1" xtl="1" ytl="2.5" xbr="11" ybr="5" z_order="0">
          <attribute name="age">3</attribute></box>
        <box label="dog" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>
        <polygon label="cat" points="3.00,4.00;9.00,5.00;6.00,20.50"/>
        <ellipse label="cat" cx="20" cy="15" rx="8" ry="3"/>
        <ellipse label="dog" cx="20" cy="15" rx="8" ry="3" rotation="90.0"/>
        <mask label="dog" rle="1, 4, 1" left="7" top="9" width="3" height="2"/>
        <cuboid label="cat" xtl1="5" ytl1="6" xbl1="5" ybl1="16" xtr1="15" ytr1="6" xbr1="15" ybr1="16"
          xtl2="18" ytl2="4" xbl2="18" ybl2="12" xtr2="8" ytr2="4" xbr2="8" ybr2="12"/>
        <polyline label="cat" points="1,1;5,5"/> <points label="cat" points="1,1"/> <tag label="cat"/>
        <skeleton label="dog"><points label="paw" points="3,3"/></skeleton> <points label="dog" points="1,1"/>"""
    write(tmp_path / "annotations.xml", image("a.png", shapes) + image("b.png"))
    assert recognise(tmp_path).format == "cvat"
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("dog", "cat")
    first, second = dataset.samples
    expected = [[1, 2.5, 11, 5], [13, 7, 17, 17], [3, 4, 9, 20.5], [12, 12, 28, 18], [17, 7, 23, 23], [7, 9, 10, 11],
                [5, 4, 18, 16]]  # fmt: skip
    np.testing.assert_allclose(first.boxes_xyxy, expected, atol=1e-9)
    assert first.class_ids.tolist() == [1, 0, 1, 1, 0, 0, 1]
    assert len(second.class_ids) == 0
    (ignored,) = dataset.problems
    assert ignored.message == "shapes without a box: 5 (points 2, polyline 1, tag 1, skeleton 1); left out"
    assert open_dataset(tmp_path / "annotations.xml").num_objects == 7


def test_subsets_are_splits(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for number, subset in enumerate(("Train", "Validation", "default")):
        photo(tmp_path / "images" / subset / "a.png", (50, 30), number)
    box = '<box label="cat" xtl="1" ytl="2" xbr="3" ybr="4"/>'
    images = image("a.png", box, 'subset="Train"') + image("a.png", "", "subset = 'Validation'")
    write(tmp_path / "annotations.xml", images)
    assert list_splits(tmp_path) == ("train", "val")
    for split, folder, count in (("train", "Train", 1), ("val", "Validation", 0)):
        dataset = open_dataset(tmp_path, split=split)
        assert [sample.path for sample in dataset.samples] == [tmp_path / "images" / folder / "a.png"]
        assert dataset.num_objects == count
        assert dataset.classes == ("dog", "cat")
    # Images that name no subset are not lost.
    write(tmp_path / "annotations.xml", images + image("default/a.png", box * 2))
    assert list_splits(tmp_path) == ("train", "val", "annotations")
    assert open_dataset(tmp_path, split="annotations").num_objects == 2


def test_a_file_for_each_split(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name, labels in (("train.xml", ("cat", "dog")), ("val.xml", ("dog",))):
        photo(tmp_path / "images" / f"{name}.png", (50, 30))
        shapes = "".join(f'<box label="{label}" xtl="1" ytl="2" xbr="3" ybr="4"/>' for label in labels)
        write(tmp_path / name, image(f"{name}.png", shapes), meta="<meta></meta>")
    assert list_splits(tmp_path) == ("train", "val")
    assert open_dataset(tmp_path, split="val").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            '<track id="0" label="cat"><box frame="0" xtl="1"/></track>',
            "tracks of a video, which name no image",
        ),
        (image(""), r"annotations.xml: image 1: the name of the image must be text, not ''"),
        (image("a.png").replace("50", "-5"), r"annotations.xml: image 1: an image cannot be -5 x 30 pixels"),
        (
            image("a.png", '<box label="cat" xtl="1" ytl="2" xbr="3"/>'),
            r"image 1 \('a.png'\), shape 1: ybr must be a",
        ),
        (
            image("a.png", '<box label="cow" xtl="1" ytl="2" xbr="3" ybr="4"/>'),
            "'cow' is not among the 2 classes of <la",
        ),
        (image("a.png", '<box xtl="1" ytl="2" xbr="3" ybr="4"/>'), "shape 1: the label must be text, not None"),
        (image("a.png", '<polygon label="cat" points="1,2;3"/>'), "the points must be pairs of numbers"),
        (image("a.png", '<polygon label="cat" points="1,2;3,4"/>'), "it has 2 points and needs 3 at least"),
        (image("a.png", '<box label="cat" xtl="9" ytl="2" xbr="3" ybr="4" rotation="3"/>'), "not a finite number"),
        (image("c.png"), "none of its 1 images is there, the first being 'c.png'"),
        ("<image", "not XML"),
    ],
)
def test_what_cannot_be_used(images: str, message: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.png", (50, 30))
    write(tmp_path / "annotations.xml", images)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_hostile_xml_takes_no_time(tmp_path: Path) -> None:
    for text in ("<!---->" * 9_000, "<annotations><meta/>" + "<image " * 50_000, "<?a?>" * 9_000 + "<!--"):
        (tmp_path / "annotations.xml").write_text(text)
        start = time.monotonic()
        with pytest.raises(DataError):
            open_dataset(tmp_path)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        "<annotations></annotations>",
        "<annotation><image/></annotation>",
        "<a><annotations><image/></annotations></a>",
        "",
    ],
)
def test_other_xml_is_no_data_set(text: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match="no data set recognised"):
        open_dataset(tmp_path)


def test_beside_a_folder_of_images_it_is_no_voc(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.png", (50, 30))
    write(tmp_path / "annotations/annotations.xml", image("a.png", BOX))
    assert recognise(tmp_path).format == "cvat"
    assert open_dataset(tmp_path).num_objects == 1


def test_subsets_of_one_name_in_two_files_are_both_there(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split in ("train", "val"):
        photo(tmp_path / split / f"{split}.png", (50, 30))
        write(tmp_path / split / "annotations.xml", image(f"{split}.png", BOX, 'subset="default"'))
    assert len(list_splits(tmp_path)) == 2
    assert {open_dataset(tmp_path, split=name).samples[0].path.stem for name in list_splits(tmp_path)} == {
        "train",
        "val",
    }
