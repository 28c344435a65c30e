from pathlib import Path

import pytest

from deformable_detr.data.formats.split_files import image_folders, split_files, split_folders


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ours")
    return folder


def is_ours(file: Path) -> bool:
    return file.read_text() == "ours"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.xml", "train/x.xml", "valid/y.XML"], {"train": "train/x.xml", "valid": "valid/y.XML"}),
        (["labels/train/x.xml", "labels/test/x.xml"], {"train": "labels/train/x.xml", "test": "labels/test/x.xml"}),
        (["train/labels/x.xml"], {"train": "train/labels/x.xml"}),
        (["train_set.xml", "my-val.xml", "labels/c.xml"], {"train": "train_set.xml", "val": "my-val.xml"}),
        (["annotations/a.xml", "other/b.xml"], {"a": "annotations/a.xml"}),
        (["train_1.xml", "train_2.xml"], {"train/train_1": "train_1.xml", "train/train_2": "train_2.xml"}),
        (["train/x.xml", "labels/train/x.xml"], {"": ""}),
        ([".hidden.xml", "a.txt"], {}),
    ],
)
def test_places_and_names(names: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    made(tmp_path, *names)
    (tmp_path / "theirs.xml").write_text("theirs")
    found = split_files(tmp_path, (".xml",), is_ours)
    if expected == {"": ""}:  # Two files of one name in two folders of one split: none is lost.
        assert len({split for split, _ in found}) == 2
        return
    assert {split: str(file.relative_to(tmp_path)) for split, file in found} == expected


def test_one_file(tmp_path: Path) -> None:
    made(tmp_path, "my_train.xml", "b.txt")
    assert split_files(tmp_path / "my_train.xml", (".xml",), is_ours) == [("train", tmp_path / "my_train.xml")]
    assert split_files(tmp_path / "b.txt", (".xml",), is_ours) == []
    assert split_files(tmp_path / "none.xml", (".xml",), is_ours) == []


def test_folders(tmp_path: Path) -> None:
    def holds_ours(folder: Path) -> bool:
        return any(file.suffix == ".xml" for file in folder.iterdir())

    assert split_folders(tmp_path / "none", holds_ours) == []
    made(tmp_path, "one/a.xml")
    assert split_folders(tmp_path / "one", holds_ours) == [("one", tmp_path / "one")]
    made(tmp_path, "two/images/a.png", "two/labels/a.xml")
    assert split_folders(tmp_path / "two", holds_ours) == [("labels", tmp_path / "two/labels")]
    made(tmp_path, "three/train/labels/a.xml", "three/val/a.xml", "three/test/a.png", "three/b.xml")
    assert split_folders(tmp_path / "three", holds_ours) == [
        ("train", tmp_path / "three/train/labels"),
        ("val", tmp_path / "three/val"),
    ]


def test_folders_of_images(tmp_path: Path) -> None:
    for name in ("train_images", "my-test", "labels/train", ".train"):
        (tmp_path / name).mkdir(parents=True)
    for annotations, split in (("train.csv", "train"), ("labels/a.csv", "training"), ("labels/train/a.csv", "train")):
        folders = image_folders(tmp_path / annotations, split)
        assert folders[0] == (tmp_path / annotations).parent
        assert {tmp_path / "images", tmp_path / "images/train"} <= set(folders)
        assert (tmp_path / "train_images" in folders) == (annotations != "labels/train/a.csv")
        assert not {tmp_path / "my-test", tmp_path / ".train"} & set(folders)
    assert tmp_path / "my-test" in image_folders(tmp_path / "x.csv", "test")
