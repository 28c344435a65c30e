import math
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem
from deformable_detr.data.formats.records import (
    ImageRecord,
    NamedClasses,
    ObjectRecord,
    RecordPart,
    dataset_of,
    load_part,
    size_of,
)


def opened(folder: Path, *records: ImageRecord, **options: object) -> DetectionDataset:
    return dataset_of(records, folders=[folder], where="x.csv", source="CSV x.csv", **options)


def item(name: str = "cat", box: tuple[float, float, float, float] = (1.0, 2.0, 11.0, 5.0), **more: object):
    return ObjectRecord(name, box, "x.csv:2", **more)


def test_images_objects_and_classes(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))
    photo(tmp_path / "b.png", (20, 40))
    elsewhere = photo(tmp_path / "other/c.png", (60, 70))
    shares = item("dog", (0.25, 0.5, 0.75, 1.0), is_crowd=True, area=7.5)
    dataset = opened(
        tmp_path,
        ImageRecord("b.png", "x.csv:1", [shares], in_shares=True),
        ImageRecord("nothing", "x.csv:2", [item()], (60, 70), elsewhere),
        ImageRecord("a.png", "x.csv:3", [], (50, 30)),
    )
    assert dataset.classes == ("cat", "dog")
    assert dataset.category_ids == (1, 2)
    assert dataset.source == "CSV x.csv"
    assert dataset.problems == ()
    first, second, third = dataset.samples
    assert first.boxes_xyxy.tolist() == [[5, 20, 15, 40]]
    assert first.size_wh == (20, 40)
    assert (first.is_crowd.tolist(), first.areas.tolist(), first.class_ids.tolist()) == ([True], [7.5], [1])
    assert (second.path, second.areas.tolist(), second.object_ids) == (elsewhere, [30], (2,))
    assert (third.path, len(third.boxes_xyxy), third.image_id) == (tmp_path / "a.png", 0, 3)


def test_what_is_missing_is_left_out_and_said(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    dataset = opened(
        tmp_path,
        ImageRecord("gone.png", "x.csv:1", [item()]),
        ImageRecord("broken.png", "x.csv:2", [item()]),
        ImageRecord("a.png", "x.csv:3", [item(), item("yak"), item(box=(math.nan, 0.0, 1.0, 1.0))]),
        classes=("dog", "cat"),
    )
    assert [sample.path.name for sample in dataset.samples] == ["a.png"]
    assert dataset.samples[0].class_ids.tolist() == [1]
    assert [(problem.kind, problem.where) for problem in dataset.fatal_problems] == [
        ("missing_image", "x.csv:1"),
        ("unreadable_image", str(tmp_path / "broken.png")),
        ("unknown_class", "x.csv:2"),
        ("invalid_box", "x.csv:2"),
    ]
    assert "'yak' is not among the 2 classes" in dataset.fatal_problems[2].message


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        ([], None, r"x\.csv: no object has a class"),
        (["a", ""], None, r"x\.csv:2: the class name must be text, not ''"),
        (["a"], ("b", "b"), "the class name 'b' appears twice"),
        (["a"], ("",), "class name 1 must be text"),
    ],
)
def test_classes_that_cannot_be_used(
    names: list[str], classes: tuple[str, ...] | None, message: str, tmp_path: Path, photo: Callable[..., Path]
) -> None:
    photo(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, ImageRecord("a.png", "x.csv:1", [item(name) for name in names]), classes=classes)


def test_no_images(tmp_path: Path) -> None:
    assert opened(tmp_path, classes=("a",)).fatal_problems[0].message == "there are no images to read here"


def test_sizes() -> None:
    assert size_of("50", 30.0, "x") == (50, 30)
    assert size_of(None, 30, "x") is size_of(0, 0, "x") is size_of("", 3, "x") is size_of("0", "0", "x") is None
    for width, height in ((-1, 3), ("a", 3), (10**9, 3), (True, 2), (1.5, 2)):
        with pytest.raises(DataError, match=r"x: (an image cannot be|the width must be)"):
            size_of(width, height, "x")


def test_shares_among_pixels_are_noticed(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))
    for boxes, expected in (
        ([(0.1, 0.5, 0.2, 1.0), (0.0, 0.0, 1.0, 1.0)], [[5, 15, 10, 30], [0, 0, 50, 30]]),
        ([(0.1, 0.5, 0.2, 1.0), (0.0, 0.0, 3.0, 1.0)], [[0.1, 0.5, 0.2, 1], [0, 0, 3, 1]]),
        ([(0.0, 0.0, 1.0, 1.0)], [[0, 0, 1, 1]]),
    ):
        dataset = opened(tmp_path, ImageRecord("a.png", "x.csv:1", [item(box=box) for box in boxes]))
        assert dataset.samples[0].boxes_xyxy.tolist() == expected
        kinds = [problem.kind for problem in dataset.problems]
        assert kinds == ["invalid_annotation"] * (expected[0][0] == 5) + ["wrong_unit"] * (expected[0][0] != 5)


def test_without_any_class_the_first_fault_is_the_reason(tmp_path: Path) -> None:
    faults = [Problem("invalid_annotation", f"x.csv:{line}", "seven columns", True) for line in (2, 3)]
    with pytest.raises(DataError, match=r"^x\.csv:2: seven columns \(and 1 more like this\)$"):
        opened(tmp_path, problems=faults)


def test_all_splits_number_their_classes_alike(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))

    def part(name: str, *classes: str) -> RecordPart:
        def read(problems: list[Problem]) -> list[ImageRecord]:
            if not classes:
                raise DataError("broken")
            return [ImageRecord("a.png", name, [item(one) for one in classes])]

        return RecordPart(name, f"{name}.csv", [tmp_path], read)

    parts = [part("train", "yak", "cat"), part("val", "dog"), part("test")]
    train = load_part(parts[0], parts, "CSV")
    assert train.classes == load_part(parts[1], parts, "CSV").classes == ("cat", "dog", "yak")
    assert train.source == "CSV train.csv, classes from the names of its objects"
    with pytest.raises(DataError, match="broken"):
        load_part(parts[2], parts, "CSV")
    listed = load_part(parts[1], parts, "CSV", NamedClasses(["yak", "cat"], "names.txt"))
    assert listed.classes == ("yak", "cat")
    assert listed.fatal_problems[0].message == "'dog' is not among the 2 classes of names.txt"
    assert listed.source == "CSV val.csv, classes from names.txt"


def test_images_in_a_folder_of_any_name(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "pictures of May/a.png", (50, 30))
    dataset = opened(tmp_path, ImageRecord("a.png", "x.csv:1", [item()]))
    assert dataset.samples[0].path == tmp_path / "pictures of May/a.png"
    photo(tmp_path / "thumbnails/a.png", (25, 15))
    with pytest.raises(DataError, match=r"the image 'a\.png' is at .* and, another one, at .*thumbnails/a\.png"):
        opened(tmp_path, ImageRecord("a.png", "x.csv:1", [item()]))
    assert len(opened(tmp_path, ImageRecord("a.png", "x.csv:1", [item()], (50, 30)))) == 1
    photo(tmp_path / "a.png", (50, 30), 9)
    assert opened(tmp_path, ImageRecord("a.png", "x.csv:1", [item()])).samples[0].path == tmp_path / "a.png"
    (none,) = opened(tmp_path, ImageRecord("b.png", "x.csv:1", [item()])).fatal_problems
    assert none.message.startswith("none of its 1 images is there")


@pytest.mark.parametrize("folder", ["annotated_images", "labeled", "segment 3"])
def test_images_in_a_folder_whose_name_speaks_of_labels(
    folder: str, tmp_path: Path, photo: Callable[..., Path]
) -> None:
    """Only where no other folder has them: beside images, masks of the same names are masks."""
    record = ImageRecord("a.png", "x.csv:1", [item()])
    photo(tmp_path / folder / "a.png", (50, 30))
    (sample,) = opened(tmp_path, record).samples
    assert (sample.path, sample.size_wh) == (tmp_path / folder / "a.png", (50, 30))
    photo(tmp_path / "photos/a.png", (40, 20))
    assert opened(tmp_path, record).samples[0].path == tmp_path / "photos/a.png"


def test_a_region_without_a_class_is_a_crowd_region_of_each(tmp_path: Path, photo: Callable[..., Path]) -> None:
    """Evaluation looks at one class at a time: what only one class ignores counts as wrong in the others."""
    photo(tmp_path / "a.png", (50, 30))
    region = item(None, (10.0, 5.0, 60.0, 20.0))
    dataset = opened(tmp_path, ImageRecord("a.png", "x.csv:1", [item("dog"), region, item("cat")]))
    (sample,) = dataset.samples
    assert dataset.classes == ("cat", "dog")
    assert sample.class_ids.tolist() == [1, 0, 1, 0]
    assert sample.is_crowd.tolist() == [False, True, True, False]
    assert sample.boxes_xyxy[1:3].tolist() == [[10, 5, 50, 20]] * 2
    assert len(set(sample.object_ids)) == 4
    assert [problem.kind for problem in dataset.problems] == ["clipped_box"]  # said once
    with pytest.raises(DataError, match="no object has a class"):
        opened(tmp_path, ImageRecord("a.png", "x.csv:1", [region]))
