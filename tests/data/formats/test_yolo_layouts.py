import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.open import list_splits, open_dataset

NAMES = "names: [cat, dog]\n"
LABEL = "1 0.5 0.5 0.5 0.5\n"


@pytest.mark.parametrize(
    ("texts", "images", "splits"),
    [
        # yaml with folders, with path, with lists, with several folders
        ({"data.yaml": f"train: images/train\nval: images/val\ntest:\n{NAMES}"}, "images/{split}/a.jpg", "train val"),
        (
            {"data.yaml": f"path: sub\ntrain: images/train\nval: images/val\n{NAMES}"},
            "sub/images/{split}/a.jpg",
            "train val",
        ),
        (
            {"my.yaml": f"train: ../train/images\nval: ../val/images\ntest: ../test/images\n{NAMES}"},
            "{split}/images/a.jpg",
            "train val",
        ),
        ({"data.yml": f"train: [images/train, images/val]\n{NAMES}"}, "images/{split}/a.jpg", "train"),
        (
            {"data.yaml": f"train: train.txt\n{NAMES}", "train.txt": "./images/x/a.jpg\n\nimages\\x\\b.jpg\n"},
            "images/x/a.jpg images/x/b.jpg",
            "train",
        ),
        ({"data.yaml": f"train: .\n{NAMES}"}, "images/a.jpg images/b.jpg", "train"),
        ({"data.yaml": f"train: images/a.jpg\n{NAMES}"}, "images/a.jpg", "train"),
        # names of another place, another system, or another folder above
        *(
            ({"data.yaml": f"train: {train}\nval: {val}\n{NAMES}"}, "{split}/images/a.jpg", "train val")
            for train, val in (
                ("things-3/train/images", "things-3/val/images"),
                ("/elsewhere/things/train/images", "/elsewhere/things/val/images"),
                (r"C:\x\train\images", r"C:\x\val\images"),
                ("../../train/images", "../../val/images"),
            )
        ),
        (
            {"data.yaml": f"path: /elsewhere/training/things\ntrain: images/train\nval: images/val\n{NAMES}"},
            "images/{split}/a.jpg",
            "train val",
        ),
        (
            {"my.yaml": f"path: ../sets/things\ntrain: images/train\nval: images/val\n{NAMES}"},
            "things/images/{split}/a.jpg",
            "train val",
        ),
        ({"data.yaml": f"train: /elsewhere/things/images\n{NAMES}"}, "images/a.jpg", "train"),
        (
            {
                "data.yaml": f"train: C:/x/train.txt\n{NAMES}",
                "train.txt": "C:\\x\\images\\train\\a.jpg\r\nC:\\x\\images\\val\\b.jpg\r\n",
            },
            "images/{split}/a.jpg images/{split}/b.jpg",
            "train",
        ),
        # Ultralytics' layout as CVAT exports it
        (
            {"data.yaml": f"path: .\ntrain: train.txt\n{NAMES}", "train.txt": "data/images/train/a.jpg\n"},
            "images/{split}/a.jpg",
            "train",
        ),
        # no yaml; Label Studio's export has notes, too
        ({"classes.txt": "cat\ndog\n", "notes.txt": "of the project\n"}, "images/a.jpg", "train"),
        ({"classes.txt": "cat\ndog\n"}, "images/a.jpg", "train"),
        ({"labels/classes.txt": "cat\ndog\n"}, "images/a.jpg", "train"),
        ({"classes.txt": "cat\ndog\n"}, "images/{split}/a.jpg", "train val"),
        ({"obj.names": "cat\ndog\n"}, "{split}/images/a.jpg", "train val"),
        # labels beside images
        ({"classes.txt": "cat\ndog\n"}, "a.jpg", "train"),
        ({"data.yaml": f"train: pictures\n{NAMES}"}, "pictures/deep/a.jpg", "train"),
        # a folder more than was meant
        ({"inner/data.yaml": f"train: images\n{NAMES}"}, "inner/images/a.jpg", "train"),
    ],
)
def test_layouts(texts: dict[str, str], images: str, splits: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split in ("train", "val"):
        for name in images.split():
            image = photo(tmp_path / name.format(split=split))
            swapped = str(image.relative_to(tmp_path)).replace("images", "labels").replace(".jpg", ".txt")
            label = tmp_path / swapped
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(LABEL)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert list_splits(tmp_path) == tuple(splits.split())
    for split in splits.split():
        dataset = open_dataset(tmp_path, split=split)
        assert dataset.source.startswith("YOLO")
        assert not dataset.problems
        assert dataset.classes == ("cat", "dog")
        assert len(dataset) >= 1
        for sample in dataset.samples:
            assert sample.class_ids.tolist() == [1]


def test_names_of_folders_that_are_not_there(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "set/images/a.jpg")
    (tmp_path / "set/labels").mkdir()
    (tmp_path / "set/labels/a.txt").write_text(LABEL)
    (tmp_path / "set/data.yaml").write_text(
        f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n{NAMES}"
    )
    assert list_splits(tmp_path / "set") == ("train", "val")
    for split in ("train", "val"):
        dataset = open_dataset(tmp_path / "set", split=split, strict=False)
        (problem,) = dataset.problems
        assert (problem.kind, problem.fatal) == ("missing_image", True)
        assert "no such folder or list: " in problem.message
        assert "has images/ with labels/: name the images there instead" in problem.message
        assert (dataset.classes, len(dataset)) == (("cat", "dog"), 0)


def test_two_names_never_fall_on_one_folder(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "data.yaml").write_text(f"train: /x/one/images\nval: /x/two/images\n{NAMES}")
    with pytest.raises(DataError, match=r"no such folder or list: .x.one.images"):
        open_dataset(tmp_path)


def test_label_studio(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name in ("01b0f86b-24", "03e0c599-15"):
        photo(tmp_path / f"images/{name}.jpg")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{name}.txt").write_text("1 0.5 0.5 0.2 0.4\n0 0.25 0.5 0.1 0.2\n")
    (tmp_path / "classes.txt").write_text("Zebra\nAnt\n")
    notes = {
        "categories": [{"id": 0, "name": "Zebra"}, {"id": 1, "name": "Ant"}],
        "info": {"contributor": "Label Studio"},
    }
    (tmp_path / "notes.json").write_text(json.dumps(notes))
    dataset = open_dataset(tmp_path, format="yolo")
    assert dataset.classes == ("Zebra", "Ant")
    assert not dataset.problems
    for sample in dataset.samples:
        assert sample.boxes_xyxy.round(9).tolist() == [[20, 9, 30, 21], [10, 12, 15, 18]]
        assert sample.class_ids.tolist() == [1, 0]


def test_images_and_labels_without_names(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text(LABEL)
    with pytest.raises(DataError, match=r"not the names of the classes: add a classes\.txt"):
        open_dataset(tmp_path)


def test_a_list_with_missing_and_repeated_images(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text(LABEL)
    (tmp_path / "data.yaml").write_text(f"train: list.txt\n{NAMES}")
    (tmp_path / "list.txt").write_text("images/a.jpg\nimages/b.jpg\n./images/a.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt:2: the image 'images/b\.jpg' is missing"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, strict=False)
    assert [problem.kind for problem in dataset.problems] == ["missing_image", "duplicate_image"]
    assert len(dataset) == 1


def test_an_empty_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text(f"train: images\n{NAMES}")
    with pytest.raises(DataError, match="no images to read here"):
        open_dataset(tmp_path)
