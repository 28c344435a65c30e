from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats import voc_folders
from deformable_detr.data.formats.voc_folders import FolderPair, contents_of, pairs_in


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("<annotation><filename>a.jpg</filename></annotation>")


def pairs(folder: Path) -> list[tuple[str, str]]:
    found = pairs_in(folder, contents_of(folder))
    assert all(isinstance(pair, FolderPair) for pair in found)
    return [(str(xmls.relative_to(folder)), str(images.relative_to(folder))) for xmls, images in found]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["annots/a.xml", "images/a.jpg", "images/b.jpg"], [("annots", "images")]),
        (["label/a.XML", "image/a.PNG"], [("label", "image")]),
        (["annots/a.jpg.xml", "photos/a.jpg"], [("annots", "photos")]),
        (["annotations/xmls/a.xml", "photos/a.jpg"], [("annotations/xmls", "photos")]),
        (["xmls/a.xml", "a.jpg"], [("xmls", ".")]),
        (["a.xml", "photos/a.jpg"], [(".", "photos")]),
        (["a.xml", "a.jpg", "copies/a.jpg"], [(".", ".")]),
        (["train/boxes/a.xml", "train/photos/a.jpg", "note.xml"], [("train/boxes", "train/photos")]),
        # By their names: masks have the stems of the images, too.
        (["annotations/xmls/a.xml", "annotations/trimaps/a.png", "images/a.jpg"], [("annotations/xmls", "images")]),
        (["Annotations/a.xml", "SegmentationClass/a.png", "JPEGImages/a.jpg"], [("Annotations", "JPEGImages")]),
        # By what the xml files name, which is a.jpg.
        (["annots/a.xml", "masks/a.png", "photos/a.jpg"], [("annots", "photos")]),
        # By the number of images.
        (["annots/a.xml", "annots/b.xml", "few/a.jpg", "photos/a.jpg", "photos/b.jpg"], [("annots", "photos")]),
        # For every split its own.
        (["annots/train/1.xml", "annots/val/1.xml", "images/val/1.jpg", "images/train/1.jpg"],
         [("annots/train", "images/train"), ("annots/val", "images/val")]),
        (["annots/a.xml", "annots/b.xml", "images/train/a.jpg", "images/val/b.jpg"],
         [("annots", "images/train"), ("annots", "images/val")]),
        # A data set of its own, and one beside it that happens to have the same names.
        (["VOC2007/Annotations/a.xml", "VOC2007/JPEGImages/a.jpg", "other/images/a.jpg"], []),
        (["set/annots/a.xml", "set/photos/a.jpg", "other/photos/a.jpg"], []),
        # Nothing in common; usual names are kept, so that missing images can be told.
        (["annots/a.xml", "images/b.jpg"], []),
        (["Annotations/a.xml", "JPEGImages/b.jpg"], [("Annotations", "JPEGImages")]),
        ([".hidden/a.xml", "images/a.jpg"], []),
        (["one/two/three/four/a.xml", "images/a.jpg"], []),
    ],
)  # fmt: skip
def test_pairs(files: list[str], expected: list[tuple[str, str]], tmp_path: Path) -> None:
    put(tmp_path, *files)
    assert pairs(tmp_path) == expected


def test_folders_that_do_equally_well(tmp_path: Path) -> None:
    put(tmp_path, "annots/a.xml", "one/a.jpg", "two/a.jpg")
    with pytest.raises(DataError, match=r"annots: its xml files fit the images in .*one, .*two; move away"):
        pairs(tmp_path)


def test_folders_that_cannot_be_listed_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "annots/a.xml", "photos/a.jpg", "private/a.jpg")
    import os

    scan = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "private":
            raise PermissionError(13, "no", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert pairs(tmp_path) == [("annots", "photos")]


def test_xml_files_are_opened_only_where_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def starts_like_cvat(file: Path) -> bool:
        opened.append(file)
        return True

    monkeypatch.setattr(voc_folders, "starts_like_cvat", starts_like_cvat)
    put(tmp_path / "1", "Annotations/a.xml", "photos/b.jpg")
    put(tmp_path / "2", "notes/a.xml", "images/b.jpg")
    assert pairs(tmp_path / "1") == pairs(tmp_path / "2") == opened == []
    put(tmp_path / "3", "Annotations/a.xml", "images/b.jpg")
    assert pairs(tmp_path / "3") == []
    assert opened == [tmp_path / "3/Annotations/a.xml"]
