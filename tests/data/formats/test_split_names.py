import pytest

from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.split_names import canonical_split, main_split, name_splits, split_in_name


def never() -> DetectionDataset:
    raise AssertionError("nothing is read to name it")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("train2017", "train"),
        ("Training", "train"),
        ("valid", "val"),
        ("val2014", "val"),
        ("validation", "val"),
        ("test", "test"),
        ("test-dev2017", "test-dev2017"),
        ("trainval", "trainval"),
        ("retrain", "retrain"),
    ],
)
def test_spellings(name: str, canonical: str) -> None:
    assert canonical_split(name) == canonical


@pytest.mark.parametrize(
    ("name", "main"),
    [
        ("train2017", "train"),
        ("custom_train", "train"),
        ("train_annotations", "train"),
        ("instances_val_v2", "val"),
        ("annotations-valid.coco", "val"),
        ("MyTestImages", "test"),
        ("TRAIN_1", "train"),
        ("train_val", None),
        ("trainval", None),
        ("test-dev2017", "test"),
        ("image_info_test-dev2017", "test"),
        ("custom_dev", "val"),
        ("test_dev_val", None),
        ("train-dev", None),
        ("test-dev-train", None),
        ("trainingset_boxes", "train"),
        ("my testingset", "test"),
        ("Validset-a", "val"),
        ("validationset.coco", "val"),
        ("boxesDevset", "val"),
        ("test_devset", None),
        ("retrain_boxes", None),
        ("", None),
    ],
)
def test_names_that_speak_of_a_main_split(name: str, main: str | None) -> None:
    assert main_split(name) == main


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (["zoo", "test", "valid", "ark", "train"], ["train", "val", "test", "ark", "zoo"]),
        (["train2017", "train2014", "val2017"], ["val", "train2014", "train2017"]),
        (["_annotations.coco"], ["train"]),
        (["val2017"], ["val"]),
        (["one", "two"], ["one", "two"]),
        (["custom_train", "custom_val"], ["train", "val"]),
        (["custom_train", "train2017", "valid"], ["train", "val", "custom_train"]),
        (["a_train", "b_train", "val"], ["val", "a_train", "b_train"]),
        (["my_test_photos"], ["train"]),
        (["a", "a", "a"], ["a", "a (2)", "a (3)"]),
        (["Train", "val", "Train"], ["train", "val", "train (2)"]),
        (["a_train", "a_train"], ["a_train", "a_train (2)"]),
        ([], []),
    ],
)
def test_order_and_clashes(found: list[str], names: list[str]) -> None:
    assert list(name_splits((name, never) for name in found)) == names


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("train_labels", "train"),
        ("my-Validation boxes", "val"),
        ("annotations_test2017", "test"),
        ("val2017", "val"),
        ("test_train_split", "test_train_split"),
        ("training_set", "train"),
        ("trainer", "trainer"),
        ("VisDrone2019-DET-test-dev", "test"),
        ("VisDrone2019-DET-val", "val"),
        ("DOTA-v1.5_train", "train"),
        ("train_0", "train"),
        ("oidv6-train-annotations-bbox", "train"),
        ("my dev set", "val"),
        ("train_val", "train_val"),
        ("constraint", "constraint"),
        ("latest", "latest"),
        ("boxes", "boxes"),
        ("", ""),
    ],
)
def test_splits_in_names_of_files(stem: str, split: str) -> None:
    assert split_in_name(stem) == split
