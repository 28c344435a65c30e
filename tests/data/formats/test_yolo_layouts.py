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
        # no yaml
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
    with pytest.raises(DataError, match=r"list\.txt:2: the image .*b\.jpg is missing"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, strict=False)
    assert [problem.kind for problem in dataset.problems] == ["missing_image", "duplicate_image"]
    assert len(dataset) == 1


def test_an_empty_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text(f"train: images\n{NAMES}")
    with pytest.raises(DataError, match="no images to read here"):
        open_dataset(tmp_path)
