import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deformable_detr.core.errors import DataError
from deformable_detr.data.check import check_dataset
from deformable_detr.data.crowding import most_objects
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats import coco, voc
from deformable_detr.data.splits import read_splits
from tests.data.noise import LARGE, SIZE_WH, SMALL, dataset_of, noise_in_two_splits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return noise_in_two_splits(tmp_path)


def change_json(path: Path, change: str, to: str) -> None:
    text = path.read_text()
    assert change in text
    path.write_text(text.replace(change, to, 1))


def test_a_sound_data_set(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_dataset(folder, on_progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.problems == ()
    assert (report.format, report.classes) == ("coco", ("cat", "dog"))
    assert list(report.splits) == ["train", "val"]
    train, val = report.splits.values()
    assert (train.images, train.boxes, train.images_without_objects) == (3, 4, 1)
    assert train.boxes_per_image == (0, 1, 3)
    assert (train.small, train.medium, train.large) == (1, 1, 2)
    assert train.boxes_per_class == {"cat": 2, "dog": 2}
    assert (train.smallest_wh, train.largest_wh) == (SIZE_WH, SIZE_WH)
    assert (val.images, val.boxes) == (1, 2)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_report_is_plain_json(folder: Path) -> None:
    (folder / "images/train/1.png").unlink()
    report = check_dataset(folder)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["ok"] is False
    assert [split["name"] for split in data["splits"]] == ["train", "val"]
    assert data["splits"][0]["boxes_per_image"] == [1, 2.0, 3]
    assert data["problem_counts"] == {"missing_image": 1}
    assert data["problems"][0]["kind"] == "missing_image"
    assert data["problems"][0]["fatal"] is True


def test_damaged_and_wrongly_sized_images(folder: Path) -> None:
    damaged = folder / "images/train/0.png"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    Image.new("RGB", (99, 77)).save(folder / "images/train/2.png")
    report = check_dataset(folder)
    assert [(problem.kind, Path(problem.where).name) for problem in report.problems] == [
        ("unreadable_image", "0.png"),
        ("size_mismatch", "2.png"),
    ]
    assert not report.ok
    assert report.problems[1].message == "the image is 99 x 77 but its annotation says 200 x 150"
    unchecked = check_dataset(folder, decode=False)
    assert unchecked.ok
    assert not unchecked.images_decoded


def test_pictures_that_appear_twice(folder: Path) -> None:
    train = folder / "images/train"
    (train / "2.png").write_bytes((train / "0.png").read_bytes())
    (folder / "images/val/0.png").write_bytes((train / "1.png").read_bytes())
    report = check_dataset(folder)
    assert report.ok
    found = {problem.kind: problem for problem in report.problems}
    assert set(found) == {"duplicate_image", "shared_image", "leak"}
    assert report.warnings == (found["leak"],)
    assert found["duplicate_image"].message.endswith("train/2.png, in the split train")
    assert found["shared_image"].message.endswith("val/0.png, in the splits train and val")


def test_lists_of_other_lists_are_not_leaks(tmp_path: Path) -> None:
    whole = dataset_of(tmp_path / "a", [(0, SMALL)], [(1, LARGE)], [(1, SMALL)])
    voc.save(whole, tmp_path / "data", split="train")
    lists = tmp_path / "data/ImageSets/Main"
    (lists / "train.txt").write_text("0\n1\n")
    (lists / "val.txt").write_text("2\n")
    (lists / "trainval.txt").write_text("0\n1\n2\n")
    assert check_dataset(tmp_path / "data").problems == ()
    (lists / "val.txt").write_text("2\n1\n")
    report = check_dataset(tmp_path / "data")
    assert [(problem.kind, problem.message) for problem in report.problems] == [
        (
            "leak",
            "1 of 2 images are training images, too: AP on them rewards what was remembered, and says little about "
            "new images",
        ),
        ("shared_image", "the same file, in the splits train and val"),
    ]
    (lists / "val.txt").write_text("2\n")
    (tmp_path / "data/Annotations/1.xml").write_text("<annotation>")
    report = check_dataset(tmp_path / "data")
    assert {problem.kind for problem in report.problems} == {"invalid_annotation", "unused_class"}


def test_images_nobody_mentions(folder: Path) -> None:
    Image.new("RGB", (9, 8)).save(folder / "images/val/extra.jpg")
    report = check_dataset(folder)
    assert [(problem.kind, Path(problem.where).name, problem.fatal) for problem in report.problems] == [
        ("orphan_image", "extra.jpg", False)
    ]


def test_classes_that_differ_between_splits(folder: Path) -> None:
    change_json(folder / "annotations/val.json", '"dog"', '"wolf"')
    report = check_dataset(folder)
    assert [(problem.kind, problem.where, problem.fatal) for problem in report.problems] == [
        ("unknown_class", "split val", True)
    ]
    assert "'wolf'" in report.problems[0].message


def test_classes_nothing_is_labelled_with(folder: Path) -> None:
    change_json(folder / "annotations/train.json", '{"id": 2, "name"', '{"id": 5, "name": "owl"}, {"id": 2, "name"')
    report = check_dataset(folder)
    assert [(problem.kind, problem.fatal) for problem in report.problems] == [("unused_class", False)]
    assert "'owl'" in report.problems[0].message


def test_classes_of_which_nothing_could_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    names = [f"sign {number}" for number in range(10)]
    (tmp_path / "data.yaml").write_text(f"train: ../train/images\nnames: {json.dumps(names)}\n")
    report = check_dataset(tmp_path)
    assert report.classes == tuple(names)
    assert [(problem.kind, problem.fatal) for problem in report.problems] == [("missing_image", True)]
    # Labels that mean one of two things, so that no box of them is read.
    (tmp_path / "data.yaml").write_text(f"train: a.png\nnames: {json.dumps(names)}\n")
    (tmp_path / "a.txt").write_text("0 .5 .5 .8 .6 .45 .45 .55 .45 .5 .5 .5 .55\n")
    assert [problem.kind for problem in check_dataset(tmp_path).problems] == ["invalid_annotation"]
    # An image without objects is read, and so it is true that there are none.
    (tmp_path / "a.txt").write_text("")
    assert check_dataset(tmp_path).problem_counts() == {"unused_class": 10}


def test_boxes_are_counted_by_what_is_wrong_with_them(folder: Path) -> None:
    path = folder / "annotations/train.json"
    document = json.loads(path.read_text())
    boxes = [[0, 0, 0, 9], [-5, 0, 9, 9], [500, 0, 9, 9], [9, 9, -1, 4], [0.0, 0.0, 31.0, 32.0]]
    for number, box in enumerate(boxes):
        document["annotations"].append({"id": 900 + number, "image_id": 1, "category_id": 1, "bbox": box})
    path.write_text(json.dumps(document))
    report = check_dataset(folder)
    assert report.problem_counts() == {
        "invalid_box": 1,
        "outside_box": 1,
        "degenerate_box": 1,
        "clipped_box": 1,
        "duplicate_box": 1,
    }
    assert sum(problem.fatal for problem in report.problems) == 2


def test_a_split_that_cannot_be_parsed_does_not_hide_the_others(folder: Path) -> None:
    (folder / "annotations/val.json").write_text("{")
    report = check_dataset(folder)
    assert list(report.splits) == ["train"]
    assert report.problems[0].where == "split val"
    (folder / "annotations/train.json").write_text("{")
    report = check_dataset(folder)
    assert report.splits == {}
    assert report.classes == ()


def test_whatever_training_refuses_stops_here_too(folder: Path) -> None:
    """In the words of training, which opens the same data with the same functions."""
    (folder / "annotations/train.json").rename(folder / "annotations/test.json")
    (folder / "images/train").rename(folder / "images/test")
    report = check_dataset(folder)
    assert [(problem.where, problem.fatal) for problem in report.problems if problem.fatal] == [(str(folder), True)]
    with pytest.raises(DataError) as caught:
        read_splits(folder)
    fatal = next(problem for problem in report.problems if problem.fatal)
    assert str(caught.value) == f"{fatal.where}: {fatal.message}"
    assert "no split to train on; there is val, test" in fatal.message
    assert check_dataset(folder / "annotations/test.json").ok  # given by itself, it is trained on


def test_more_objects_than_queries_and_than_detections(tmp_path: Path) -> None:
    boxes = [(0, (x, y, x + 6, y + 6)) for x in range(0, 180, 8) for y in range(0, 136, 8)][:120]
    data = dataset_of(tmp_path / "a", boxes, boxes[:20])
    coco.save(data, tmp_path / "data", split="train")

    def problems(folder: str = "data", **options: Any) -> list[Problem]:
        return [one for one in check_dataset(tmp_path / folder, **options).problems if one.kind == "many_objects"]

    splits: list[tuple[int, int | None]] = []

    def most_of(train: DetectionDataset, val: DetectionDataset | None) -> int:
        splits.append((len(train), None if val is None else len(val)))
        return most_objects(train)

    training, evaluation = problems(num_queries=lambda *_: 50, model="recipe small")
    assert (training.kind, training.where, training.fatal) == ("many_objects", "training", False)
    assert training.message == (
        "1 of 2 images has more objects than the 50 queries of recipe small, up to 120: 70 of 140 objects can be "
        "neither learnt nor found; train with --set model.num_queries=200"
    )
    assert (evaluation.kind, evaluation.where, evaluation.fatal) == ("many_objects", "evaluation", False)
    assert "no detector can find more than 85.7 % of the objects there" in evaluation.message
    # A model that has enough, one that nobody knows, and no images that need the question.
    assert problems(num_queries=most_of) == problems(num_queries=lambda *_: None) == problems() == [evaluation]
    report = check_dataset(
        tmp_path / "data", num_queries=lambda train, _: most_objects(train) + 80, model="recipe small"
    )
    assert (report.num_queries, report.model) == (200, "recipe small")
    assert report.to_json()["num_queries"] == 200
    coco.save(data.subset([1]), tmp_path / "few", split="train")
    assert problems("few", num_queries=lambda *_: pytest.fail("asked")) == []
    # Images to judge by are told apart.
    coco.save(data, tmp_path / "few", split="val")
    assert check_dataset(tmp_path / "few", num_queries=most_of).num_queries == 20
    assert splits == [(2, None), (1, 2)]
    # The very file of a split is one to train on, with none to judge by.
    assert check_dataset(tmp_path / "few/annotations/val.json", num_queries=most_of).num_queries == 120
    assert splits[2:] == [(2, None)]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set recognised"):
        check_dataset(tmp_path)


def test_recorded_data(shared: Path) -> None:
    report = check_dataset(shared / "data" / "bccd", format="voc", decode=False)
    assert report.ok
    assert report.problem_counts() == {"degenerate_box": 2}
    assert [(name, one.images) for name, one in report.splits.items()] == [
        ("train", 205),
        ("val", 87),
        ("test", 72),
        ("trainval", 292),
    ]
