import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.coco_layouts import annotation_files
from deformable_detr.data.formats.json_kinds import start_of_json
from deformable_detr.data.open import list_splits, open_dataset


def write_json(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": name, "width": 50, "height": 30} for n, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in range(len(names))]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("jsons", "image", "splits"),
    [
        (
            {
                "annotations/instances_train2017.json": "a.png",
                "annotations/instances_val2017.json": "a.png",
                "annotations/captions_val2017.json": "a.png",
            },
            "{split}2017/a.png",
            ("train", "val"),
        ),
        (
            {"annotations/train.json": "a.png", "annotations/test.json": "a.png"},
            "images/{split}/a.png",
            ("train", "test"),
        ),
        (
            {"annotations/train.json": "a.png", "annotations/val.json": "a.png"},
            "{split}/images/a.png",
            ("train", "val"),
        ),
        (
            {"train/_annotations.coco.json": "a.png", "val/_annotations.coco.json": "a.png"},
            "{split}/a.png",
            ("train", "val"),
        ),
        ({"_annotations.coco.json": "a.png"}, "a.png", ("train",)),
        (
            {"coco/train.json": "deep/{split}.png", "coco/val.json": "deep/{split}.png"},
            "deep/{split}.png",
            ("train", "val"),
        ),
        ({"labels.json": "a.png"}, "images/a.png", ("train",)),
        ({"result.json": "../../upload/1/a.png"}, "images/a.png", ("train",)),
        ({"annotations/instances_default.json": "C:\\photos\\a.png"}, "images/a.png", ("train",)),
        ({"train.json": "a.png", "valid.json": "a.png"}, "JPEGImages/a.png", ("train", "val")),
        (
            {"annotations/custom_train.json": "a.png", "annotations/custom_val.json": "a.png"},
            "custom_{split}/a.png",
            ("train", "val"),
        ),
        (
            {"annotations/instances_train_v2.json": "a.png", "annotations/instances_test_v2.json": "a.png"},
            "images/{split}/a.png",
            ("train", "test"),
        ),
        (
            {"train_annotations.json": "a.png", "val_annotations.json": "a.png"},
            "{split}_images/a.png",
            ("train", "val"),
        ),
        ({"train/labels.json": "a.png", "val/labels.json": "a.png"}, "{split}/data/a.png", ("train", "val")),
        (
            {"train/annotations/all.json": "a.png", "val/annotations/all.json": "a.png"},
            "{split}/images/a.png",
            ("train", "val"),
        ),
    ],
)
def test_layouts(
    jsons: dict[str, str], image: str, splits: tuple[str, ...], tmp_path: Path, photo: Callable[..., Path]
) -> None:
    for split in splits:
        photo(tmp_path / image.format(split=split))
    for name, file_name in jsons.items():
        split = next((split for split in splits if split in name), splits[0])
        write_json(tmp_path / name, file_name.format(split=split))
    assert list_splits(tmp_path) == splits
    for split in splits:
        dataset = open_dataset(tmp_path, split=split)
        assert dataset.samples[0].path.resolve() == (tmp_path / image.format(split=split)).resolve()
        assert "COCO" in dataset.source


def test_the_folder_of_the_json_and_a_relative_path_will_do(
    tmp_path: Path, photo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "photos/a.png")
    write_json(tmp_path / "coco/train.json", "photos/a.png")
    monkeypatch.chdir(tmp_path / "coco")
    for path in (".", "train.json", "../coco", ".."):
        assert open_dataset(path).samples[0].path == tmp_path / "photos/a.png"


def test_json_that_is_not_coco_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "results.json").write_text('[{"image_id": 3}]')
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/one_picture.json").write_text('{"shapes": []}')
    assert annotation_files(tmp_path) == []
    with pytest.raises(DataError, match="no data set recognised"):
        open_dataset(tmp_path)


def test_a_broken_json_where_one_is_expected_is_named(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"train\.json, line 1, column 13: not JSON: .*cut off"):
        open_dataset(tmp_path)


def test_json_of_another_format_is_left_to_that(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "annotations/train.png", (50, 30))
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [3, 4]]}
    document = {"shapes": [shape], "imagePath": "train.png", "file_name": "as COCO says"}
    (tmp_path / "annotations/train.json").write_text(json.dumps(document))
    for path in (tmp_path, tmp_path / "annotations/train.json"):
        assert annotation_files(path) == []
        assert open_dataset(path).source.startswith("LabelMe")


def test_a_folder_of_a_split_with_several_files_says_nothing(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "train/a.png")
    for name in ("one", "two"):
        write_json(tmp_path / f"train/{name}.json", "a.png")
    assert annotation_files(tmp_path) == []


NOTES = {"categories": [{"id": 0, "name": "cake"}], "info": {"contributor": "Label Studio"}}
DATUMARO = {"info": {}, "categories": {"label": {"labels": []}}, "items": [{"id": "a", "annotations": [], "image": {}}]}
ONE_PICTURE = {"image": {"path": "a.png"}, "annotations": [{"name": "cat", "bounding_box": {}}]}


def test_files_of_other_tools_are_not_coco(tmp_path: Path) -> None:
    """Neither where they lie about nor where the json of a split is expected."""
    for name, content in (("notes", NOTES), ("datumaro", DATUMARO), ("darwin", ONE_PICTURE), ("list", [DATUMARO])):
        file = tmp_path / name / "annotations" / "train.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
        assert not start_of_json(file).is_coco, name
        assert (annotation_files(tmp_path / name) == []) == (name != "darwin")  # which is refused for what it lacks
    (tmp_path / "notes/notes.json").write_text(json.dumps(NOTES))
    assert annotation_files(tmp_path / "notes") == []


def test_large_files_are_known_by_their_beginning(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    padding = [{"id": n, "name": f'class \\" [{n}]'} for n in range(3000)]
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(9000)]
    annotations = [{"id": n, "image_id": n} for n in range(9000)]
    for content, coco in (
        ({"info": {}, "categories": padding, "images": images}, True),
        ({"info": {}, "images": images}, True),
        ({"annotations": annotations, "categories": padding}, True),
        ({"info": {"images": images}, "items": []}, False),
        ({"categories": {"label": padding}, "items": images}, False),
        ({"images": {"a": images}}, False),
        ({"text": "x" * 200_000, "images": images}, False),
        (images, False),
    ):
        file.write_text(json.dumps(content))
        assert file.stat().st_size > 1 << 16
        assert start_of_json(file).is_coco is coco, list(content)[:3]


def test_a_long_beginning_without_any_list_counts_where_coco_is_expected(tmp_path: Path) -> None:
    file = tmp_path / "annotations/train.json"
    file.parent.mkdir()
    begin = {"info": {"description": "x" * 70_000}, "licenses": []}
    for content, coco in (
        (begin, True),
        ({**begin, "images": []}, True),
        ({"categories": {"label": {"labels": ["x" * 70_000]}}, "items": []}, False),
        ({"version": "x" * 70_000, "shapes": []}, False),
    ):
        file.write_text(json.dumps(content))
        assert start_of_json(file).may_be_coco is coco
        assert not start_of_json(file).is_coco
        assert bool(annotation_files(tmp_path)) is coco
    file.rename(tmp_path / "annotations/train.JSON")
    assert annotation_files(tmp_path) == []


def test_hostile_text_is_looked_at_once(tmp_path: Path) -> None:
    """Every quote of a string that never ends could begin another one."""
    file = tmp_path / "a.json"
    file.write_text('{"' + '\\"' * 100_000)
    began = time.process_time()
    assert not start_of_json(file).is_coco
    assert time.process_time() - began < 5


def test_broken_json_of_any_name_is_named_if_it_began_like_coco(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"info": {}, "images": [{"id": 1, "file_na')
    with pytest.raises(DataError, match=r"labels\.json, line 1, column 35: not JSON: .*cut off"):
        open_dataset(tmp_path)
    (tmp_path / "labels.json").write_text('{"version": "5.0", "shapes": [{"label": "ca')
    with pytest.raises(DataError, match=r"labels\.json: line 1, column 41: not JSON"):
        open_dataset(tmp_path)
