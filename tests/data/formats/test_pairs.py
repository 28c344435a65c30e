from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.pairs import (
    PairedFolders,
    PairedFormat,
    begins_with,
    distinct_splits,
    find_pairs,
    load_paired,
    read_lines,
    start_of,
    subfolders,
)
from deformable_detr.data.formats.records import ObjectRecord


def parse(line: str, where: str) -> ObjectRecord | str | None:
    """Lines such as `cat 1 2 9 8`."""
    if line.startswith("#"):
        return None
    name, *corners = line.split()
    if len(corners) != 4:
        return "no box"
    return ObjectRecord(name, tuple(map(float, corners)), where)  # type: ignore[arg-type]


PLAIN = PairedFormat(
    name="PLAIN",
    images=("pictures", "images"),
    annotations=lambda name: name.startswith("notes"),
    ending=".txt",
    accepts=partial(begins_with, parse),
    read=partial(read_lines, parse=parse),
)


def opened(folder: Path) -> DetectionDataset:
    parts = find_pairs(folder, PLAIN)
    return load_paired(parts[0], parts, PLAIN)


def test_splits_that_would_be_equal_keep_their_names() -> None:
    assert distinct_splits(["a-train", "test-dev", "test-challenge"]) == ["train", "test-dev", "test-challenge"]
    assert distinct_splits(["a", "a", "train", "train"]) == ["a", "a", "train", "train"]


def test_layouts(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for images, notes in (("pictures/{}", "notes/{}"), ("{}/images", "{}/Notes"), ("{}-x/images", "{}-x/notes")):
        root = tmp_path / images.format("a").replace("/", "_")
        for split in ("train", "val"):
            photo(root / images.format(split) / "1.png")
            (root / notes.format(split)).mkdir(parents=True)
            (root / notes.format(split) / "1.txt").write_text("cat 1 2 9 8\n")
        (root / "test-x" / "images").mkdir(parents=True)  # without notes it is no split
        parts = find_pairs(root, PLAIN)
        assert [(part.split, part.images, part.annotations) for part in parts] == [
            (split, root / images.format(split), root / notes.format(split)) for split in ("train", "val")
        ]
        assert find_pairs(root / "val-x", PLAIN) == ([] if "-x" not in images else [parts[1]._replace(split="val-x")])
    assert find_pairs(tmp_path / "nowhere", PLAIN) == []
    assert subfolders(tmp_path / "nowhere") == []


def test_only_folders_that_hold_annotations_count(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/1.png")
    (tmp_path / "notes").mkdir()
    assert find_pairs(tmp_path, PLAIN) == []
    (tmp_path / "notes/1.txt").write_text("0 0.5\n")
    (tmp_path / "notes/2.txt").write_bytes(b"cat 1 2 9 8\n\0")
    assert find_pairs(tmp_path, PLAIN) == []
    (tmp_path / "notes/empty.txt").write_text("\n")
    (tmp_path / "notes/3.txt").write_text("\ufeff# header\n\nbroken\ncat 1 2 9 8\n")
    assert find_pairs(tmp_path, PLAIN) == [PairedFolders(tmp_path.name, tmp_path / "images", tmp_path / "notes")]
    (tmp_path / "notes-v2").mkdir()
    (tmp_path / "notes-v2/3.txt").write_text("cat 1 2 9 8\n")
    assert find_pairs(tmp_path, PLAIN)[0].unread == ("notes-v2",)
    (tmp_path / "notes/1.txt").write_text("dog 1 2 9 8")
    assert opened(tmp_path).problems[0].message == "is read; notes-v2 beside it is not"


def test_files_and_images_by_name(tmp_path: Path, photo: Callable[..., Path]) -> None:
    """Case, composed letters and an image's ending do not matter where no other image has the name."""
    names = {
        "a.png": "a.TXT",
        "B.png": "b.txt",
        "c.jpg": "c.jpg.txt",
        "\u00e9.png": "e\u0301.txt",
        "d.2.png": "d.2.txt",
    }
    for number, (image, file) in enumerate(names.items(), start=1):
        photo(tmp_path / "images" / image, (50, 30), shade=number)
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / file).write_text(f"cat 1 2 {number + 9} 8\n")
    dataset = opened(tmp_path)
    assert dataset.problems == ()
    widths = {sample.path.name: sample.boxes_xyxy[0, 2] for sample in dataset.samples}
    assert widths == {image: number + 9 for number, image in enumerate(names, start=1)}


def test_two_images_that_differ_in_case(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name in ("a.png", "A.png"):
        photo(tmp_path / "images" / name)
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / f"{name[0]}.txt").write_text(f"{'big' if name[0] == 'A' else 'small'} 1 2 9 8\n")
    dataset = opened(tmp_path)
    assert dataset.problems == ()
    found = {sample.path.name: dataset.classes[sample.class_ids[0]] for sample in dataset.samples}
    assert found == {"a.png": "small", "A.png": "big"}


def test_what_cannot_be_matched_stops(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name in ("1.png", "1.jpg", "2.png", "3.png"):
        photo(tmp_path / "images" / name)
    (tmp_path / "notes").mkdir()
    for name in ("1.txt", "2.txt", "2.png.txt", "gone.txt"):
        (tmp_path / "notes" / name).write_text("cat 1 2 9 8\n")
    dataset = opened(tmp_path)
    messages = {Path(problem.where).name: problem.message for problem in dataset.fatal_problems}
    assert set(messages) == {"1.txt", "2.txt", "gone.txt", "notes"}
    assert "several images have its name" in messages["1.txt"]
    assert "two annotation files are for" in messages["2.txt"]
    assert "no file 'gone' with an image's ending" in messages["gone.txt"]
    assert messages["notes"] == "3 of 4 images have no txt file; are the annotations elsewhere?"


def test_folders_within_both_folders(tmp_path: Path, photo: Callable[..., Path]) -> None:
    """Equal names in different folders stay apart; if only one side has folders, the last part of names counts."""
    for number, place in enumerate(("x/1", "y/1"), start=1):
        photo(tmp_path / f"a/images/{place}.png", shade=number)
        (tmp_path / f"a/notes/{place}.txt").parent.mkdir(parents=True)
        (tmp_path / f"a/notes/{place}.txt").write_text(f"cat 1 2 {number + 8} 8\n")
        photo(tmp_path / f"b/images/part{number}/{number}.png", shade=number)
        (tmp_path / "b/notes").mkdir(exist_ok=True)
        (tmp_path / f"b/notes/{number}.txt").write_text(f"cat 1 2 {number + 8} 8\n")
    for folder in ("a", "b"):
        dataset = opened(tmp_path / folder)
        assert dataset.problems == ()
        assert [sample.boxes_xyxy[0, 2] for sample in dataset.samples] == [9, 10]


def test_faults_in_files_are_listed(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for number in range(3):
        photo(tmp_path / f"images/{number}.png")
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / f"notes/{number}.txt").write_text("cat 1 2 9 8\n\nbroken line\n# remark\ndog 1 2 3 4\n")
    (tmp_path / "notes/2.txt").write_bytes(b"cat 1 2 9 8\n\xff\n")
    dataset = opened(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert [sample.path.stem for sample in dataset.samples] == ["0", "1"]
    assert [(Path(one.where).name, one.message) for one in dataset.fatal_problems] == [
        ("0.txt:3", "no box"),
        ("1.txt:3", "no box"),
        ("2.txt", "line 2: not UTF-8 text (invalid start byte)"),
    ]


def test_classes_are_those_of_all_splits(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split, name in (("train", "zebra"), ("val", "ant")):
        photo(tmp_path / split / "images/1.png")
        (tmp_path / split / "notes").mkdir()
        (tmp_path / split / "notes/1.txt").write_text(f"{name} 1 2 9 8\n")
    (tmp_path / "val/notes/2.txt").write_bytes(b"\xff")
    parts = find_pairs(tmp_path, PLAIN)
    dataset = load_paired(parts[0], parts, PLAIN)
    assert dataset.classes == ("ant", "zebra")
    assert dataset.problems == ()
    listed = load_paired(parts[0], parts, PLAIN._replace(classes=("ant",)))
    assert "'zebra' is not among the 1 classes" in listed.fatal_problems[0].message


def test_nothing_named(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/1.png")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/1.txt").write_text("# nothing\n")
    part = PairedFolders("x", tmp_path / "images", tmp_path / "notes")
    with pytest.raises(DataError, match="no object has a class"):
        load_paired(part, [part], PLAIN)


def test_starts_of_files(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 100_000)
    assert len(start_of(tmp_path / "long")) == 1 << 14
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfa")
    assert start_of(tmp_path / "marked") == "a"
    assert start_of(tmp_path / "nowhere") == start_of(tmp_path) == start_of(Path("a\0b")) == ""
