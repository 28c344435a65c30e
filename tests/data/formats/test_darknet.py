from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.darknet import find_data_file, parts_of_data_file
from deformable_detr.data.open import list_splits, open_dataset

LABEL = "1 0.5 0.5 0.2 0.4\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def cvat(tmp_path: Path, photo: Callable[..., Path]) -> Path:
    """CVAT's "YOLO 1.1" with two subsets, as unpacked."""
    for subset, names in (("train", ("a", "b")), ("valid", ("c",))):
        for name in names:
            photo(tmp_path / f"obj_{subset}_data/{name}.jpg")
            write(tmp_path, f"obj_{subset}_data/{name}.txt", LABEL if name != "b" else "")
        write(tmp_path, f"{subset}.txt", "".join(f"data/obj_{subset}_data/{name}.jpg\n" for name in names))
    write(tmp_path, "obj.names", "cat\ndog\n")
    text = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(tmp_path, "obj.data", text)
    return tmp_path


def test_cvat(cvat: Path) -> None:
    for path in (cvat, cvat / "obj.data"):
        assert list_splits(path) == ("train", "val")
        dataset = open_dataset(path)
        assert dataset.source.startswith(f"YOLO {cvat / 'obj.data'} (train), classes from {cvat / 'obj.names'}")
        assert dataset.classes == ("cat", "dog")
        assert not dataset.problems
        assert [sample.path.name for sample in dataset.samples] == ["a.jpg", "b.jpg"]
        assert [sample.boxes_xyxy.round(9).tolist() for sample in dataset.samples] == [[[20, 9, 30, 21]], []]
        assert dataset.samples[0].class_ids.tolist() == [1]
        assert [sample.path.name for sample in open_dataset(path, split="val").samples] == ["c.jpg"]


def test_cvat_without_its_images(cvat: Path) -> None:
    for path in cvat.glob("obj_train_data/*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"train\.txt: none of its 2 images is there, the first being 'data/obj_"):
        open_dataset(cvat)


@pytest.mark.parametrize("place", ["data/obj.data", "cfg/voc.data", "my.data"])
def test_darknet_from_the_folder_it_is_started_in(place: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "data/img/a.jpg")
    write(tmp_path, "data/img/a.txt", LABEL)
    write(tmp_path, "data/my.names", "cat\n\ndog\n")
    write(tmp_path, "data/train.txt", "data/img/a.jpg\n")
    write(tmp_path, place, "# darknet\nclasses=2\n\ntrain  = data/train.txt # list\nnames = data/my.names\neval=coco\n")
    dataset = open_dataset(tmp_path)
    assert [(sample.path, len(sample.class_ids)) for sample in dataset.samples] == [(tmp_path / "data/img/a.jpg", 1)]
    assert not dataset.problems


def test_labels_of_voc_for_darknet(tmp_path: Path, photo: Callable[..., Path]) -> None:
    image = photo(tmp_path / "VOC2007/JPEGImages/a.jpg")
    write(tmp_path, "VOC2007/labels/a.txt", LABEL)
    write(tmp_path, "voc.names", "cat\ndog\n")
    write(tmp_path, "2007_train.txt", "/elsewhere/darknet/VOC2007/JPEGImages/a.jpg\n")
    write(tmp_path, "voc.data", "train = /elsewhere/darknet/2007_train.txt\nnames = data/voc.names\n")
    (sample,) = open_dataset(tmp_path).samples
    assert (sample.path, len(sample.class_ids)) == (image, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = 3\ntrain = train.txt\nnames = obj.names", r"classes is '3' but .*obj\.names lists 2"),
        ("classes = two\ntrain = train.txt\nnames = obj.names", "classes must be a whole number"),
        ("train = train.txt\nnames = other.names", r"other\.names: cannot read"),
        ("train = train.txt", "not a data file of darknet: expected names = and train ="),
        ("names = obj.names\nbackup = x", "not a data file of darknet"),
        ("train: train.txt", "line 1: expected key = value, not 'train: train.txt'"),
        ("train = other.txt\nnames = obj.names", r"\(train\): no such folder or list: .*other\.txt"),
        ("train = train.txt\nnames = a\0b", "line 2: names holds a zero character"),
    ],
)
def test_data_files_that_cannot_be_used(text: str, message: str, cvat: Path) -> None:
    path = write(cvat, "obj.data", text)
    with pytest.raises(DataError, match=rf"obj\.data.*{message}|{message}"):
        open_dataset(path)


def test_other_files_of_this_ending_are_left_alone(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.png")
    write(tmp_path, "labels/a.txt", LABEL)
    write(tmp_path, "classes.txt", "cat\ndog\n")
    (tmp_path / "measured.data").write_bytes(b"\xff\0\x01")
    write(tmp_path, "other.data", "names = x\n")
    assert find_data_file(tmp_path) is None
    # One of another data set, such as darknet comes with.
    write(tmp_path, "cfg/coco.data", "train = coco/train.txt\nnames = data/coco.names\n")
    assert find_data_file(tmp_path) == tmp_path / "cfg/coco.data"
    assert not parts_of_data_file(tmp_path / "cfg/coco.data")[0].sources[0].exists()
    assert open_dataset(tmp_path).source.startswith(f"YOLO {tmp_path / 'images'}")
