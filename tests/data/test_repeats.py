import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.data import repeats
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.repeats import repeated_images, training_images_among
from tests.data.noise import dataset_of


def split(folder: Path, count: int) -> DetectionDataset:
    """Pictures of noise that no other folder of a name of another length has."""
    return dataset_of(folder, *[[(0, (1, 2, 30, 40))]] * count)


def share(val: DetectionDataset, train: DetectionDataset, count: int) -> None:
    """Make the first images of `val` copies of training images, in another order."""
    for one, other in zip(val.samples[:count], reversed(train.samples), strict=False):
        shutil.copyfile(other.path, one.path)


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, DetectionDataset]:
    return {"train": split(tmp_path / "a", 12), "val": split(tmp_path / "bb", 11), "test": split(tmp_path / "ccc", 5)}


def kinds(splits: dict[str, DetectionDataset]) -> list[tuple[str, str]]:
    return [(problem.kind, problem.message.partition(":")[0]) for problem in repeated_images(splits)]


def test_a_leak_comes_first_and_is_counted(splits: dict[str, DetectionDataset]) -> None:
    assert kinds(splits) == []
    share(splits["val"], splits["train"], 1)
    assert [kind for kind, _ in kinds(splits)] == ["shared_image"]  # less than a tenth
    share(splits["val"], splits["train"], 2)
    assert kinds(splits)[0] == ("leak", "2 of 11 images are training images, too")
    share(splits["val"], splits["train"], 11)
    share(splits["test"], splits["train"], 1)
    problems = repeated_images(splits)
    assert [(problem.kind, problem.where) for problem in problems[:2]] == [
        ("leak", "split val"),
        ("leak", "split test"),
    ]
    assert problems[0].message.startswith("all 11 images are training images, too: AP on them rewards")
    assert not any(problem.fatal for problem in problems)
    # One picture of the test split is the same as one of each of the others: eleven groups.
    assert [problem.kind for problem in problems[2:]] == ["shared_image"] * 11


def test_pictures_that_two_judging_splits_share_are_no_leak(splits: dict[str, DetectionDataset]) -> None:
    share(splits["test"], splits["val"], 5)
    assert {kind for kind, _ in kinds(splits)} == {"shared_image"}


def test_a_copy_within_the_training_split_counts_once_for_each_validation_image(
    splits: dict[str, DetectionDataset],
) -> None:
    share(splits["val"], splits["train"], 2)
    shutil.copyfile(splits["train"].samples[-1].path, splits["train"].samples[0].path)
    assert kinds(splits)[0] == ("leak", "2 of 11 images are training images, too")


def test_training_says_it_too(splits: dict[str, DetectionDataset]) -> None:
    train, val = splits["train"], splits["val"]
    assert training_images_among(train, val) is None
    share(val, train, 1)
    found = training_images_among(train, val)
    assert found == "1 of 11 validation images are training images, too; `ddetr check-data` lists them"
    share(val, train, 2)
    assert training_images_among(train, val) == (
        "2 of 11 validation images are training images, too: AP on them rewards what was remembered, and says little "
        "about new images"
    )
    assert str(training_images_among(train, train)).startswith("all 12 validation images are")
    for sample in val.samples[:2]:
        sample.path.unlink()
    assert training_images_among(train, val) is None


def test_of_many_images_some_are_compared(splits: dict[str, DetectionDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_COMPARED_IMAGES", 4)
    share(splits["val"], splits["train"], 11)
    found = str(training_images_among(splits["train"], splits["val"]))
    assert found.startswith("all 4 validation images of 11 that were compared are training images, too")


def test_files_of_equal_length_differ_by_their_content(tmp_path: Path) -> None:
    """Pictures without compression, which are all of one length; only their middle tells them apart at once."""
    train, val = split(tmp_path / "a", 3), split(tmp_path / "bb", 3)
    for number, sample in enumerate([*train.samples, *val.samples]):
        content = np.zeros(9000, dtype=np.uint8)
        content[4500 if number % 2 else 100] = number
        sample.path.write_bytes(content.tobytes())
    assert training_images_among(train, val) is None
    assert training_images_among(replace(train, samples=[*train.samples, val.samples[1]]), val) is not None
